"""Questions from their files: every form, every mistake, batches that are functions of a number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import answer_scores, build_vocabulary, ceiling, every_question
from mmtrain.data.questions.batches import VqaBatch, VqaData, VqaDataConfig
from mmtrain.data.questions.source import open_questions
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from tests.data.questions.vqa_files import change, write_set

ROOT = Path(__file__).parents[3]
TOKENIZER = build_tokenizer(
    TokenizerConfig(
        kind="sentencepiece",
        path=str(ROOT / "mmtrain/demo/vqa/sentencepiece.model"),
        context_length=16,
        clean="canonicalize",
    )
)


def build_data(files: dict[str, str], *, batch_size: int = 4, **changes: int) -> VqaData:
    vqa = VqaDataConfig(
        questions=files.get("questions"),
        annotations=files.get("annotations"),
        per_image=changes.pop("per_image", 2),
    )
    source = open_questions(**files)
    return VqaData(
        DataConfig(train=files["data"]),
        vqa=vqa,
        vocabulary=build_vocabulary(every_question(source), min_count=1),
        with_answers=True,
        preprocess=PreprocessConfig(image_size=16),
        tokenizer=TOKENIZER,
        seed=3,
        batch_size=batch_size,
        **changes,
    )


def test_vqa_v2(tmp_path: Path):
    source = open_questions(**write_set(tmp_path))
    questions = list(every_question(source))
    assert source.num_samples == 12 and len(questions) == 36
    assert questions[0].answers[0] == "red" and questions[0].answer_type == "other"
    vocabulary = build_vocabulary(questions, min_count=4)
    assert set(vocabulary.answers) == {"no", "yes", "red", "green", "blue"}
    assert ceiling(questions, vocabulary) == 1.0
    few = build_vocabulary(questions, min_count=9)
    assert few.answers == ("no",) and ceiling(questions, few) == pytest.approx(16 / 36)


def test_vizwiz_gqa_and_easy_vqa(tmp_path: Path):
    files = write_set(tmp_path)
    path = tmp_path / "other.json"
    answers = [{"answer": "a cat", "answer_confidence": "yes"}] * 10
    row = {"image": "000000000003.png", "question": "What is it?", "answers": answers}
    path.write_text(json.dumps([row | {"answer_type": "other", "answerable": 1}]))
    source = open_questions(files["data"], questions=str(path))
    (question,) = every_question(source)
    assert question.extra == {"answerable": 1} and source.key(0) == "000000000003.png"
    gqa = {
        "question": "Who?",
        "answer": "girl",
        "imageId": "3",
        "isBalanced": True,
        "entailed": ["8"],
        "types": {"structural": "query", "semantic": "rel", "detailed": "relS"},
    }
    path.write_text(json.dumps({"7": gqa}))
    (question,) = every_question(open_questions(files["data"], questions=str(path)))
    assert question.question_id == "7" and question.extra["entailed"] == ["8"]
    assert (question.question_type, question.answer_type) == ("query", "rel")
    path.write_text(json.dumps([["is a circle present?", "yes", 3]]))
    (question,) = every_question(open_questions(files["data"], questions=str(path)))
    assert question.answers == ("yes",) and answer_scores(question) == {"yes": 1.0}


def test_easy_vqa_is_cut_without_overlap():
    parts = {name: open_questions(f"easy_vqa:{name}") for name in ("train", "val", "trainval")}
    keys = {name: {s.key(i) for i in range(s.num_samples)} for name, s in parts.items()}
    assert not keys["train"] & keys["val"] and keys["train"] | keys["val"] == keys["trainval"]
    assert len(keys["trainval"]) == 4000 and 150 < len(keys["val"]) < 250


def same(first: VqaBatch, second: VqaBatch) -> bool:
    return all(
        torch.equal(value, getattr(second, name))
        for name, value in vars(first).items()
        if isinstance(value, torch.Tensor)
    )


def test_a_batch_is_a_function_of_its_number(tmp_path: Path):
    files = write_set(tmp_path)
    data, again = build_data(files), build_data(files)
    batch = data.batch(1)
    for number in (5, 0, 1):
        other = again.batch(number)
    assert same(batch, other)
    assert batch.tokens_QT.size(0) == 8
    mask = batch.label_mask_QT
    assert torch.equal(mask.sum(1), batch.length_Q - batch.question_length_Q)
    # Over the epochs other questions are drawn.
    texts = {
        TOKENIZER.decode(row[:n].tolist())
        for number in range(0, 30, 3)
        for row, n in zip(
            data.batch(number).tokens_QT, data.batch(number).question_length_Q, strict=True
        )
    }
    assert len(texts) == 3


def test_ranks_share_out_the_rows(tmp_path: Path):
    files = write_set(tmp_path)
    whole = build_data(files).batch(2)
    parts = [build_data(files, rank=rank, world_size=2).batch(2) for rank in range(2)]
    assert torch.equal(torch.cat([part.valid_Q for part in parts]), whole.valid_Q)
    images = torch.cat([part.images_BCHW for part in parts])
    assert torch.equal(images, whole.images_BCHW)
    assert whole.keys == parts[0].keys + parts[1].keys


def test_empty_slots_count_nowhere(tmp_path: Path):
    batch = build_data(write_set(tmp_path), per_image=5).batch(0)
    assert batch.valid_Q.view(4, 5).tolist() == [[True] * 3 + [False] * 2] * 4
    assert bool((batch.answer_id_QK[~batch.valid_Q] == -1).all())


def test_shards_hold_what_the_folder_holds(tmp_path: Path):
    files = write_set(tmp_path)
    out = tmp_path / "shards"
    words = ["--questions", files["questions"], "--annotations", files["annotations"]]
    words += ["--out", str(out), "--per-shard", "12"]
    assert main(["data", "vqa", "--images", files["data"], *words]) == 0
    shards = build_data({"data": str(out / "*.tar")})
    assert same(shards.batch(0), build_data(files).batch(0))


def test_half_a_character_in_a_question_or_an_answer_is_kept(tmp_path: Path):
    paths = write_set(tmp_path)
    odd, answer = "what \ud83d is it?", "\udfff"

    def ask(content: dict[str, Any]) -> None:
        content["questions"][0]["question"] = odd

    def reply(content: dict[str, Any]) -> None:
        content["annotations"][0]["answers"][0]["answer"] = answer

    change(Path(paths["questions"]), ask)
    change(Path(paths["annotations"]), reply)
    source = open_questions(**paths)
    first = next(every_question(source))
    assert first.question == odd and first.answers[0] == answer
    data_vqa = ["data", "vqa", "--images", paths["data"], "--questions", paths["questions"]]
    data_vqa += ["--annotations", paths["annotations"], "--out", str(tmp_path / "shards")]
    assert main(data_vqa) == 0
    again = open_questions(str(tmp_path / "shards/*.tar"))
    assert next(every_question(again)) == first


def test_mistakes_are_one_line(tmp_path: Path):
    def drop_ids(content: dict) -> None:
        del content["annotations"][4:6]

    def drop_answers(content: dict) -> None:
        content["annotations"][7]["answers"] = []

    files = write_set(tmp_path / "a")
    change(Path(files["annotations"]), drop_ids)
    with pytest.raises(UsageError, match=r"2 of the 36 questions .* such as question_id 11"):
        open_questions(**files)
    files = write_set(tmp_path / "b")
    change(Path(files["annotations"]), drop_answers)
    with pytest.raises(UsageError, match="question_id 21 has no answers"):
        open_questions(**files)
    files = write_set(tmp_path / "c")
    (tmp_path / "c/images/COCO_train2014_000000000005.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 12 images are not there, such as 5"):
        open_questions(**files)
    with pytest.raises(UsageError, match="folder of images: name its file of questions"):
        open_questions(files["data"])
    with pytest.raises(UsageError, match="of no known form"):
        (tmp_path / "x.json").write_text("[1]")
        open_questions(files["data"], questions=str(tmp_path / "x.json"))
    with pytest.raises(UsageError, match="'dev' is unknown"):
        open_questions("easy_vqa:dev")
    with pytest.raises(UsageError, match="leave the files of them out"):
        open_questions("easy_vqa:test", questions="x.json")


def test_the_column_of_the_images_is_used_or_refused(tmp_path: Path):
    """A manifest of rows with questions has one; the files of a set say themselves."""
    files = write_set(tmp_path)
    for key, option in (("data.train", "data.image_key"), ("data", "image_key")):
        with pytest.raises(UsageError, match=f"^{option} = picture has no effect"):
            open_questions(**files, image_key="picture", key=key)
        with pytest.raises(UsageError, match=f"^{option} = picture has no effect"):
            config = DataConfig(train=files["data"], image_key="picture")
            open_questions(**files, config=config, key=key)
    source = open_questions(**files)
    rows = [json.loads(source.read(n)["json"]) for n in range(source.num_samples)]
    for number, row in enumerate(rows):
        row["picture"] = f"{tmp_path}/images/{source.images[number].path.name}"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = open_questions(str(tmp_path / "rows.jsonl"), image_key="picture")
    assert again.num_samples == source.num_samples
    assert json.loads(again.read(0)["json"])["questions"] == rows[0]["questions"]
