"""What the keys of the configuration mean: the comments of `serve_config.yaml`, and where that says
nothing, the docstring of the class that defines the key.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass

from docs.generate.config_keys import Key

_KEY = re.compile(r"(?P<indent>\s*(?:# ?)?(?:- )?)(?P<name>[a-z_]+):(?:\s|$)(?P<rest>.*)")
_COMMENT = re.compile(r"\s*#\s?(?P<text>.*)")
_QUOTED = re.compile(r"^\s*\"[^\"]*\"")
_COMMENTS_FROM = 30  # a line of a comment alone, further right than any key, goes on with the one above
_ENTRY = re.compile(r"(?P<names>[a-z_]+(?:, [a-z_]+)*)(?:: | {2,})(?P<text>.+)")


@dataclass(frozen=True, slots=True)
class Texts:
    """`comments` by the path of a key without brackets ("models.n_ctx")."""

    comments: Mapping[str, str]

    def of(self, key: Key) -> str:
        """What a key means, as Markdown in one line; "" where nobody says it."""
        comment = self.comments.get(key.path.replace("[]", ""))
        if comment:
            return comment
        for owner in key.owner.__mro__[:-1]:
            doc = inspect.getdoc(owner) or ""
            found = docstring_entries(doc).get(key.name) or sentence_about(key.name, doc)
            if found:
                return re.sub(r"\bNone\b", "`null`", found)  # as a configuration writes it
        return ""


def read_comments(config: str) -> dict[str, str]:
    """By path below `args`. A key that is itself in a comment shows an entry of a list."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in config.splitlines():
        match = _KEY.match(line)
        column = len(match["indent"]) if match else len(line) - len(line.lstrip())
        if match is None or column > _COMMENTS_FROM:
            more = _COMMENT.fullmatch(line)
            if more and column > _COMMENTS_FROM and stack and not more["text"].startswith("- {"):  # an example
                path = ".".join(name for _, name in stack)
                found[path] = f"{found.get(path, '')} {more['text'].strip()}".strip()
            continue
        stack = [(at, name) for at, name in stack if at < column] + [(column, match["name"])]
        path = ".".join(name for _, name in stack)
        _, mark, text = _QUOTED.sub("", match["rest"]).partition("# ")
        if mark:
            found.setdefault(path, text.strip())
    prefix = "applications.args."
    return {path.removeprefix(prefix): text for path, text in found.items() if path.startswith(prefix)}


def docstring_entries(doc: str) -> dict[str, str]:
    """`name: text` and `name    text` at the beginning of a line, up to the next entry, sentence of its
    own, or empty line.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    for line in doc.splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            names = match["names"].split(", ")
            found.update(dict.fromkeys(names, match["text"].strip()))
        elif line.startswith("  ") and line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            names = []
    return found


def sentence_about(name: str, doc: str) -> str:
    """The sentences of a docstring that name a key in backquotes."""
    sentences = re.split(r"(?<=[.;]) ", " ".join(doc.split()))
    return " ".join(sentence for sentence in sentences if f"`{name}`" in sentence)
