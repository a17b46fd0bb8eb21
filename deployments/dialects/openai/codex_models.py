"""Models as Codex lists them: `GET /v1/models?client_version=...`. Pure.

Every field that Codex has no default for is there, or it reads none of the list. It takes a
session's instructions from here, so these are written for any model and any tool.
"""

from __future__ import annotations

from typing import Any

from deployments.http.ports import ServedModel

_INSTRUCTIONS = (
    "You are a coding agent that works in the user's repository through the tools that you are given. Read the code "
    "that matters before you change it, keep changes small and in the style of what is there, run what can show that "
    "they work, and go on until the task is done. Then tell in a few sentences what you did. Follow the AGENTS.md "
    "files of the repository. Never revert changes that you did not make."
)


def codex_model(model: ServedModel, priority: int) -> dict[str, Any]:
    """`priority` orders the list, the lowest first."""
    return {
        "slug": model.id,
        "display_name": model.id,
        "description": None,
        "supported_reasoning_levels": [],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": _INSTRUCTIONS,
        "supports_reasoning_summaries": True,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "context_window": model.prompts.n_ctx,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }
