"""Blocks that carry a text with something around it: documents and search results. Pure.

A file that is not text (a PDF, an image among the parts) is refused by name: leaving it out would
change what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def _document(block: Mapping[str, Any]) -> str:
    """The text of a document behind its title and context. Raises `ValueError`."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "text" and isinstance(source.get("data"), str):
        text = source["data"]
    elif isinstance(source, dict) and kind == "content":
        text = _texts(source.get("content"), "a document")
    else:
        media = source.get("media_type") if isinstance(source, dict) else None
        raise ValueError(
            f"a document must carry its text: source is of type {str(kind)[:40]!r} ({str(media)[:40]}), and this "
            "server reads types text and content"
        )
    return "\n".join([*_given(block, "title", "context"), text])


def _search_result(block: Mapping[str, Any]) -> str:
    """The texts of a result behind its title and source. Raises `ValueError`."""
    return "\n".join([*_given(block, "title", "source"), _texts(block.get("content"), "a search_result")])


def _given(block: Mapping[str, Any], *names: str) -> list[str]:
    return [value for name in names if isinstance(value := block.get(name), str) and value]


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"the content of {where} must be a string or a list of text blocks")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the content of {where} may hold text blocks alone: this server reads text only")
    return "\n".join(map(str, texts))


TEXTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"document": _document, "search_result": _search_result}
"""By the type of a block, what reads its text."""
