"""The command at the site: what somebody types, and what the command answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir
from pathlib import Path
from unittest.mock import patch

import typer
from typer.testing import CliRunner

from deployments.doctor import __main__ as doctor_command
from deployments.doctor import examine
from docs.generate.screenshots.machine import CONFIG, facts
from docs.generate.screenshots.site import MODEL, ask_on_two_days, wait_stored
from docs.generate.screenshots.speaker import REPLIES
from docs.generate.screenshots.terminal import WIDTH, svg
from erllama.cli.app import app
from erllama.cli.chat import command as chat_command
from erllama.cli.server_url import DEFAULT_URL

BENCH = ("bench", "--model", MODEL, "--prompt-tokens", "2000", "--turns", "3", "--reply-tokens", "8")


def terminal_pictures(url: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The name of each picture, and its SVG. `folder` is for files that a command reads."""
    yield "chat.svg", _picture(url, f"erllama chat {MODEL}", reader=typed)
    ask_on_two_days(url)
    wait_stored(url, 3)
    yield "ps.svg", _picture(url, "erllama ps")
    yield "cache_ls.svg", _picture(url, f"erllama cache ls --model {MODEL}")
    yield "cache_stats.svg", _picture(url, "erllama cache stats")
    yield "why.svg", _picture(url, "erllama why tuesday")
    yield "bench.svg", _picture(url, " ".join(("erllama", *BENCH)))
    yield "doctor.svg", _doctor(folder)


def typed(history: Path, words: Sequence[str]) -> Callable[[str], str]:
    """Lines of a user, shown as a terminal shows them; in place of the command's own line editor."""
    lines = iter([*REPLIES, "/bye"])

    def read(prompt: str) -> str:
        line = next(lines)
        print(prompt + line)
        return line

    return read


def _environment(url: str | None) -> dict[str, str | None]:
    """A terminal of our width with colours, whatever the one here is."""
    return {
        "COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor",
        "NO_COLOR": None, "ERLLAMA_HOST": url, "ERLLAMA_API_KEY": None,
    }  # fmt: skip


def _picture(url: str, line: str, *, reader: Callable[..., Callable[[str], str]] | None = None) -> str:
    with ExitStack() as stack:
        if reader is not None:
            stack.enter_context(patch.object(chat_command, "is_terminal", lambda: True))
            stack.enter_context(patch.object(chat_command, "terminal_reader", reader))
        done = CliRunner().invoke(app, line.split()[1:], env=_environment(url), color=True)
    if done.exit_code:
        raise RuntimeError(f"{line}: {done.output}") from done.exception
    return _shown(line, done.output.replace(url, DEFAULT_URL))


def _doctor(folder: Path) -> str:
    """The command hands over to another process, which would examine this machine: here its `main` runs, with
    the facts of another one.
    """
    config = folder / "my.yaml"
    config.write_text(CONFIG)

    def run(arguments: Sequence[str]) -> None:
        assert list(arguments) == [sys.executable, "-m", "deployments.doctor", config.name]
        raise typer.Exit(doctor_command.main([config.name]))

    with ExitStack() as stack:
        stack.enter_context(chdir(folder))
        stack.enter_context(patch.object(os, "execv", lambda path, arguments: run(arguments)))
        for name, collect in facts().items():
            stack.enter_context(patch.object(examine, name, collect))
        line = f"erllama doctor {config.name}"
        done = CliRunner().invoke(app, line.split()[1:], env=_environment(None), color=True)
    if done.exit_code not in (0, 1):
        raise RuntimeError(f"{line}: {done.output}") from done.exception
    return _shown(line, done.output)


def _shown(line: str, output: str) -> str:
    return svg(line, f"\x1b[1m$ {line}\x1b[0m\n{output}")
