"""The reference of the configuration, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from docs.generate.config_keys import Key, all_keys
from docs.generate.config_texts import Texts, read_comments

CONFIG = Path(__file__).resolve().parents[2] / "serve_config.yaml"
# What people come for first; sections that this does not name follow.
_ORDER = ("", "models", "store", "policy", "http", "hub", "routing", "failover", "scheduler")
_HEADINGS = {
    "": "At the top of `args`",
    "models[]": "`models`: one entry for each model",
    "store": "`store`: where KV is kept",
    "policy": "`policy`: what is kept, and when",
    "http": "`http`: the front",
    "hub": "`hub`: models by name",
    "routing": "`routing`: which replica gets a request",
    "failover": "`failover`: when a replica is gone",
    "scheduler": "`scheduler`: memory",
}


def config_reference() -> str:
    """A heading and a table for each section."""
    texts = Texts(read_comments(CONFIG.read_text()))
    return "\n".join(line for section, keys in by_section() for line in _table(section, keys, texts))


def by_section() -> list[tuple[str, list[Key]]]:
    """All keys, in the order of the page."""
    keys = sorted(all_keys(), key=lambda key: _rank(key.section))
    return [(section, list(group)) for section, group in groupby(keys, key=lambda key: key.section)]


def _rank(section: str) -> tuple[int, str]:
    top = section.replace("[]", "").split(".")[0]
    return _ORDER.index(top) if top in _ORDER else len(_ORDER), section


def _table(section: str, keys: list[Key], texts: Texts) -> Iterator[str]:
    depth = "###" if "." in section else "##"
    yield f"{depth} {_HEADINGS.get(section, f'`{section}`')}\n"
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for key in keys:
        yield f"| `{key.name}` | {cell(key.kind)} | {_default(key)} | {cell(texts.of(key))} |"
    yield ""


def _default(key: Key) -> str:
    return "required" if key.default == "required" else f"`{key.default}`"


def cell(text: str) -> str:
    """In a table of Python-Markdown: outside of code no bar ends a cell, no bracket opens a tag, and no
    star emphasises. Code stays as it is.
    """
    parts = text.split("`")
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
