"""Dockerfiles as far as our own need them: stages of instructions, with arguments expanded. No
heredocs, no escape directive."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = frozenset(
    {
        *("ARG", "FROM", "RUN", "CMD", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR"),
        *("STOPSIGNAL", "HEALTHCHECK"),
    }
)


@dataclass(frozen=True)
class Step:
    """`text` is what stands behind the keyword, lines joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The exec form's list, else the words of a line."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()

    @property
    def flags(self) -> dict[str, str]:
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text))

    @property
    def commands(self) -> list[list[str]]:
        """Of a RUN: the words of each simple command between `&&`."""
        return [shlex.split(command) for command in self.text.split(" && ")]


@dataclass
class Stage:
    base: str
    name: str | None
    steps: list[Step] = field(default_factory=list)

    def all(self, keyword: str) -> list[Step]:
        return [step for step in self.steps if step.keyword == keyword]

    def last(self, keyword: str) -> Step:
        return self.all(keyword)[-1]

    @property
    def packages(self) -> set[str]:
        """What `apt-get install` gets."""
        installs = (command for run in self.all("RUN") for command in run.commands if "apt-get" in command)
        tails = [command[command.index("install") + 1 :] for command in installs if "install" in command]
        return {word for tail in tails for word in tail if not word.startswith("-")}


def read(path: Path) -> list[Stage]:
    """Raises `ValueError` for a line that begins with no instruction."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in _joined(path.read_text()):
        keyword, _, text = line.partition(" ")
        if keyword not in KNOWN:
            raise ValueError(f"{path.name}: {line!r} begins with no instruction")
        if keyword == "ARG" and not stages:
            arguments.update([text.split("=", 1)])
        elif keyword == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], text).partition(" AS ")
            stages.append(Stage(base, name or None))
        else:
            stages[-1].steps.append(Step(keyword, text))
    return stages


def _joined(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [re.sub(r"\s+", " ", line).strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
