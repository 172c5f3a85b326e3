"""A browser, and the page's server as the command line starts it."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No file system is watched for drops in a test: the event is made as a browser makes it.
DROP = """([data, size]) => {
  const decoded = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const bytes = data ? decoded : new Uint8Array(size);
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  const event = { bubbles: true, cancelable: true, dataTransfer: transfer };
  document.getElementById("stage").dispatchEvent(new DragEvent("drop", event));
}"""


@contextmanager
def started_browser() -> Iterator[Browser]:
    """The one that is installed; a test that finds none is skipped, or fails where all must run."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        told = f"none of {', '.join(NAMES)} is installed; apt-get install -y chromium"
        # Where all must have run, a browser that is missing is a fault.
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(*words: object, told: str) -> Iterator[str]:
    """The address of `mmtrain serve`, which must end well when it is interrupted.

    Args:
        words: of the command.
        told: the pattern of what it says behind the address.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "mmtrain", "serve", *map(str, words), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        found = re.match(rf"(http://127\.0\.0\.1:\d+)  {told}", server.stdout.readline())
        if found is None:
            server.kill()
            pytest.fail(server.stderr.read())
        yield found.group(1)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        assert "Traceback" not in server.stderr.read()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page, which must not complain of a script, a picture or its policy."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: note(message.text))
    page.on("request", lambda request: request.url.startswith((url, "data:")) or note(request.url))

    def note(text: str) -> None:
        # A question that the server refuses, which a test does on purpose.
        if "the server responded with a status of 400" not in text:
            complaints.append(text)

    page.goto(url)
    yield page
    page.close()
    assert not complaints


def drop(page: Page, data: bytes = b"", *, size: int = 0) -> None:
    """A file onto the page: of these bytes, or of so many."""
    page.evaluate(DROP, [base64.b64encode(data).decode(), size])


def heat(page: Page) -> str:
    """What is drawn over the image."""
    return page.evaluate("document.getElementById('heat').toDataURL()")
