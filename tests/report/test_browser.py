"""The report in a real browser: its map by pointer, key and tap, without a script; nothing wider
than a phone; texts that can be read, light and dark."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mmtrain.cli import main
from mmtrain.eval.look.files import write_look
from mmtrain.report import write_report
from tests.data.shard_files import encoded, picture, write_shard
from tests.report.folders import make_look, make_run, write_answers, write_probes
from tests.report.test_look import TOLD

pytestmark = pytest.mark.slow

# Of every element with a text of its own: its contrast with the ground behind it (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, place) => sum + x * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length && (colour[3] ?? 1) === 1) return colour;
    }
  };
  return [...document.querySelectorAll("main *")]
    .filter((one) => one.checkVisibility())
    .filter((one) => [...one.childNodes].some((x) => x.nodeType === 3 && x.data.trim()))
    .map((one) => {
      const style = getComputedStyle(one);
      const colour = parse(one.closest("svg") ? style.fill : style.color);
      const [low, high] = [light(colour), light(ground(one))].sort((a, b) => a - b);
      return [one.textContent.trim().slice(0, 40), (high + 0.05) / (low + 0.05)];
    });
}"""

# Texts of drawings that begin or end outside of them.
CUT_IN_DRAWINGS = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")]
    .filter((text) => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1;
    })
    .map((text) => text.textContent);
})"""
# How red the ground behind pictures is.
GROUNDS = """() => [...document.querySelectorAll(".frame, .alike img")]
  .map((one) => Number(getComputedStyle(one).backgroundColor.match(/[\\d.]+/)[0]))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if path is None:
        told = "no chromium is installed; apt-get install -y chromium"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("report") / "run", text="a" * 60 + " long word")
    write_probes(run)
    write_answers(run)
    write_look(run / "look", make_look(), told=TOLD)
    return write_report((run,))


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """Without scripts, and without a network."""
    context = browser.new_context(java_script_enabled=False, offline=True, has_touch=True)
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()


def test_the_map_answers_pointer_keys_and_taps(page: Page) -> None:
    dots = page.locator(".plane input")
    expect(dots).to_have_count(5)
    shown = page.locator(".told:visible").last  # of those that lie there the one on top
    expect(shown).to_contain_text("text 0")
    dots.nth(4).hover()
    expect(shown).to_contain_text("text 4")
    thumb = page.locator(".told:visible .thumb").last.bounding_box()
    assert thumb is not None and thumb["width"] == thumb["height"] > 90
    page.mouse.move(2, 2)
    expect(shown).to_contain_text("text 0")
    # Last, for a tap is followed by a pointer of its own, at any time.
    dots.nth(2).tap()
    expect(shown).to_have_text(re.compile(r"^text 2\s*nearest: text 0"))
    expect(page.locator(".told").first).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(shown).to_contain_text("text 3")


def test_a_line_leads_from_each_image_to_its_text_on_both_planes(page: Page) -> None:
    dot = page.locator(".plane input").nth(3)
    for plane in ("by-tsne", "by-pca"):
        page.locator(f"label[for={plane}]").click()
        dot.check()
        page.wait_for_timeout(1000)
        boxes = [
            page.locator(name).nth(3).bounding_box() for name in (".plane input", ".link", ".goal")
        ]
        assert all(boxes)
        start, line, goal = boxes
        for side, size in (("x", "width"), ("y", "height")):
            ends = sorted(box[side] + box[size] / 2 for box in (start, goal))
            assert line[side] == pytest.approx(ends[0], abs=2.5)
            assert line[side] + line[size] == pytest.approx(ends[1], abs=2.5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_and_it_can_be_read(
    browser: Browser, report: Path, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 60
    assert not [(text, ratio) for text, ratio in contrasts if ratio < 4.5]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert red > 200 if scheme == "light" else red < 60
    page.close()


@pytest.fixture(scope="module")
def data_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Figures and a sheet of data with long names and the longest reasons."""
    folder, long = tmp_path_factory.mktemp("data"), "a_key_without_a_break_" * 3
    rows: list[tuple[str, dict[str, bytes | str]]] = [
        (f"{long}{n}", {"png": encoded(picture((200, 9 + 90 * (n % 2))), "PNG"), "txt": "x" * 99})
        for n in range(8)
    ]
    broken = {"no": b"no image", "cut": encoded(picture((90, 90)), "JPEG")[:300]}
    rows += [(f"{long}{name}", {"jpg": image, "txt": "a"}) for name, image in broken.items()]
    write_shard(folder / f"{'deep' * 9}.tar", [*rows, ("mute", {"png": rows[0][1]["png"]})])
    pages = {"stats": folder / "stats.html", "view": folder / "view.html"}
    for name, page in pages.items():
        assert main(["data", name, str(folder), "--out", str(page)]) == 0
    return pages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("name", ["stats", "view"])
def test_pages_of_data_show_all_of_it_and_can_be_read(
    browser: Browser, data_pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.goto(data_pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert not [one for one in page.evaluate(CONTRASTS) if one[1] < 4.5]
    assert page.evaluate(CUT_IN_DRAWINGS) == []
    frames = page.evaluate(GROUNDS)
    assert frames and all(red > 200 if scheme == "light" else red < 60 for red in frames)
    page.close()
