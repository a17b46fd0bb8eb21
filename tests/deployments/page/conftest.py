"""One browser for each file of tests, and a fresh profile with a page for each test.

Playwright's event loop counts as running in this thread while the browser is there, so that no test of
the same file may be async.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.support.page_site import chromium

TIMEOUT_MS = 20_000  # for what takes some ten on an idle machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with chromium() as browser:
        yield browser


@pytest.fixture
def viewport() -> dict[str, int]:
    return {"width": 1200, "height": 800}


@pytest.fixture
def page(browser: Browser, viewport: dict[str, int]) -> Iterator[Page]:
    """No script fails in it, and nothing that its policy forbids is tried: the browser would tell."""
    problems: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if (
            message.type == "error" and "Failed to load resource" not in message.text
        ):  # that is a status, or a test's cut
            problems.append(message.text)

    context = browser.new_context(viewport=viewport, reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT_MS)
    try:
        page = context.new_page()
        page.on("console", told)
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert problems == []
    finally:
        context.close()
