"""Models as lists have them: OpenAI's, with what llama.cpp's server and others tell beside, and the one
that Codex reads (`GET /v1/models?client_version=...`). Pure.
"""

from __future__ import annotations

from typing import Any

from deployments.generation.running import ModelState
from deployments.http.model_library import LibraryModel, ModelPhase
from deployments.http.ports import ServedModel

_INSTRUCTIONS = (
    "You are a coding agent that works in the user's repository through the tools that you are given. Read the code "
    "that matters before you change it, keep changes small and in the style of what is there, run what can show that "
    "they work, and go on until the task is done. Then tell in a few sentences what you did. Follow the AGENTS.md "
    "files of the repository. Never revert changes that you did not make."
)
"""Codex takes a session's instructions from its list, so these are written for any model and any tool."""
_STATUS = {
    ModelPhase.WAITING: ModelPhase.LOADING,
    ModelPhase.LEAVING: ModelPhase.LOADED,
    ModelPhase.FAILED: ModelPhase.UNLOADED,
}
"""The router of llama.cpp knows fewer phases: these are told as others."""


def model_card(model: ServedModel, state: ModelState) -> dict[str, Any]:
    """The context of one sequence has the names that llama.cpp, vLLM and others give it; `status` is
    that of llama.cpp's router.
    """
    n_ctx = (state.of_library.standing.n_ctx if state.of_library else 0) or model.context or 0
    context = {"max_model_len": n_ctx, "context_length": n_ctx} if n_ctx else {}
    meta = ({"n_ctx": n_ctx} if n_ctx else {}) | (_file_facts(state.of_library) if state.of_library else {})
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "erllama",
        **({"meta": meta} if meta else {}),
        **context,
        "status": _status(state.phase),
    }


def _status(phase: ModelPhase) -> dict[str, Any]:
    failed = {"failed": True} if phase is ModelPhase.FAILED else {}
    return {"value": _STATUS.get(phase, phase), **failed}


def _file_facts(model: LibraryModel) -> dict[str, Any]:
    details = model.manifest.details
    return {"n_ctx_train": details.n_ctx_train, "n_params": details.n_params, "size": model.manifest.size}


def codex_model(model: ServedModel, priority: int) -> dict[str, Any]:
    """`priority` orders the list, the lowest first. Every field that Codex has no default for is there, or it
    reads none of the list.
    """
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
        "context_window": model.context,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }
