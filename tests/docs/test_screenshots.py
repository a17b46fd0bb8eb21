"""The committed pictures say what the page and the command say now, and staleness is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from docs.generate.screenshots.__main__ import made
from docs.generate.screenshots.compare import difference, png_lines, svg_lines
from docs.generate.screenshots.png import with_words, words_of
from docs.generate.screenshots.terminal import settled, svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMITTED = DOCS / "screenshots"
MAX_BYTES, MAX_WIDTH = 120_000, 1280

Made = tuple[dict[str, bytes], Browser]


@pytest.fixture(scope="module")
def now() -> Iterator[Made]:
    """All pictures as they would be made now."""
    with made() as found:
        yield found


def test_no_picture_is_stale(now: Made):
    found, browser = now
    assert {path.name for path in COMMITTED.iterdir()} == set(found), "`make screenshots` makes them"
    stale = {name: difference((COMMITTED / name).read_bytes(), picture, browser) for name, picture in found.items()}
    told = [f"{name}: {why}" for name, why in stale.items() if why]
    assert not told, "\n".join([*told, "`make screenshots` makes them anew"])


def test_another_word_and_another_look_are_found(now: Made):
    found, browser = now
    chat = found["page_chat.png"]
    assert "337" in difference(with_words(chat, words_of(chat).replace("337 cached", "338 cached")), chat, browser)
    dark = with_words(found["page_chat_dark.png"], words_of(chat))
    assert "looks different" in difference(dark, chat, browser)
    phone = with_words(found["page_phone.png"], words_of(chat))
    assert "pixels" in difference(phone, chat, browser)
    stats = found["cache_stats.svg"]
    assert "9001" in difference(stats.replace(b"9000", b"9001"), stats, browser)


def test_pictures_are_small_and_tell_nothing_of_who_made_them():
    told = ""
    for path in COMMITTED.iterdir():
        data = path.read_bytes()
        assert len(data) <= MAX_BYTES, path.name
        if path.suffix == ".png":
            assert int.from_bytes(data[16:20]) <= MAX_WIDTH, path.name
        told += "\n".join(png_lines(data) if path.suffix == ".png" else [*svg_lines(data), data.decode()])
    assert "system: You are the agent" in told, "it has looked at something"
    for private in (str(DOCS.parent), "/tmp/", "/home/", "/root/", "@font-face"):
        assert private not in told
    hosts = set(re.findall(r"https?://([\w.-]+)", told))
    assert hosts <= {"127.0.0.1", "www.w3.org", "www.textualize.io"}


def test_every_picture_stands_in_the_tour():
    named = re.findall(r"\(screenshots/([\w.]+)\)", (DOCS / "tour.md").read_text())
    assert sorted(named) == sorted(path.name for path in COMMITTED.iterdir())


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("one\ntwo\n", "one\ntwo"),
        ("half\r\x1b[2Kwhole\n", "whole"),
        ("a\nb\nc\r\x1b[2K\x1b[1A\x1b[2K\x1b[1A\x1b[2Kdone\n", "done"),
        ("\x1b[?25la\nb\x1b[?25h", "a\nb"),
        ("\x1b[1mbold\x1b[0m\nx", "\x1b[1mbold\x1b[0m\nx"),
    ],
)
def test_what_was_drawn_again_stands_there_once(output: str, shown: str):
    assert settled(output) == shown


def test_a_terminals_words_are_read_back_line_by_line_without_what_was_measured():
    output = "$ x\n\x1b[1m12 ms\x1b[0m, <b> & 3 tokens\n\n5.5 tok/s"
    assert svg_lines(svg("x", output).encode()) == ["$ x", "# , <b> & 3 tokens", "#"]
