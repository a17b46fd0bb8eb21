"""The page at the site, in the system's Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect

from docs.generate.screenshots.png import with_words
from docs.generate.screenshots.site import (
    AGENT,
    DAYS,
    MODEL,
    QUESTION,
    SNAPSHOT_S,
    ask_on_two_days,
    picture_site,
    snapshots,
    wait_stored,
)
from docs.generate.screenshots.speaker import REPLIES
from tests.support.page_cluster import WithCluster

DESK, TALL, PHONE = (1120, 720), (1120, 880), (390, 780)  # pixels
_SETTLED_MS = 150  # by then the page waits for its next look; the clock that is put forward would pass by it, and
# it would look two seconds later


def page_pictures(browser: Browser) -> Iterator[tuple[str, bytes]]:
    """The name of each picture, and its PNG with the words that it shows. Each begins with a site of its own, so
    that what is cached does not depend on the others.
    """
    with picture_site() as (url, _), _window(browser, DESK) as page:
        _talk(page, url)
        yield "page_chat.png", _taken(page)
        page.emulate_media(color_scheme="dark")
        yield "page_chat_dark.png", _taken(page)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        yield "page_phone.png", _taken(page)
    with picture_site() as (url, _), _window(browser, DESK) as page:
        _another_day(page, url)
        yield "page_why.png", _taken(page)
    with picture_site() as (url, cluster), _window(browser, TALL) as page:
        ask_on_two_days(url)
        wait_stored(url, 2)
        _watch(page, url, cluster)
        yield "page_cluster.png", _taken(page)
        page.emulate_media(color_scheme="dark")
        yield "page_cluster_dark.png", _taken(page)


@contextmanager
def _window(browser: Browser, size: tuple[int, int]) -> Iterator[Page]:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce", locale="en-GB"
    )
    context.set_default_timeout(15_000)
    try:
        yield context.new_page()
    finally:
        context.close()


def _taken(page: Page) -> bytes:
    """The words are those of the page, whether they are in the window or not."""
    return with_words(page.screenshot(animations="disabled", caret="hide"), page.locator("body").inner_text())


def _talk(page: Page, url: str) -> None:
    """Two turns; the second finds the first in the context."""
    page.goto(url)
    expect(page.locator("#model")).to_have_value(MODEL)
    for n_asked, text in enumerate(REPLIES, 1):
        _say(page, text, n_asked)


def _say(page: Page, text: str, n_replies: int) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
    ended = page.locator(".message.assistant[data-state=done]", has_text="to first token")  # what it cost comes last
    expect(ended).to_have_count(n_replies)
    expect(page.locator("#announcer")).to_contain_text("The reply is complete")


def _another_day(page: Page, url: str) -> None:
    """Two chats of one system text, in which the date changes; the page is asked why the second was computed."""
    page.goto(url)
    expect(page.locator("#model")).to_have_value(MODEL)
    page.get_by_role("button", name="Settings").click()
    for day in DAYS:
        page.get_by_role("button", name="New chat").click()
        page.locator("[data-setting=system]").fill(AGENT.format(day=day))
        _say(page, QUESTION, 1)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Why", exact=True).click()
    expect(page.get_by_role("dialog", name="Why it was computed").locator("pre")).to_have_count(3)


def _watch(page: Page, url: str, cluster: WithCluster) -> None:
    """The cluster, a while after the page began to look."""
    page.clock.install()
    told = snapshots()
    cluster.snapshot = next(told)
    page.goto(f"{url}#cluster")
    expect(page.locator("figure.chart")).to_have_count(6)
    for cluster.snapshot in told:
        page.wait_for_timeout(_SETTLED_MS)
        with page.expect_response("**/erllama/v1/cluster"):
            page.clock.fast_forward(SNAPSHOT_S * 1000)
    expect(page.locator(".tile", has_text="Evictions")).to_contain_text("2")
