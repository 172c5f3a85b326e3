"""The page of running runs in a real browser: what is new appears, what is not stays untouched."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.report.folders import make_run
from tests.serve.browsing import opened, started_browser

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)


@contextmanager
def watched(*runs: Path) -> Iterator[str]:
    """The address of `mmtrain watch`, which must end in a line when it is interrupted."""
    words = [sys.executable, "-m", "mmtrain", "watch", *map(str, runs), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        lines = [server.stdout.readline() for _ in (*runs, "the address")]
        found = re.match(r"(http://127\.0\.0\.1:\d+)  \(", lines[-1])
        assert found is not None, (lines, server.kill(), server.stderr.read())
        try:
            yield found.group(1)
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
        assert server.stdout.read() == "ended\n" and server.stderr.read() == ""


def test_a_run_from_before_it_is_there_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with (
        started_browser() as browser,
        watched(path) as url,
        opened(browser, url) as page,
    ):
        expect(page.locator("#runs")).to_contain_text("Is not there yet")
        make_run(path, num_steps=400)
        log = path / "metrics.jsonl"
        os.utime(log)
        expect(page.locator("#runs")).to_contain_text("Training, step 400")
        loss = page.locator("[data-key='training-Loss']")
        expect(loss).to_contain_text("2.5")
        page.evaluate("""() => {
          for (const key of ["training-Loss", "training-Speed"]) {
            const part = document.querySelector(`[data-key='${key}']`);
            part.mark = part.firstElementChild.mark = key;
          }
          document.querySelector("details").open = true;
          scrollTo(0, 700);
        }""")
        before = page.evaluate("[scrollY, document.documentElement.scrollHeight]")
        with log.open("a") as file:
            file.write("".join(json.dumps({"step": n, "loss": 9}) + "\n" for n in range(401, 500)))
            file.write('{"step": 500, "lo')
        expect(page.locator("#runs")).to_contain_text("step 499")
        marks = """["training-Loss", "training-Speed"].map((key) => {
          const part = document.querySelector(`[data-key='${key}']`);
          return [part.mark ?? null, part.firstElementChild.mark ?? null];
        })"""
        # The curve that is new was put where the old one was; the one that is not, not touched.
        assert page.evaluate(marks) == [["training-Loss", None], ["training-Speed"] * 2]
        assert page.evaluate("[scrollY, document.documentElement.scrollHeight]") == before
        assert page.evaluate("document.querySelector('details').open")
        (path / "run.json").write_text('{"total_steps": 499}')
        expect(page.locator("#runs")).to_contain_text("Ended: 499 steps done")
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_page_says_when_its_server_has_gone(tmp_path: Path) -> None:
    with started_browser() as browser:
        page = browser.new_page()
        with watched(tmp_path) as url:
            page.goto(url)
            expect(page.locator("#runs")).to_contain_text("Holds no run yet")
            expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#lost")).to_contain_text("mmtrain watch does not answer")
