"""The fenced blocks of README and docs, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|printed by): ([^\n]+) -->\n+\Z")
_INNER = re.compile(r"\$\(([^()]*)\)")
_BINARIES = (".venv/bin/", "/opt/erllama/bin/")


@dataclass(frozen=True)
class Snippet:
    """`not_run` is the reason why a block is only read, "" for one that is run; `printed_by` is the
    command whose output a block shows, or "".
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str
    printed_by: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text()
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        said = {mark[1]: mark[2]} if mark else {}
        yield Snippet(page.name, line, match[1], match[2], said.get("not run", ""), said.get("printed by", ""))


def all_snippets() -> list[Snippet]:
    return [snippet for page in PAGES for snippet in snippets(page)]


def commands(script: str) -> list[list[str]]:
    """Words of each command, what stands in `$(...)` and behind a pipe included; variables set before
    one, the folder of its binary and where its output goes are left out. ValueError for quotes that
    do not end.
    """
    inner = [words for text in _INNER.findall(script) for words in commands(text)]
    found = []
    pending = ""
    for line in _INNER.sub("INNER", script).splitlines():
        pending = f"{pending}\n{line}" if pending else line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote that the next line may end
            continue
        pending = ""
        found += [_command(part) for part in _split(words) if part]
    if pending:
        raise ValueError(f"no end of {pending!r}")
    return inner + found


def _split(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("|", "&&", ";"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _command(words: list[str]) -> list[str]:
    if ">" in words:
        words = words[: words.index(">")]
    while words and (words[0] in ("env", "INNER") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    name = words[0]
    for folder in _BINARIES:
        name = name.removeprefix(folder)
    return [name, *words[1:]]


def code_spans(page: Path) -> list[str]:
    """What stands in single backquotes, outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
