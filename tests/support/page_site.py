"""The system's Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str:
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    assert found, (
        "the tests of the page need a Chromium: `make test` installs it as root, else apt-get install chromium"
    )
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. It loads nothing from elsewhere: names do not resolve."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        )
        try:
            yield browser
        finally:
            browser.close()
