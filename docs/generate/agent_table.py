"""The coding agents that `erllama launch` starts, and what it tells them."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path

from docs.generate.config_reference import cell
from erllama.agents.setup import Endpoint
from erllama.agents.table import AGENTS, Agent

AT = Endpoint(url="http://127.0.0.1:8000", model="MODEL", key="KEY", context=131_072)


def agent_table() -> str:
    """A row for each: how it is installed, and what of a context it needs."""
    rows = ["| agent | installed by | its first prompt, tokens | `n_ctx` at least |", "|---|---|---|---|"]
    for agent in AGENTS.values():
        first, least = agent.first_prompt, agent.min_context
        known = f"{first:,} | {least:,}" if first and least else "not measured | "
        rows.append(f"| `{agent.name}` | {cell(f'`{agent.install}`')} | {known} |")
    return "\n".join(rows)


def agent_setups() -> str:
    """A heading for each, with what `erllama launch` would set for a server here."""
    return "\n".join(line for agent in AGENTS.values() for line in _setup(agent))


def _setup(agent: Agent) -> Iterator[str]:
    setup = agent.setup(AT, Path("FOLDER"), ())
    yield f"### {agent.name}\n"
    about = inspect.getdoc(agent.setup)
    if about:
        yield f"{about}\n"
    for path, text in setup.files.items():
        yield f"`{path}`:\n\n```json\n{text.strip()}\n```\n"
    yield "```sh"
    yield from (f"unset {name}" for name in setup.unset)
    yield from (f"export {name}={shlex.quote(value)}" for name, value in setup.env.items())
    yield f"{shlex.join(setup.argv)}\n```\n"
