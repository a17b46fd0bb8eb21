"""Bodies that are nearly right: a valid one in which something is of the wrong type, size or place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_INFINITE = "@1e999@"  # JSON that no value of Python's writes
_HUGE = 10**300


def _deep(n: int, *, objects: bool) -> Any:
    value: Any = 1
    for _ in range(n):
        value = {"a": value} if objects else [value]
    return value


JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 2**31, 2**63, 2**64, -(2**70), _HUGE, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), _INFINITE),
    *(
        "",
        " ",
        "x",
        "auto",
        "none",
        "0",
        "-1",
        "\0",
        "\ud800",
        "a\udfffb",
        "\U0001f600",
        "x" * 5000,
        "<|im_end|>",
        "{{ 1/0 }}",
    ),
    *([], {}, [None], [[]], [{}], {"": None}, {"x": 1}, ["a", 1], [1.5], "null", {"type": "text"}, {"$ref": "#"}),
    *(_deep(60, objects=False), _deep(60, objects=True), _deep(900, objects=False), _deep(900, objects=True)),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a value but itself."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from _places(inner, (*path, step))


@st.composite
def mutated(draw: Any, valid: Any) -> bytes:
    """JSON text of `valid` with one to three changes."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if places:
            _change(draw, value, draw(st.sampled_from(places)))
    text = json.dumps(value)
    return text.replace(f'"{_INFINITE}"', "1e999").encode()


def _change(draw: Any, value: Any, path: tuple[Any, ...]) -> None:
    for step in path[:-1]:
        value = value[step]
    last = path[-1]
    how = draw(st.sampled_from(("replace", "replace", "replace", "drop", "double", "name")))
    if how == "replace":
        value[last] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    elif how == "drop":
        del value[last]
    elif how == "double" and isinstance(value, list):
        value.append(copy.deepcopy(value[last]))
    elif isinstance(value, dict):
        name = draw(st.sampled_from(("", "x", "__class__", "n" * 3000, "\ud800", "type", "content", str(last))))
        value[name] = copy.deepcopy(draw(st.sampled_from(JUNK)))
