"""PNG files that carry the words they show, and what they look like from afar."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BEFORE_WORDS = b"Description" + b"\0" * 5  # neither packed, nor in a language, nor translated
_COLUMNS = 48
_DATA_URL = "data:image/png;base64,"

_GREY = """async ([source, columns]) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const rows = Math.round(columns * image.height / image.width);
    const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, columns, rows);
    const { data } = context.getImageData(0, 0, columns, rows);
    const grey = [];
    for (let at = 0; at < data.length; at += 4) grey.push((data[at] + data[at + 1] + data[at + 2]) / 3);
    return [image.width, image.height, grey];
}"""


def with_words(png: bytes, words: str) -> bytes:
    """The same picture, packed as well as it can be, with `words` as its description."""
    pixels = zlib.decompress(b"".join(body for kind, body in _chunks(png) if kind == b"IDAT"))
    kept = [chunk for chunk in _chunks(png) if chunk[0] in (b"IHDR", b"PLTE", b"tRNS")]
    text = (b"iTXt", _BEFORE_WORDS + words.encode())
    return _SIGNATURE + b"".join(map(_chunk, [*kept, text, (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]))


def _chunk(named: tuple[bytes, bytes]) -> bytes:
    kind, body = named
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def words_of(png: bytes) -> str:
    """ "" for a picture without them."""
    found = [body for kind, body in _chunks(png) if kind == b"iTXt" and body.startswith(_BEFORE_WORDS)]
    return found[0].removeprefix(_BEFORE_WORDS).decode() if found else ""


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


Grey = tuple[tuple[int, int], NDArray[np.float64]]


def greys(browser: Browser, *pngs: bytes) -> list[Grey]:
    """Of each its width and height in pixels, and the mean brightness (0 to 255) of a few thousand places."""
    with closing(browser.new_page()) as page:
        found = [page.evaluate(_GREY, [_DATA_URL + base64.b64encode(png).decode(), _COLUMNS]) for png in pngs]
    return [((width, height), np.array(grey)) for width, height, grey in found]
