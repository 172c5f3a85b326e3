"""The page that asks: what its addresses answer, token by token, and what they refuse."""

import asyncio
import copy
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from mmtrain.cli import main
from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import (
    Reply,
    choice_probabilities,
    likeliest_answers,
    stream_answer,
)
from mmtrain.eval.questions.choosing import likelihoods
from mmtrain.eval.questions.looking import look_at
from mmtrain.eval.questions.seeing import Seen, pieces_of, see
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.vqa import Head, Vqa
from mmtrain.serve import questions as questions_module
from mmtrain.serve.questions import NUM_CHOICES, PageQuestion, Questions
from mmtrain.serve.questions_app import MAX_EARLIER, MAX_QUESTION, PAGE, build_app
from mmtrain.serve.site import build_page
from tests.data.shard_files import encoded, picture
from tests.eval.questions.answerers import make_answerer
from tests.serve.test_app import one_line, png_header
from tests.tasks.test_vqa_run import write_recipe

SENT = encoded(picture((40, 24), seed=3), "PNG")


class Asked:
    """The app of a model, and a client that talks to it."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.questions = Questions(answerer, name="a run")
        self.app = build_app(self.questions)
        self.client = TestClient(self.app, "http://127.0.0.1:8000", raise_server_exceptions=False)

    def add(self, data: bytes = SENT) -> str:
        reply = self.client.post("/api/images", content=data)
        assert reply.status_code == 200, reply.text
        return reply.json()["image"]

    def ask(self, question: str = "is it red?", **fields: Any) -> list[dict[str, Any]]:
        """The steps of an answer."""
        body = {"image": fields.pop("image", None) or self.add(), "question": question} | fields
        reply = self.client.post("/api/ask", content=json.dumps(body))
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert "content-security-policy" in reply.headers
        return [json.loads(line) for line in reply.text.splitlines()]

    def refused(self, body: Any, *, status: int = 400) -> str:
        content = body if isinstance(body, bytes) else json.dumps(body)
        reply = self.client.post("/api/ask", content=content)
        assert reply.status_code == status, reply.text
        return reply.json()["error"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A model with both heads and front doors."""
    folder = tmp_path_factory.mktemp("both")
    words = ["--train.steps", "2", "--train.checkpoint_every", "2", "--eval.vqa", "[]"]
    run = ["--run-dir", str(folder / "run")]
    assert main(["train", str(write_recipe(folder)), *words, *run]) == 0
    saved = load_vqa(folder / "run")
    return Asked(
        Answerer(
            model=saved.model,
            tokenizer=saved.tokenizer,
            preprocess=saved.preprocess,
            vocabulary=saved.vocabulary,
            answer_length=saved.answer_length,
        )
    )


@pytest.fixture(scope="module")
def talks() -> Asked:
    """A model that reads dialogues about tiles."""
    return Asked(make_answerer("tiles"))


def test_the_page_runs_nothing_but_its_own(both: Asked) -> None:
    html, policy = build_page(PAGE)
    assert both.client.get("/").text == html
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html and "style=" not in html and "onclick" not in html
    assert "innerHTML" not in html and "{{" not in html and "{%" not in html


def test_about(both: Asked, talks: Asked) -> None:
    about = both.client.get("/api/about").json()
    assert about["heads"] == ["classify", "generate"] and not about["reads_dialogues"]
    assert about["num_answers"] == len(both.answerer.vocabulary.answers)
    about = talks.client.get("/api/about").json()
    assert about["heads"] == ["generate"] and about["reads_dialogues"] and about["name"] == "a run"
    reply = talks.client.get(f"/api/images/{talks.add()}")
    assert reply.headers["content-type"] == "image/webp"


def test_the_likeliest_answers(both: Asked) -> None:
    """Of a classifier, by default where there is one; map and entries are the evaluation's."""
    answer, last = both.ask("What color is it?")
    seen = see(both.answerer, picture((40, 24), seed=3))
    share = choice_probabilities(both.answerer, seen, [(0, "What color is it?")])[0]
    top = share.topk(min(NUM_CHOICES, len(share)))
    names = [both.answerer.vocabulary.answers[place] for place in top.indices.tolist()]
    assert [one["answer"] for one in answer["answers"]] == names
    assert [x["probability"] for x in answer["answers"]] == pytest.approx(top.values.tolist())
    assert (answer["said"], answer["head"]) == (names[0], "classify")
    check_looked(both, last, "What color is it?", "classify", places={"image", "question"})


