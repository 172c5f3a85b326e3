"""The page that asks in a real browser: drop an image, ask, read the answer, ask on."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from mmtrain.cli import main
from tests.data.shard_files import encoded, picture
from tests.serve.browsing import drop, heat, opened, served, started_browser
from tests.tasks.dialogue_recipes import dialogue_recipe
from tests.tasks.test_vqa_run import write_recipe

pytestmark = pytest.mark.slow

SENT = encoded(picture((40, 24), seed=3), "PNG")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model with both heads and front doors."""
    folder = tmp_path_factory.mktemp("both")
    with trained(write_recipe(folder), folder) as url:
        yield url


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that reads dialogues."""
    folder = tmp_path_factory.mktemp("talks")
    recipe = dialogue_recipe(folder, size=(40, 24), vqa={"tiles": {"most": 4}})
    with trained(recipe, folder) as url:
        yield url


def trained(recipe: Path, folder: Path) -> AbstractContextManager[str]:
    words = ["--train.steps", "120", "--train.checkpoint_every", "120", "--optim.lr", "1e-2"]
    run = folder / "run"
    assert main(["train", str(recipe), *words, "--eval.vqa", "[]", "--run-dir", str(run)]) == 0
    return served("--model", run, "--device", "cpu", told=r"\(run; ask it about an image")


def ask(page: Page, question: str) -> None:
    """By keyboard, until the answer is whole."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    expect(page.locator("#turns .asked").last).to_have_text(question)
    expect(page.locator("#send")).to_have_text("Ask")
    expect(page.locator("#question")).to_have_value("")


def test_answers_of_ones_own(browser: Browser, talks: str) -> None:
    """While they are unfolded; then the model's own again."""
    with opened(browser, talks) as page:
        drop(page, SENT)
        page.locator("#own summary").click()
        page.fill("#labels", "red\n blue \n\nred\na circle")
        ask(page, "What is it?")
        turn = page.locator("#turns > li").first
        expect(turn.locator(".answers .label")).to_have_count(3)
        names = turn.locator(".answers .label").all_inner_texts()
        assert sorted(names) == ["a circle", "blue", "red"]
        expect(turn.locator(".said")).to_have_text(names[0])
        expect(turn.locator(".sure")).to_contain_text("the likeliest of 3 answers of yours alone")
        page.locator("#own summary").click()
        ask(page, "What is it?")
        expect(page.locator("#turns > li").last.locator(".answers")).to_have_count(0)
        page.locator("#own summary").click()
        page.fill("#labels", "red\nRED")
        page.fill("#question", "What is it?")
        page.press("#question", "Enter")
        expect(page.locator("#look-error")).to_contain_text("are one answer; keep one of them")


def test_choose_and_write(browser: Browser, both: str) -> None:
    """An answer among others, its map, the entries that fired; then one that is written."""
    with opened(browser, both) as page:
        expect(page.locator("#model")).to_contain_text("each question is asked by itself")
        blank = heat(page)
        drop(page, SENT)
        expect(page.locator("#question")).to_be_focused()
        ask(page, "What color is it?")
        turn = page.locator("#turns > li").first
        best = turn.locator(".answers .label").first.inner_text()
        expect(turn.locator(".said")).to_have_text(best)
        shares = turn.locator(".answers .percent").all_inner_texts()
        expect(turn.locator(".sure")).to_contain_text(f"{shares[0]} sure, the likeliest of")
        assert len(shares) == 5
        expect(turn.locator(".fired")).to_have_count(2)
        expect(turn.locator(".fired").first).to_contain_text(re.compile(r"entry \d · \d+\.\d %"))
        expect(page.locator("#heat-note")).to_contain_text("over 2 × 2 parts")
        expect(page.locator("#high")).to_contain_text(re.compile(r"up to \d+\.\d %"))
        first = heat(page)
        assert first != blank

        page.select_option("#head", "generate")
        ask(page, "Is it red?")
        second = page.locator("#turns > li").nth(1)
        expect(second.locator(".said")).not_to_be_empty()
        expect(second.locator(".answers")).to_have_count(0)
        assert heat(page) != first
        expect(second).to_have_class("shown")
        turn.locator(".see").click()
        expect(turn).to_have_class("shown")
        assert heat(page) == first

        page.click("#over")
        expect(page.locator("#turns li")).to_have_count(0)
        assert heat(page) == blank


def test_a_conversation(browser: Browser, talks: str) -> None:
    """What was said goes with the next question; another image begins another conversation."""
    with opened(browser, talks) as page:
        sent: list[dict] = []
        page.on(
            "request", lambda one: one.url.endswith("/api/ask") and sent.append(one.post_data_json)
        )
        drop(page, SENT)
        for question in ("What color is it?", "Is it red?", "<b>why?</b>"):
            ask(page, question)
        said = [one.inner_text() for one in page.locator("#turns .said").all()]
        assert said[0] in ("red", "green", "blue", "yellow", "yes", "no")
        assert sent[0]["earlier"] == []
        earlier = [(row["question"], row["answer"]) for row in sent[2]["earlier"]]
        assert earlier == [("What color is it?", said[0]), ("Is it red?", said[1])]
        expect(page.locator("#turns .asked").last).to_have_text("<b>why?</b>")
        drop(page, encoded(picture((30, 30), seed=4), "PNG"))
        expect(page.locator("#turns li")).to_have_count(0)
        ask(page, "What color is it?")
        assert sent[3]["earlier"] == [] and sent[3]["image"] != sent[2]["image"]


def test_what_cannot_be_asked(browser: Browser, both: str) -> None:
    """One line each, which goes with the next good question; what was written stays."""
    with opened(browser, both) as page:
        error = page.locator("#look-error")
        page.fill("#question", "Is it red?")
        page.click("#send")
        expect(error).to_have_text("There is no image yet; drop one first.")
        expect(page.locator("#send")).to_have_text("Ask")
        drop(page, b"<svg xmlns='x'/>")
        expect(error).to_contain_text("no image that Pillow reads")
        drop(page, size=40 << 20)
        expect(error).to_have_text("That file is too large: 42 MB; at most 32 MB.")
        drop(page, SENT)
        expect(error).to_be_empty()
        page.fill("#question", "  ")
        page.click("#send")
        expect(error).to_have_text("The question is empty; write what you want to know.")
        page.fill("#question", " ".join(["red"] * 100))
        page.click("#send")
        expect(error).to_contain_text("The question is longer than 12 tokens; ask more briefly.")
        expect(page.locator("#question")).to_have_value(" ".join(["red"] * 100))
        page.fill("#question", "x" * 10_001)
        page.click("#send")
        expect(error).to_contain_text("10,001 characters; at most 10,000")
        expect(page.locator("#turns li")).to_have_count(0)
        ask(page, "Is it red?")
        expect(error).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Browser, talks: str, scheme: str) -> None:
    """Nothing is wider than the screen, and the page wears what the system does."""
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(talks)
    drop(page, encoded(picture((200, 20)), "PNG"))
    ask(page, "long" * 15)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert red > 200 if scheme == "light" else red < 60
    page.close()
