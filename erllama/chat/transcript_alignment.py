"""Texts that are rendered once as they are and once with marks in them, held against each other.
Pure.

    with marks  sys user |mark 1| user |mark 2| user ...
    literals    --------          ----          ----            the text between marks
    as it is    sys user |hello | user |call  | user ...        what stands between the literals is
                                                                what the marks stood for

An alignment that is possible in more than one way is none.
"""

from __future__ import annotations

from itertools import pairwise


def unused_word(text: str, stem: str) -> str:
    """A word that is not in `text`, of letters and digits only: templates trim, escape and quote
    other characters.
    """
    n = 0
    while f"{stem}{n}x" in text:
        n += 1
    return f"{stem}{n}x"


def split_at(text: str, marks: list[str]) -> list[str] | None:
    """The text between the marks, which must stand in it in order. One that stands there again
    spoils the match with the canonical text.
    """
    segments: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        segments.append(before)
    return [*segments, text]


def slot_texts(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """What stands between the segments in `text`. First under the assumption that every content is
    there verbatim (None: a tool call, whose text is the template's affair), then without it.
    """
    return _match(text, segments, contents) or _match(text, segments, [None] * len(contents))


def _match(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """The slots when those with a content hold exactly that; None when this is impossible or
    possible in more than one way.
    """
    literals = [segments[0]]
    for content, segment in zip(contents, segments[1:], strict=True):
        if content is None:
            literals.append(segment)
        else:
            literals[-1] += content + segment
    free = _between(text, literals)
    if free is None:
        return None
    rest = iter(free)
    return [next(rest) if content is None else content for content in contents]


def _between(text: str, literals: list[str]) -> list[str] | None:
    """What stands between literals that make up `text` with free text between them, if there is
    exactly one way to place them.
    """
    if len(literals) == 1:
        return [] if text == literals[0] else None
    if not text.startswith(literals[0]) or not text.endswith(literals[-1]):
        return None
    begin, end = len(literals[0]), len(text) - len(literals[-1])
    first = _placed(text, literals[1:-1], begin, end)
    if first is None or first != _placed_late(text, literals[1:-1], begin, end):
        return None
    cuts = [(begin, begin), *first, (end, end)]
    return [text[left:right] for (_, left), (right, _) in pairwise(cuts)]


def _placed(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    """Where each literal stands when all stand as early as possible."""
    places: list[tuple[int, int]] = []
    for literal in literals:
        start = text.find(literal, begin, end)
        if start < 0:
            return None
        begin = start + len(literal)
        places.append((start, begin))
    return places if begin <= end else None


def _placed_late(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    places: list[tuple[int, int]] = []
    for literal in reversed(literals):
        start = text.rfind(literal, begin, end)
        if start < 0:
            return None
        places.append((start, start + len(literal)))
        end = start
    return places[::-1]
