"""Options chosen by likelihood: against the model's own logits, whatever the batch."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.questions.source import open_questions
from mmtrain.eval.questions.answering import read_asked
from mmtrain.eval.questions.asking import likeliest_answers
from mmtrain.eval.questions.choosing import choose_among
from mmtrain.eval.questions.seeing import see_pieces
from mmtrain.eval.samples import decode_sample
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.vqa_stage import Asked
from tests.data.questions.published_files import draw_choices, write_images, write_lines
from tests.eval.questions.answerers import ANSWERS, drawn, make_answerer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Short questions with options that a small model has room for."""
    folder = tmp_path_factory.mktemp("choices")
    rows = draw_choices(3)
    images = write_images(folder / "i", (row["image"] for row in rows if row["image"]))
    for number, row in enumerate(rows):
        for name in "ABCD":
            row.pop(name, None)
        row |= {"options": ["red", "yes no", "no"][: 2 + number % 2], "answer": "AB"[number % 2]}
    return ["--data", images, "--questions", write_lines(folder / "rows.jsonl", rows)]


def by_hand(model: str, files: list[str], by: str) -> dict[int, str]:
    """Each option behind its question, alone, through the plain model, token by token."""
    saved = load_vqa(Path(model))
    source = open_questions(files[1], questions=files[3])
    form = TextForm(tokenizer=saved.tokenizer)
    chosen = {}
    for sample in range(source.num_samples):
        members = source.read(sample)
        pixels = eval_transform(saved.preprocess)(decode_sample(members).convert("RGB"))[None]
        for question in read_asked(members):
            tokens, length, _ = form.encode([(question.question, "")])
            ids = tokens[0, : int(length)].tolist()
            scores = []
            for letter, text in zip("ABCD", question.extra["options"], strict=False):
                more = saved.tokenizer.reply_ids(letter if by == "letter" else text)
                more += [] if by == "letter" else [saved.tokenizer.eot_id]
                row = torch.tensor([[*ids, *more]])
                both = torch.tensor([row.size(1)])
                asked = Asked(tokens_QT=row, question_length_Q=length, length_Q=both)
                with torch.no_grad():
                    logits = saved.model.logits(pixels, asked).next_QTV
                assert logits is not None
                told = [
                    logits[0, len(ids) + place - 1].double().log_softmax(0)[token].item()
                    for place, token in enumerate(more)
                ]
                scores.append(sum(told) / (1 if by == "letter" else len(told)))
            chosen[question.question_id] = "ABCD"[scores.index(max(scores))]
    return chosen


@pytest.mark.parametrize("by", [pytest.param("letter", marks=pytest.mark.slow), "text"])
def test_the_likeliest_option_is_taken(model: str, files: list[str], tmp_path: Path, by: str):
    found = []
    for batch in ("1", "7", "32"):
        folder = tmp_path / batch
        words = ["--model", model, *files, "--choose", by, "--fast", "--batch-size", batch]
        words += ["--predictions", str(folder / "said.json"), "--out", str(folder / "out.json")]
        assert main(["eval", "vqa", *words]) == 0
        names = ("said.json", "out.outcomes.jsonl")
        found.append([(folder / name).read_bytes() for name in names])
        result = json.loads((folder / "out.json").read_text())
        assert (result["head"], result["chosen_by"], result["num_unread"]) == ("generate", by, 0)
    assert found[0] == found[1] == found[2]
    said = {row["question_id"]: row["answer"] for row in json.loads(found[0][0])}
    assert said == by_hand(model, files, by)


def test_what_cannot_be_chosen_is_one_line(model: str, files: list[str], tmp_path: Path, capsys):
    words = ["eval", "vqa", "--model", model, "--out", str(tmp_path / "o.json"), "--choose"]
    assert main([*words, "letter", *files, "--head", "classify"]) == 2
    assert "choose = letter is by likelihood" in capsys.readouterr().err
    assert main([*words, "text", "--data", "easy_vqa:test"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose = text: " in line and "questions have no options" in line
    rows = [json.loads(line) for line in Path(files[3]).read_text().splitlines()]
    rows[4]["options"] = ["red", "what color is it " * 9]
    long = write_lines(tmp_path / "rows.jsonl", rows)
    assert main([*words, "text", *files[:3], long]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "question_id 4" in line and "use letter" in line


@pytest.mark.parametrize(
    "logits", [[0.0, -200.0, -200.5, -202.0], [3e38, -200.0, -1e30, -2e30], [0, -200, -120, -3e38]]
)
def test_answers_that_are_all_unlikely_are_told_apart(logits: list[float]):
    """Of fp32 probabilities each of the last three would be 0."""
    answerer = make_answerer(head="classify")
    classify = answerer.fused.classify
    assert classify is not None and classify.choose is not None
    classify.choose.weight.data.zero_()
    classify.choose.bias.data.copy_(torch.tensor(logits))
    seen = see_pieces(answerer, drawn([0]), is_fixed=False)
    last = choose_among(answerer, seen, "why?", ["no", "red", "a blue one"])
    wanted = torch.tensor(logits[1:], dtype=torch.float64).softmax(0).tolist()
    assert [reply.probability for reply in last] == sorted(wanted, reverse=True)
    assert math.isclose(sum(wanted), 1.0)
    best = sorted(range(4), key=lambda place: -logits[place])
    told = likeliest_answers(answerer, seen, "why?", most=4)
    assert [reply.answer for reply in told] == [ANSWERS[place] for place in best]


def test_ask_chooses_among_the_lines_of_a_file(model: str, tmp_path: Path, capsys):
    Image.new("RGB", (20, 16), "red").save(tmp_path / "i.png")
    words = ["ask", "--model", model, "--image", str(tmp_path / "i.png"), "--question", "why?"]
    listed = tmp_path / "answers.txt"
    listed.write_text("red\n\nno\nred\n yes \n")
    for head in ("generate", "classify"):
        assert main([*words, "--head", head, "--answers", str(listed)]) == 0
        question, *lines = capsys.readouterr().out.splitlines()
        told = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in lines}
        assert question == "why?" and set(told) == {"red", "no", "yes"}
        assert sum(told.values()) == pytest.approx(100, abs=0.02)
        assert list(told.values()) == sorted(told.values(), reverse=True)
    for text, head, line in (
        ("\n \n", "generate", "holds no answer; write one a line"),
        ("red\nRed", "generate", "answers: 'red' and 'Red' are one answer"),
        ("red\nunheard of", "classify", "answers: 'unheard of' is none of the"),
    ):
        listed.write_text(text)
        assert main([*words, "--head", head, "--answers", str(listed)]) == 2
        (told_line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line in told_line
    assert main([*words, "--answers", str(tmp_path / "no.txt")]) == 2
    assert "answers = " in capsys.readouterr().err