def check_looked(
    asked: Asked,
    last: dict[str, Any],
    text: str,
    head: Head,
    *,
    places: set[str],
    earlier: tuple[Turn, ...] = (),
) -> None:
    answerer = dataclasses.replace(asked.answerer, head=head)
    pieces = pieces_of(answerer, picture((40, 24), seed=3))
    looked = look_at(answerer, pieces, text, earlier=earlier)
    told = last["looked"]
    torch.testing.assert_close(torch.tensor(told["rows"]), looked.grid)
    assert set(told["entries"]) == places == set(looked.entries)
    for place, fired in looked.entries.items():
        got = [(one["entry"], one["weight"]) for one in told["entries"][place]]
        assert got == [(entry, pytest.approx(weight)) for entry, weight in fired]


def test_an_answer_comes_token_by_token(both: Asked) -> None:
    """Each step is a line of its own; this model's answers do not end before their length."""
    tokenizer = copy.copy(both.answerer.tokenizer)
    tokenizer.eot_id = -1
    asked = Asked(dataclasses.replace(both.answerer, tokenizer=tokenizer))
    *steps, last = asked.ask("What color is it?", head="generate")
    answerer = dataclasses.replace(asked.answerer, head="generate")
    seen = see(answerer, picture((40, 24), seed=3))
    written = list(stream_answer(answerer, seen, "What color is it?"))
    assert len(steps) == both.answerer.answer_length == 4
    assert [one["said"] for one in steps] == [one.answer for one in written]
    assert [one["cut_after"] for one in steps] == [None, None, None, 4]
    shares = [one["probability"] for one in steps]
    assert shares == pytest.approx([one.probability for one in written])
    assert shares == sorted(shares, reverse=True)
    check_looked(asked, last, "What color is it?", "generate", places={"image"})


def test_an_answer_of_ones_own_is_chosen(both: Asked, talks: Asked) -> None:
    """By its likelihood, of a classifier by its part of what it gives to these."""
    options = ["a blue one", "no", "Red"]
    earlier = [{"question": "why?", "answer": "red"}]
    turns = (Turn("user", "why?"), Turn("assistant", "red"))
    seen = see(talks.answerer, picture((40, 24), seed=3))
    tokenizer = talks.answerer.tokenizer
    scores = {}
    for option in options:
        ids = [*tokenizer.reply_ids(option), tokenizer.eot_id]
        (alone,) = likelihoods(talks.answerer, seen, "and?", [ids], earlier=turns)
        scores[option] = alone.log_prob / len(ids)
    wanted = torch.tensor(list(scores.values())).softmax(0).tolist()
    answer, last = talks.ask("and?", labels=options, earlier=earlier)
    got = {one["answer"]: one["probability"] for one in answer["answers"]}
    assert got == pytest.approx(dict(zip(options, wanted, strict=True)), rel=1e-4)
    assert answer["said"] == max(got, key=lambda name: got[name]) == next(iter(got))
    assert (answer["of"], answer["head"]) == (3, "generate") and last["looked"]
    # Of a classifier.
    names = both.answerer.vocabulary.answers
    seen = see(both.answerer, picture((40, 24), seed=3))
    share = choice_probabilities(both.answerer, seen, [(0, "and?")])[0][[2, 0]]
    answer, _ = both.ask("and?", labels=[names[2].upper(), names[0]])
    got = {one["answer"]: one["probability"] for one in answer["answers"]}
    assert [got[names[2].upper()], got[names[0]]] == pytest.approx((share / share.sum()).tolist())


def test_answers_that_cannot_be_judged_are_refused(both: Asked, talks: Asked) -> None:
    known = next(one for one in both.answerer.vocabulary.answers if one.isalpha())
    for asked, labels, told in (
        (both, [known, "unheard of"], "'unheard of' is none of the"),
        (both, [known, known.upper()], "are one answer; keep one of them"),
        (talks, ["red", "Red"], "'red' and 'Red' are one answer; keep one"),
        (talks, ["red", " ".join("a" * 60)], "longer than any text"),
        (talks, ["red", ""], "a label is empty"),
        (talks, [], "there are no labels"),
        (talks, [str(n) for n in range(101)], "101 answers to choose among; at most 100"),
    ):
        body = {"image": asked.add(), "question": "why?", "labels": labels}
        assert told in asked.refused(body), labels


