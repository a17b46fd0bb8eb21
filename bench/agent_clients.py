"""The coding agents that `agents.py` runs: how each is pointed at a server and asked one task, which
call of its own tools the model is made to write, and what of its output tells of errors.

All of them are programs of other people, taken from npm as they are. None needs more network than
the server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("@openai/codex", "opencode-ai", "@qwen-code/qwen-code", "@anthropic-ai/claude-code")
TASK = "Read the files of this folder and say in one sentence what they are for."
FILES = {
    "README.md": "# Tide tables\n\nA small program that prints when the sea is high.\n",
    "tide.py": "import sys\n\nHOURS = (0.5, 6.7, 12.9, 19.1)\n\nprint(HOURS, file=sys.stdout)\n",
    "notes.txt": "The harbour is shallow: boats leave an hour before high water.\n",
}
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent works: a home of its own, a project, and the server's root URL."""

    home: Path
    project: Path
    url: str


@dataclass(frozen=True, slots=True)
class Agent:
    """`call` is a tool's name and its arguments for a file; `command` its arguments for a task. Of the
    lines of its output `called` matches those that tell of an executed call, `failed` those of an
    error.
    """

    name: str
    call: Callable[[Path], tuple[str, dict[str, Any]]]
    command: tuple[str, ...]
    variables: Callable[[Place], Mapping[str, str]] = lambda place: {}
    files: Callable[[Place], Mapping[Path, str]] = lambda place: {}
    called: str = r'"type": ?"tool_use"'
    failed: str = r'"is_error": ?true|"type": ?"error"'
    harmless: str = r"(?!)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of an agent showed."""

    calls: int
    errors: list[str] = field(default_factory=list)


def _codex_files(place: Place) -> dict[Path, str]:
    config = (
        'model = "codex"\nmodel_provider = "erllama"\n[model_providers.erllama]\nname = "erllama"\n'
        f'base_url = "{place.url}/v1"\nwire_api = "responses"\n'
    )
    return {place.home / ".codex" / "config.toml": config}


def _opencode_files(place: Place) -> dict[Path, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "erllama",
        "options": {"baseURL": f"{place.url}/v1", "apiKey": "unused"},
        "models": {"opencode": {"name": "opencode"}},
    }
    config = {
        "autoupdate": False,
        "share": "disabled",
        "provider": {"erllama": provider},
        "model": "erllama/opencode",
        "permission": {"*": "allow"},
    }
    return {place.home / ".config" / "opencode" / "opencode.json": json.dumps(config)}


AGENTS = (
    Agent(
        "claude",
        lambda file: ("Read", {"file_path": str(file)}),
        ("claude", "-p", TASK, "--output-format", "stream-json", "--verbose", "--allowedTools", "Read"),
        variables=lambda place: {
            "ANTHROPIC_BASE_URL": place.url,
            "ANTHROPIC_AUTH_TOKEN": "unused",
            "ANTHROPIC_MODEL": "claude",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_TELEMETRY": "1",
        },
    ),
    Agent(
        "codex",
        lambda file: ("exec_command", {"cmd": f"cat {file.name}"}),
        ("codex", "exec", "--skip-git-repo-check", "--json", TASK),
        files=_codex_files,
        called=r'"item.completed".*"command_execution"',
        failed=r'"type":"(error|turn.failed)"',
        harmless=r"Model metadata for",  # it knows the models of its maker
    ),
    Agent(
        "opencode",
        lambda file: ("read", {"filePath": str(file)}),
        ("opencode", "run", TASK, "--format", "json"),
        variables=lambda place: {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        files=_opencode_files,
    ),
    Agent(
        "qwen",
        lambda file: ("read_file", {"file_path": str(file)}),
        ("qwen", "--auth-type", "openai", "-p", TASK, "-o", "stream-json"),
        variables=lambda place: {
            "OPENAI_BASE_URL": f"{place.url}/v1",
            "OPENAI_API_KEY": "unused",
            "OPENAI_MODEL": "qwen",
            "QWEN_TELEMETRY_ENABLED": "0",
        },
    ),
)


def install(folder: Path) -> None:
    """The agents into `folder`, unless they are there: 20 s and 1.1 GB."""
    if (folder / "node_modules" / ".bin" / "claude").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True)


def make_project(folder: Path) -> None:
    """A git folder with fixed content, down to the hash of its commit."""
    folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    commit(folder, "Tide tables", FILES)


def commit(folder: Path, message: str, files: Mapping[str, str]) -> None:
    """Writes `files` and commits them."""
    for name, text in files.items():
        (folder / name).write_text(text)
    signed = {"NAME": "Someone", "EMAIL": "someone@example.com", "DATE": "2026-01-02T03:04:05Z"}
    who = {f"GIT_{kind}_{part}": value for kind in ("AUTHOR", "COMMITTER") for part, value in signed.items()}
    for command in (["add", "."], ["commit", "-q", "-m", message]):
        subprocess.run(["git", *command], cwd=folder, check=True, env={**os.environ, **who})


def run(agent: Agent, place: Place, binaries: Path, log: Path) -> Outcome:
    """One task from its beginning to its end; the output goes to `log`, too."""
    for path, text in agent.files(place).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    node = str(Path(shutil.which("node") or "node").parent)
    environment = {
        "PATH": os.pathsep.join([str(binaries), node, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(place.home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        **agent.variables(place),
    }
    with log.open("w") as output:
        try:
            status = subprocess.run(
                agent.command, cwd=place.project, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=_TIMEOUT_S, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(0, [f"no end within {_TIMEOUT_S:.0f} s"])
    lines = log.read_text(errors="replace").splitlines()
    errors = list(_errors(agent, lines)) + ([f"exit status {status}"] if status else [])
    return Outcome(sum(bool(re.search(agent.called, line)) for line in lines), errors)


def _errors(agent: Agent, lines: list[str]) -> Iterator[str]:
    for line in lines:
        found = re.search(agent.failed, line)
        if found and not re.search(agent.harmless, line):
            yield line[max(0, found.start() - 100) : found.end() + 200]
