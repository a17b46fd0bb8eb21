"""What an agent is started with: a value, and the files of it written.

Pure but for `write_files`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and one of its models, as an agent needs them. `url` is the root, without a slash at
    its end; `key` None where the server asks for none; `context` is that of one conversation in
    tokens, None where the server does not tell it.
    """

    url: str
    model: str
    key: str | None = None
    context: int | None = None
    codex_catalog: str | None = None
    """What the server lists for Codex, as JSON; None where it has no such list."""

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def token(self) -> str:
        """The key. Most agents refuse to start without one, even where the server needs none."""
        return self.key or "unused"


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """What starts an agent: variables beside those that are there, files that are written before,
    and the command. `unset` names variables that would send the agent elsewhere.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` as the agent gets it."""
        return {name: value for name, value in base.items() if name not in self.unset} | dict(self.env)


def state_dir(variables: Mapping[str, str], home: Path) -> Path:
    """Where programs of this user keep state: below XDG_STATE_HOME, or ~/.local/state."""
    return Path(variables.get("XDG_STATE_HOME") or home / ".local" / "state") / "erllama"


def write_files(files: Mapping[Path, str]) -> None:
    """Each file whole, for this user alone: some hold a key. Raises `OSError`."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        temporary.replace(path)
