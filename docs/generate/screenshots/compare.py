"""Whether a picture still says what a new one says: by its words, and a PNG also by how it looks from afar.

Two runs differ in what was measured: those numbers, and ids that were drawn, count as equal.
"""

from __future__ import annotations

import html
import re
from itertools import groupby

from playwright.sync_api import Browser

from docs.generate.screenshots.png import greys, words_of

_MEAN_TOLERANCE = 10.0  # of 255: browsers and fonts differ from machine to machine
_SPOT_TOLERANCE = 128.0
_SVG_TEXT = re.compile(r'<text class="[^"]*-r\d+" x="[^"]*" y="([^"]*)"[^>]*>(.*?)</text>')
_DRAWN = re.compile(r"\b(req-)?[0-9a-f]{16,64}\b|(?<=Python )[\d.]+")
_MEASURED = re.compile(r"\b\d[\d.,]*(?: ?(?:ms|s|min|h|tok/s)\b|/s\b)")  # a slower run may have another unit
_NUMBER = re.compile(r"\b\d[\d.,]*\b|(?<= )\?(?= |$)")


def difference(old: bytes, new: bytes, browser: Browser) -> str:
    """What is stale in `old`; "" for a picture that still says the same."""
    is_png = new.startswith(b"\x89PNG")
    before, now = (png_lines(one) if is_png else svg_lines(one) for one in (old, new))
    if before != now:
        gone, come = ([line for line in one if line not in other] for one, other in ((before, now), (now, before)))
        return f"it says {gone}, and now it would say {come}"
    return _look(old, new, browser) if is_png else ""


def svg_lines(svg: bytes) -> list[str]:
    """The lines of a terminal, without what was measured. Of `bench` all numbers are, and how many tokens came
    together.
    """
    cells = ((y, html.unescape(text).replace("\xa0", " ")) for y, text in _SVG_TEXT.findall(svg.decode()))
    lines = [" ".join(text for _, text in line) for _, line in groupby(cells, key=lambda cell: cell[0])]
    if lines and lines[0].startswith("$ erllama bench"):
        lines[1:] = [_NUMBER.sub("#", line) for line in lines[1:] if not line.startswith("- an event has")]
    return _masked(lines)


def png_lines(png: bytes) -> list[str]:
    return _masked(words_of(png).splitlines())


def _masked(lines: list[str]) -> list[str]:
    masked = (_MEASURED.sub("#", _DRAWN.sub("#", line)) for line in lines)
    return [" ".join(line.split()) for line in masked if line.strip()]


def _look(old: bytes, new: bytes, browser: Browser) -> str:
    (old_size, before), (new_size, now) = greys(browser, old, new)
    if old_size != new_size:
        return f"it has {old_size} pixels, and now it would have {new_size}"
    apart = abs(before - now)
    if apart.mean() > _MEAN_TOLERANCE or apart.max() > _SPOT_TOLERANCE:
        return f"it looks different: {apart.mean():.1f} of 255 on average, {apart.max():.0f} at most"
    return ""