def test_a_later_question_sees_what_was_said(talks: Asked) -> None:
    before = [("what color is it?", "red"), ("is it large?", "")]
    earlier = [{"question": question, "answer": answer} for question, answer in before]
    turns = tuple(
        Turn(role, text)
        for row in before
        for role, text in zip(("user", "assistant"), row, strict=True)
    )
    *steps, last = talks.ask("why?", earlier=earlier)
    seen = see(talks.answerer, picture((40, 24), seed=3))
    written = list(stream_answer(talks.answerer, seen, "why?", earlier=turns))
    alone = list(stream_answer(talks.answerer, seen, "why?"))
    assert steps[-1]["probability"] == pytest.approx(written[-1][1])
    assert steps[-1]["said"] == written[-1][0] and steps[-1]["left_out"] == 0
    assert alone[-1][1] != pytest.approx(written[-1][1])
    check_looked(talks, last, "why?", "generate", places={"image"}, earlier=turns)
    *steps, _ = talks.ask("why?", earlier=earlier * 10)
    assert 0 < steps[-1]["left_out"] < 20


def test_lines_of_a_question_stay(both: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(answerer: Answerer, seen: Seen, text: str, *, most: int) -> list[Reply]:
        read.append(text)
        return likeliest_answers(answerer, seen, text, most=most)

    monkeypatch.setattr(questions_module, "likeliest_answers", noted)
    both.ask("  red?\nA. yes\nB. \u2028no ")
    assert read == ["red?\nA. yes\nB. \u2028no"]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image": None}, "image must be a text"),
        ({"question": ""}, "the question is empty"),
        ({"question": " \n\t "}, "the question is empty"),
        ({"question": 5}, "the question must be a text"),
        ({"question": None}, "the question must be a text"),
        ({"question": "?!"}, "the question has no words that the model reads"),
        ({"question": "x" * (MAX_QUESTION + 1)}, "has 10,001 characters; at most 10,000"),
        ({"question": "is it red? " * 90}, "longer than 12 tokens; ask more briefly"),
        ({"head": "dance"}, "head must be classify or generate"),
        ({"head": ["classify"]}, "head must be classify or generate"),
        ({"earlier": "no"}, "earlier must be a list of questions"),
        ({"earlier": [1]}, "earlier must be a list of questions"),
        ({"earlier": [{"question": "why?"}]}, "an earlier answer must be a text"),
        ({"earlier": [{"question": "", "answer": "x"}]}, "an earlier question is empty"),
        ({"earlier": [{"question": "why?", "answer": "x"}]}, "reads each question by itself"),
    ],
)
def test_bad_questions(both: Asked, fields: dict[str, Any], told: str) -> None:
    assert told in both.refused({"image": both.add(), "question": "is it red?"} | fields)


def test_bad_turns(talks: Asked) -> None:
    one = {"question": "is it red?", "answer": "yes"}
    asked = {"image": talks.add(), "question": "why?"}
    for fields, told in (
        ({"question": "is it " + "red " * 200}, "leaves room for"),
        ({"question": "a <image> b"}, "<image> stands for an image"),
        ({"earlier": [one | {"answer": "<image>"}]}, "<image> stands for an image"),
        ({"earlier": [one] * (MAX_EARLIER + 1)}, "101 questions came before; at most 100"),
        ({"head": "classify"}, "head = classify: the model has only generate"),
    ):
        assert told in talks.refused(asked | fields)


def test_no_image(both: Asked) -> None:
    assert both.refused({"question": "why?"}) == "there is no image; drop one first"
    told = both.refused({"question": "why?", "image": "unknown"}, status=404)
    assert "drop it again" in told
    for body in (b"{", b"[]", b"\xff", b""):
        assert both.refused(body)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the image is empty"),
        (b"<html>", "no image that Pillow reads"),
        (png_header(60_000, 60_000), "image too large (at most 67 million pixels)"),
        (png_header(64, 64), "image truncated"),
    ],
    ids=["empty", "html", "bomb", "cut"],
)
def test_bad_images(both: Asked, talks: Asked, data: bytes, told: str) -> None:
    for asked in (both, talks):
        reply = asked.client.post("/api/images", content=data)
        assert reply.status_code == 400 and told in one_line(reply.json())


