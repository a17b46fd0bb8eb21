"""Lines that the user types: with editing, history and completion on a terminal, plainly elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

FENCE = '"""'


def messages(ask: Callable[[str], str]) -> Iterator[str]:
    """What the user says, up to the end of the input: each line, or all lines between two fences.
    `ask` shows a prompt, returns a line and raises `EOFError` at the end; Ctrl-C, `KeyboardInterrupt`,
    throws the message away.
    """
    while True:
        try:
            text = _message(ask)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.strip():
            yield text


def _message(ask: Callable[[str], str]) -> str:
    line = ask(">>> ")
    begin = line.lstrip()
    if not begin.startswith(FENCE):
        return line
    lines = [begin.removeprefix(FENCE)]
    while FENCE not in lines[-1]:
        lines.append(ask("... "))
    lines[-1] = lines[-1].partition(FENCE)[0]
    return "\n".join(lines).strip("\n")


def line_reader(stream: TextIO) -> Callable[[str], str]:
    """From a pipe or a file: no prompt is shown."""

    def ask(_: str) -> str:
        line = stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return ask


def terminal_reader(history: Path, words: Sequence[str]) -> Callable[[str], str]:
    """On a terminal. `history` is a file that keeps what was typed; `words` are completed at the
    beginning of a line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), completer=WordCompleter(list(words), sentence=True)
    )
    return session.prompt


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
