"""What the server tells of itself in the words of llama.cpp's server, vLLM and LM Studio."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deployments.dialects.llama_server.params import settings
from deployments.dialects.llama_server.wire import CompletionBody
from deployments.http.model_library import LibraryModel
from deployments.http.ports import ServedModel, VocabFacts
from erllama.stats import EngineStats, ModelInfo


def server_version() -> str:
    """That of the installed package, "unknown" for a bare source tree."""
    try:
        return version("erllama")
    except PackageNotFoundError:
        return "unknown"


def props_body(model: ServedModel, facts: VocabFacts, info: ModelInfo | None, *, for_admin: bool) -> dict[str, Any]:
    """`info` is None for a model that sleeps. `for_admin`: where the file is may be told, and
    there is `/slots`.
    """
    defaults = settings(CompletionBody.model_validate({"prompt": "x"}), model.prompts.defaults.sampling)
    n_ctx = model.prompts.n_ctx or (None if info is None else info.context_size)
    return {
        "default_generation_settings": {"params": defaults, "n_ctx": n_ctx},
        "total_slots": facts.n_parallel,
        "model_alias": model.id,
        "model_ftype": None if info is None else info.quant_type,
        "model_path": facts.path if for_admin else facts.path.replace("\\", "/").rpartition("/")[2],
        "modalities": {"vision": False, "audio": False, "video": False},
        "endpoint_slots": for_admin,
        "endpoint_props": False,
        "endpoint_metrics": False,
        "chat_template": facts.chat_template,
        "bos_token": facts.bos_text,
        "eos_token": facts.eos_text,
        "build_info": f"erllama-{server_version()}",
        "is_sleeping": info is None,
    }


def slots_body(stats: Sequence[EngineStats], n_ctx: int | None) -> list[dict[str, Any]]:
    """A slot per sequence of each replica. How many compute is known, not which: the first ones are
    told to.
    """
    busy = [number < one.n_running for one in stats for number in range(one.n_parallel)]
    return [
        {"id": number, "n_ctx": n_ctx, "speculative": False, "is_processing": processing}
        for number, processing in enumerate(busy)
    ]


def load_body(stats: Sequence[EngineStats]) -> dict[str, int]:
    """vLLM's: requests that run or wait."""
    return {"server_load": sum(one.n_running + one.n_queued for one in stats)}


def lm_studio_card(model: ServedModel, info: ModelInfo | None) -> dict[str, Any]:
    """An entry of LM Studio's `/api/v0/models`."""
    n_ctx = model.prompts.n_ctx or (None if info is None else info.context_size)
    embeds_alone = info is not None and not info.generates
    return {
        "id": model.id,
        "object": "model",
        "type": "embeddings" if embeds_alone else "llm",
        "publisher": "erllama",
        "arch": None if info is None else info.architecture,
        "compatibility_type": "gguf",
        "quantization": None if info is None else info.quant_type,
        "state": "not-loaded" if info is None else "loaded",
        "max_context_length": n_ctx,
        "loaded_context_length": None if info is None else info.context_size,
        "capabilities": [] if embeds_alone else ["tool_use"],
    }


def lm_studio_library_card(model: LibraryModel) -> dict[str, Any]:
    """The same for a model of the hub."""
    details, standing = model.manifest.details, model.standing
    return {
        "id": model.id,
        "object": "model",
        "type": "llm",
        "publisher": "erllama",
        "arch": details.architecture,
        "compatibility_type": "gguf",
        "quantization": details.file_type,
        "state": "loaded" if standing.in_memory else "not-loaded",
        "max_context_length": details.n_ctx_train,
        "loaded_context_length": standing.n_ctx or None if standing.in_memory else None,
        "capabilities": ["tool_use"],
    }
