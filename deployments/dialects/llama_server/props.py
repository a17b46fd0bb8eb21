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
        "endpoint_metrics": for_admin,
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
    if info is None:
        return _lm_studio(model.id, max_context=model.prompts.n_ctx)
    return _lm_studio(
        model.id,
        arch=info.architecture,
        quantization=info.quant_type,
        max_context=model.prompts.n_ctx or info.context_size,
        is_loaded=True,
        loaded_context=info.context_size,
        generates=info.generates,
    )


def lm_studio_library_card(model: LibraryModel) -> dict[str, Any]:
    """The same for a model of the hub."""
    details, standing = model.manifest.details, model.standing
    return _lm_studio(
        model.id,
        arch=details.architecture,
        quantization=details.file_type,
        max_context=details.n_ctx_train,
        is_loaded=standing.in_memory,
        loaded_context=standing.n_ctx or None if standing.in_memory else None,
    )


def _lm_studio(
    model_id: str,
    *,
    arch: str | None = None,
    quantization: str | None = None,
    max_context: int | None,
    is_loaded: bool = False,
    loaded_context: int | None = None,
    generates: bool = True,
) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        "type": "llm" if generates else "embeddings",
        "publisher": "erllama",
        "arch": arch,
        "compatibility_type": "gguf",
        "quantization": quantization,
        "state": "loaded" if is_loaded else "not-loaded",
        "max_context_length": max_context,
        "loaded_context_length": loaded_context,
        "capabilities": ["tool_use"] if generates else [],
    }
