"""`mmtrain data labels`: the tokens that are learnt are marked, and no others."""

import re
from pathlib import Path

import pytest

from mmtrain.build.data import open_data, read_recipe
from mmtrain.cli import main
from mmtrain.commands import data_labels
from mmtrain.data.dialogues.batches import DialogueData
from mmtrain.data.labels import label_batch
from tests.data.dialogues.dialogue_files import picture, write_jsonl, write_pictures
from tests.data.dialogues.test_tokens import chat_tokenizer
from tests.data.questions.vqa_files import write_set
from tests.tasks.decoder_starts import CHATML, started_recipe, write_decoder, write_tokenizer

ROOT = Path(__file__).parents[2]
DIALOGUES, CLIP = (ROOT / f"configs/debug_{name}.toml" for name in ("dialogues", "clip"))
EASY = ROOT / "configs/vqa_easy_generate.toml"


def labels(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["data", "labels", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def write_talk(folder: Path) -> Path:
    write_pictures(folder, 2)
    (folder / "pictures/1.png").write_bytes(picture(1, size=(64, 32)))
    said = [
        {"from": "human", "value": "<image>or<image>what is it?"},
        {"from": "gpt", "value": "a red circle"},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    names = ["pictures/0.png", "pictures/1.png"]
    return write_jsonl(folder / "t.jsonl", [{"id": "a", "conversations": said, "images": names}])


def test_dialogues_show_what_is_said_and_fold_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "labels.html"
    words = [DIALOGUES, "--data.train", write_talk(tmp_path), "--train.batch_size", 1]
    lines = labels(capsys, *words, "--train.microbatches", 1, "--out", out)
    row = next(line for line in lines if line.startswith("a "))
    assert re.findall(r"\{\+(.*?)\+\}", row) == [" a red circle<end>", " yes<end>"]
    places = r"\[image 1 x 4\] ?or\[image 3 x 4\]"
    assert re.search(places, row), row
    shares = re.search(r"1 row, (\d+) tokens: trained (.*)%, images (.*)%, padding 0", lines[1])
    assert shares is not None and abs(float(shares[3]) - 1600 / int(shares[1])) < 0.06
    page = out.read_text()
    assert "image 3 × 4" in page and page.count("data:image/webp") == 4
    assert "http" not in page and "<script" not in page
    learnt = re.findall(r'class="token trained[^>]*>([^<]*)<', page)
    assert "".join(learnt[1:]) == " a red circle&lt;end&gt; yes&lt;end&gt;"  # the first is the key


def test_captions_show_what_is_cut_off(capsys: pytest.CaptureFixture[str]):
    lines = labels(capsys, CLIP, "--tokenizer.context_length", 5, "--rows", 2, "--batches", 2)
    assert sum(line.startswith("# step") for line in lines) == 2
    assert "trained 0.0%" in lines[1] and "captions are matched with images as a whole" in lines[2]
    assert all("<start>" in line and re.search(r"<end>\[-.+-\]", line) for line in lines[3:5])
    assert lines[5] == "# and 14 more rows; --rows 16 shows all"


def test_questions_show_the_answers_that_are_written_and_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = write_set(tmp_path)
    of_set = [f"--vqa.data.{name}={files[name]}" for name in ("questions", "annotations")]
    words = ["--data.train", files["data"], *of_set, "--train.batch_size", 4]
    words += ["--vqa.min_count", 1, "--vqa.data.per_image", 2]
    lines = labels(capsys, EASY, *words, "--train.microbatches", 1)
    rows = [line for line in lines if not line.startswith("#")]
    assert len(rows) == 8
    for row in rows:
        (learnt,) = re.findall(r"\{\+(.*?)\+\}", row)
        chosen = re.search(r"chosen: (.*) \d\.\d\d", row)
        assert learnt.endswith("<end>") and learnt != "<end>" and chosen is not None
        assert "[image 1 x " in row.partition("{+")[0]


def test_a_terminal_gets_colours_and_no_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    plain = data_labels.Console
    monkeypatch.setattr(
        data_labels, "Console", lambda **given: plain(**given, force_terminal=True, width=400)
    )
    lines = labels(capsys, DIALOGUES, "--rows", 1)
    assert "\x1b[1;32m" in lines[2] and "{+" not in lines[2]


def test_what_is_shown_is_every_token_of_the_row_once(tmp_path: Path):
    recipe = read_recipe(DIALOGUES, [])
    data = open_data(recipe)
    assert isinstance(data, DialogueData)
    batch = data.batch(0)
    labelled = label_batch(batch, data.tokenizer, image_tokens=4)
    assert len(labelled.rows) == batch.num_rows
    for row, found in enumerate(labelled.rows):
        length = int(batch.length_B[row])
        kept = ~batch.image_BT[row, :length]
        learnt = batch.trained_BT[row, :length][kept].tolist()
        shown = [
            (token, one.kind == "trained")
            for one in found.stretches
            for each in one.tokens
            for token in each.ids
        ]
        ids = batch.tokens_BT[row, :length][kept].tolist()
        assert shown == list(zip(ids, learnt, strict=True))
        images = sum(s.num_pieces * s.per_piece for s in found.stretches if s.kind == "image")
        assert images == int(batch.image_BT[row].sum())
    assert labelled.num_trained == int(batch.trained_BT.sum())


@pytest.mark.parametrize("change", ["another folder", "another template"])
def test_a_recipe_is_read_as_it_would_begin_and_a_run_as_it_began(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Also where an earlier run of the recipe's run.dir has kept another tokenizer."""
    first, second = (write_decoder(tmp_path / name, chat=CHATML) for name in ("first", "second"))
    recipe, run = started_recipe(tmp_path, first), tmp_path / "run"
    assert main(["train", str(recipe), "--train.steps", "1"]) == 0
    capsys.readouterr()
    before = labels(capsys, recipe)[2:]
    assert "<|im_start|>user" in before[0] and labels(capsys, run)[2:] == before
    changed = first if change == "another template" else second
    write_tokenizer(changed, chat=CHATML.replace("assistant", "red"))
    after = labels(capsys, recipe, "--vqa.generate.init", changed)[2:]
    assert "<|im_start|>red" in after[0] and labels(capsys, run)[2:] == before


def test_data_show_draws_the_pieces_of_each_dialogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "step.html"
    assert main(["data", "show", str(DIALOGUES), "--step", "1", "--out", str(out)]) == 0
    assert "what is it" in capsys.readouterr().out
    assert out.read_text().count("data:image/webp") == 16


def test_characters_of_several_tokens_are_shown_whole(tmp_path: Path):
    from mmtrain.data.labels import shown_tokens

    tokenizer = chat_tokenizer("qwen2", tmp_path / "folder")
    found = tokenizer.chat_tokens(
        [{"role": "user", "content": "火 é🙂"}, {"role": "assistant", "content": "café 火"}],
        mark="<image>",
    )
    assert found is not None
    ids = [token for token, _ in found if token is not None]
    shown = [*shown_tokens(tokenizer, ids)]
    text = "".join(one.text for one in shown)
    assert "\ufffd" not in text and "<|im_start|>assistant\ncafé 火<|im_end|>" in text
    assert [token for one in shown for token in one.ids] == ids


@pytest.mark.parametrize(
    "words, told",
    [
        (["--batches", "9999"], "--batches 9999: the run has "),
        (["--out", "x.txt"], "--out"),
        (["--vqa.dialogues.max_length", "4"], "vqa.dialogues.max_length = 4 holds no image"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "labels", str(DIALOGUES), *words]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1
