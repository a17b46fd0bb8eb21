"""The coding agents that `erllama launch` starts."""

from __future__ import annotations

from docs.generate.config_reference import cell
from erllama.agents.table import AGENTS


def agent_table() -> str:
    """A row for each: how it is installed, and what of a context it needs."""
    rows = ["| agent | installed by | its first prompt, tokens | `n_ctx` at least |", "|---|---|---|---|"]
    for agent in AGENTS.values():
        first, least = agent.first_prompt, agent.min_context
        known = f"{first:,} | {least:,}" if first and least else "not measured | "
        rows.append(f"| `{agent.name}` | `{cell(agent.install)}` | {known} |")
    return "\n".join(rows)