def test_what_is_not_finite_is_told(both: Asked) -> None:
    """Weights that overflow, before the answer begins."""
    model = copy.deepcopy(both.answerer.model)
    for name, parameter in model.named_parameters():
        if name.startswith("vision."):
            torch.nn.init.constant_(parameter.data, float("nan"))
    asked = Asked(dataclasses.replace(both.answerer, model=model))
    for head in ("classify", "generate"):
        body = {"image": asked.add(), "question": "is it red?", "head": head}
        assert "not finite" in asked.refused(body)
    assert asked.client.get("/api/about").status_code == 200


# One at a time ------------------------------------------------------------------------------------


def test_a_fault_within_an_answer_is_its_last_line(
    talks: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is sent by then; the next question is answered."""

    def broken(*_: Any, **__: Any) -> Iterator[Reply]:
        yield Reply("a", 0.5)
        raise RuntimeError("a defect in /some/where")

    with monkeypatch.context() as patched:
        patched.setattr(questions_module, "stream_answer", broken)
        first, last = talks.ask("why?")
    assert first["said"] == "a" and "made a mistake" in one_line(last)
    assert "a defect in /some/where" in capsys.readouterr().err
    assert talks.ask("why?")[-1]["looked"]


def endless(made: list[int], closed: threading.Event) -> Callable[..., Iterator[Reply]]:
    """An answer that does not end by itself, in place of `stream_answer`."""

    def steps(*_: Any, **__: Any) -> Iterator[Reply]:
        try:
            while True:
                made.append(1)
                yield Reply("more " * len(made), 0.5)
        finally:
            closed.set()

    return steps


def test_whoever_goes_away_ends_the_answer(talks: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made no further, and the next question need not wait for it."""
    made: list[int] = []
    closed = threading.Event()
    body = json.dumps({"image": talks.add(), "question": "why?"}).encode()
    received = 0

    async def visit() -> None:
        gone = asyncio.Event()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal received
            received += bool(message.get("body"))
            if received == 3:
                gone.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": "/api/ask",
            "raw_path": b"/api/ask",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"127.0.0.1:8000")],
        }
        await asyncio.wait_for(talks.app(scope, receive, send), 30)

    with monkeypatch.context() as patched:
        patched.setattr(questions_module, "stream_answer", endless(made, closed))
        asyncio.run(visit())
        assert closed.is_set() and 3 <= received <= len(made) + 1
    assert talks.ask("why?")[-1]["looked"]


def test_questions_are_answered_one_after_another(
    talks: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of one are not mixed with another's, whoever takes them slowly."""
    inside, most = 0, 0
    whole = stream_answer

    def counted(*inputs: Any, **named: Any) -> Iterator[Reply]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            yield from whole(*inputs, **named)
        finally:
            inside -= 1

    monkeypatch.setattr(questions_module, "stream_answer", counted)
    asked = PageQuestion(image=talks.add(), text="why?")
    slow = talks.questions.ask(asked)
    next(slow)
    others: list[list[dict[str, Any]]] = []
    threads = [
        threading.Thread(target=lambda: others.append(list(talks.questions.ask(asked))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert not others and most == 1
    rest = list(slow)
    for thread in threads:
        thread.join(30)
    assert [one[-1] for one in others] == [rest[-1]] * 3 and most == 1


def test_a_model_without_a_map(both: Asked) -> None:
    """Learned queries have no place in an image; their dictionary has entries all the same."""
    known = both.answerer.model
    queries = ConnectorConfig(kind="queries", num_queries=4)
    config = dataclasses.replace(known.config, connector=queries)
    model = Vqa(known.clip, config).init_weights(0).eval()
    for name in known.towers():
        getattr(model, name).load_state_dict(getattr(known, name).state_dict())
    asked = Asked(dataclasses.replace(both.answerer, model=model))
    for head in ("classify", "generate"):
        looked = asked.ask("is it red?", head=head)[-1]["looked"]
        assert looked["rows"] is None and "no place in the image" in looked["why"]
        assert len(looked["entries"]["image"]) == 4
