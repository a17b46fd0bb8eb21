"""The agents that can be launched, by name, and what of a context each needs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from erllama.agents import clients
from erllama.agents.setup import AgentSetup, Endpoint

WORK_TOKENS = 4096
"""What must be free of a context beside an agent's first prompt: a file that it reads, and a reply."""


@dataclass(frozen=True, slots=True)
class Agent:
    """`install` is the command that installs it. `first_prompt` is the length in tokens of its first
    prompt, instructions and tools included, as measured with a vocabulary of Qwen's; None where
    nobody has measured it.
    """

    name: str
    setup: Callable[[Endpoint, Path, Sequence[str]], AgentSetup]
    install: str
    first_prompt: int | None = None

    @property
    def min_context(self) -> int | None:
        """Tokens of context below which it cannot work."""
        return None if self.first_prompt is None else self.first_prompt + WORK_TOKENS


AGENTS = {
    agent.name: agent
    for agent in (
        Agent("claude", clients.claude, "npm install -g @anthropic-ai/claude-code", 19_000),
        Agent("codex", clients.codex, "npm install -g @openai/codex", 5_000),
        Agent("opencode", clients.opencode, "npm install -g opencode-ai", 7_500),
        Agent("qwen", clients.qwen, "npm install -g @qwen-code/qwen-code", 15_000),
        Agent("gemini", clients.gemini, "npm install -g @google/gemini-cli", 9_000),
        Agent("aider", clients.aider, "python -m pip install aider-install && aider-install"),
        Agent("continue", clients.continue_cli, "npm install -g @continuedev/cli"),
        Agent(
            "goose",
            clients.goose,
            "curl -fsSL https://github.com/block/goose/releases/latest/download/goose-install.sh | sh",
        ),
    )
}


def short_of_context(agent: Agent, context: int | None) -> str | None:
    """Why a context of so many tokens does not do for `agent`; None if it does, or nobody knows."""
    if context is None or agent.min_context is None or context >= agent.min_context:
        return None
    return (
        f"{agent.name} needs a context of at least {agent.min_context} tokens (its first prompt alone has some "
        f"{agent.first_prompt}), and the model has {context}"
    )
