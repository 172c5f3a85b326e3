"""The page in a real browser: type a text, drop an image, see probabilities and the heat map."""

import json
import re
import socket
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.loading import save_model
from tests.data.shard_files import encoded, picture
from tests.serve.browsing import drop, heat, opened, served, started_browser
from tests.serve.tiny import COUNT, SIDE, TOKENIZER, tiny_clip, write_pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(folder / "run", model=tiny_clip(), tokenizer=TOKENIZER, preprocess=preprocess)
    shard = write_pictures(folder / "pictures.tar", broken=(2,))
    words = ["--model", folder / "run", "--index", shard, "--device", "cpu"]
    with served(*words, told=r"\(run; 6 images") as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url) as page:
        expect(page.locator("#model")).to_contain_text("6 images to search")
        yield page


def test_play(page: Page) -> None:
    """Text to images, image to labels, label to heat map: by keyboard where there is a key."""
    blank = heat(page)
    page.keyboard.press("Tab")
    page.keyboard.type("picture 3")
    page.keyboard.press("Enter")
    expect(page.locator("#found li")).to_have_count(COUNT - 1)
    expect(page.locator("#search-note")).to_contain_text("“picture 3”")
    # The pictures come after the list that they are in; a busy machine was once asked too early.
    for found in page.locator("#found img").all():
        expect(found).to_have_js_property("complete", True)

    page.fill("#labels", "dog\ncat\n\n a red car \ndog")
    drop(page, encoded(picture((40, 24), seed=3), "PNG"))
    rows = page.locator("#answers button")
    expect(rows).to_have_count(3)
    shares = [
        float(text.rstrip(" %")) for text in page.locator("#answers .percent").all_inner_texts()
    ]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
    expect(rows.first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#heat-note")).to_contain_text("2 × 2 patches")
    first = heat(page)
    assert first != blank
    # The square that the model sees is the middle of the picture, and the map lies on it.
    frame, map_ = (page.locator(name).bounding_box() for name in ("#frame", "#heat"))
    assert frame and map_
    assert map_["width"] == pytest.approx(frame["height"], rel=0.05)
    assert map_["x"] == pytest.approx(frame["x"] + frame["width"] * 0.2, rel=0.05)

    # The picture as it is stands beside its map, as large; each label has its cosine.
    plain = page.locator("#original").bounding_box()
    assert plain and plain["x"] + plain["width"] < frame["x"]
    assert (plain["y"], plain["width"]) == pytest.approx((frame["y"], frame["width"]), abs=1)
    expect(page.locator("#answers .cosine").first).to_contain_text(re.compile(r"cosine -?0\.\d{3}"))

    rows.nth(1).focus()
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_have_attribute("aria-pressed", "true")
    label = page.locator("#answers .label").nth(1).inner_text()
    expect(page.locator("#heat-note")).to_contain_text(f"“{label}”")
    assert heat(page) not in (first, blank)

    page.fill("#labels", "tree\nhouse")
    expect(rows).to_have_count(2)
    page.fill("#labels", "")
    expect(page.locator("#look-error")).to_have_text("There are no labels; write at least one.")
    assert heat(page) == blank
    page.fill("#labels", "tree")
    expect(rows).to_have_count(1)
    expect(page.locator("#look-error")).to_be_empty()


def test_an_empty_search_shows_nothing(page: Page) -> None:
    """What was found goes with the text that found it, and a late answer does not bring it back."""
    page.fill("#query", "a house")
    page.press("#query", "Enter")
    expect(page.locator("#found li")).to_have_count(COUNT - 1)
    page.fill("#query", "  ")
    expect(page.locator("#found li")).to_have_count(0)
    expect(page.locator("#search-note")).to_be_empty()
    page.evaluate(
        """() => {
          const query = document.getElementById("query");
          query.value = "a cat";
          document.getElementById("search").requestSubmit();
          query.value = "";
          document.getElementById("search").requestSubmit();
        }"""
    )
    page.wait_for_load_state("networkidle")
    expect(page.locator("#found li")).to_have_count(0)
    expect(page.locator("#search-note")).to_be_empty()


def test_an_image_that_was_found(page: Page) -> None:
    page.fill("#query", "a house")
    page.click("#search button")
    page.locator("#found button").first.click()
    expect(page.locator("#answers [aria-pressed=true] .label")).to_have_text("a house")
    assert page.input_value("#labels").startswith("a house\n")
    page.click("#similar")
    expect(page.locator("#search-note")).to_contain_text("the image below")
    expect(page.locator("#found .cosine").first).to_have_text("1.000")


def test_what_is_no_image(page: Page) -> None:
    error = page.locator("#look-error")
    drop(page, b"<svg xmlns='x'/>")
    expect(error).to_contain_text("no image that Pillow reads")
    drop(page, size=40 << 20)
    expect(error).to_have_text("That file is too large: 42 MB; at most 32 MB.")
    drop(page, encoded(picture(), "PNG"))
    expect(page.locator("#answers li")).to_have_count(6)
    expect(error).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Browser, url: str, scheme: str) -> None:
    """Nothing is wider than the screen, and the page wears what the system does."""
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(url)
    page.fill("#query", "a picture with rather a long text in it, longer than the screen is wide")
    page.press("#query", "Enter")
    expect(page.locator("#found li")).to_have_count(COUNT - 1)
    page.fill("#labels", "a label\n" + "long" * 40)
    drop(page, encoded(picture((200, 20)), "PNG"))
    expect(page.locator("#answers li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert red > 200 if scheme == "light" else red < 60
    # Neither does a frame around a picture glare.
    for frame in ("#found .frame", "#frame"):
        ground = page.locator(frame).first.evaluate(
            "(one) => getComputedStyle(one).backgroundColor"
        )
        red = int(re.findall(r"\d+", ground)[0])
        assert red > 200 if scheme == "light" else red < 60
    page.close()


def test_two_gigabytes(url: str) -> None:
    """The answer comes before the upload, in one line, and the connection is closed."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        head = (
            f"POST /api/images HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {2 << 30}\r\n\r\n"
        )
        client.sendall(head.encode() + bytes(1 << 16))
        reply = b""
        while piece := client.recv(1 << 16):
            reply += piece
    head, _, body = reply.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 413") and "connection: close" in head.lower()
    assert json.loads(body) == {"error": "the image is larger than 32 MB; send a smaller one"}
