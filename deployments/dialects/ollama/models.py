"""Models as Ollama's API shows them: their names, what they are, and what they can do.

A name without a tag means the tag `latest`. What a replica tells of its model stands in the cards
of models that run; asking one that sleeps would wake it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deployments.dialects.ollama.reply import rfc3339
from deployments.http.model_library import LibraryModel
from deployments.http.ports import PromptPort, ServedModel
from deployments.http.registry import TenantModels
from erllama.errors import ErllamaError, ModelNotFound
from erllama.hub.manifest import Manifest
from erllama.stats import ModelInfo

_TAG = ":latest"
_NOT_INFO = ("general.name", "tokenizer.chat_template")
_NEVER = "2300-01-01T00:00:00Z"  # models stay as long as the server's configuration keeps them
_SIZES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def find_model(models: TenantModels, name: str | None, *, fetch: bool = True) -> ServedModel:
    """The model that a request means. Raises `ModelNotFound` in Ollama's words, `InvalidParameter`
    without a name where there are several. `fetch`: see `TenantModels.resolve`.
    """
    try:
        return models.resolve(_known_name(models, name or ""), fetch=fetch)
    except ModelNotFound:
        raise _not_found(models, name or "") from None


def named_model(models: TenantModels, name: str) -> ServedModel:
    """The model that has this name: see `TenantModels.named`. Raises as `find_model`."""
    try:
        return models.named(_known_name(models, name))
    except ModelNotFound:
        raise _not_found(models, name) from None


def _known_name(models: TenantModels, asked: str) -> str:
    """The name as configured models have it, with its tag or without."""
    known = {given for model in models for given in (model.id, *model.aliases)}
    if asked not in known and asked.endswith(_TAG):
        return asked.removesuffix(_TAG)
    return asked + _TAG if asked not in known and f"{asked}{_TAG}" in known else asked


def _not_found(models: TenantModels, name: str) -> ModelNotFound:
    near = ", ".join(models.near(name)) if name else ""
    hint = f"; did you mean {near}?" if near else ""
    return ModelNotFound(f"model '{name[:200]}' not found{hint}", param="model")


def shown_name(model: ServedModel) -> str:
    """The name with its tag; a path of a registry (`hf.co/...`) may have colons of its own."""
    return _tagged(model.id)


def _tagged(model_id: str) -> str:
    return model_id if ":" in model_id.rpartition("/")[2] else model_id + _TAG


def _details(told: ModelInfo | Manifest | None) -> dict[str, Any]:
    """By what a replica tells, or a manifest; empty without either."""
    match told:
        case ModelInfo():
            return _details_of(told.architecture, human_number(told.n_params), told.quant_type)
        case Manifest(details=details):
            return _details_of(details.architecture, human_number(details.n_params), details.file_type)
        case None:
            return _details_of("", "", "")


def _details_of(family: str, parameter_size: str, quantization: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": parameter_size,
        "quantization_level": quantization,
    }


def human_number(number: int) -> str:
    """`7.6B`, `494.03M`: billions with one digit, millions with two, as Ollama writes them."""
    for size, letter in _SIZES:
        if number >= size:
            return f"{number / size:.{2 if letter == 'M' else 1}f}{letter}"
    return str(number)


def _card(model: ServedModel, info: ModelInfo | None) -> dict[str, Any]:
    return {
        "name": shown_name(model),
        "model": shown_name(model),
        "size": 0 if info is None else info.size_bytes,
        "digest": "" if info is None else info.fingerprint.rpartition(":")[2],
        "details": _details(info),
    }


def tag_card(model: ServedModel, info: ModelInfo | None) -> dict[str, Any]:
    """An entry of `/api/tags`."""
    return _card(model, info) | {"modified_at": _created(model)}


def running_card(model: ServedModel, info: ModelInfo) -> dict[str, Any]:
    """An entry of `/api/ps`."""
    return _card(model, info) | {
        "expires_at": _NEVER,
        "size_vram": info.size_bytes if info.n_gpu_layers else 0,
        "context_length": info.context_size,
    }


def show_body(model: ServedModel, info: ModelInfo | None, capabilities: list[str]) -> dict[str, Any]:
    """The answer of `/api/show`. The context is that of one sequence here, whatever the file says."""
    n_ctx = info.context_size if info is not None else model.prompts.n_ctx
    facts: dict[str, Any] = {}
    if info is not None:
        facts = {"general.architecture": info.architecture, "general.parameter_count": info.n_params}
        facts[f"{info.architecture}.context_length"] = info.context_size
    return {
        "modelfile": f"# {model.id} is configured at the server\n",
        "parameters": "" if n_ctx is None else f"{'num_ctx':<30} {n_ctx}",
        "template": "",
        "details": _details(info),
        "model_info": facts,
        "capabilities": capabilities,
        "modified_at": _created(model),
    }


def library_card(model: LibraryModel) -> dict[str, Any]:
    """An entry of `/api/tags` for a model of the hub."""
    manifest = model.manifest
    return {
        "name": _tagged(model.id),
        "model": _tagged(model.id),
        "size": manifest.size,
        "digest": manifest.digest.removeprefix("sha256:"),
        "details": _details(manifest),
        "modified_at": rfc3339(manifest.created),
    }


def loaded_card(model: LibraryModel) -> dict[str, Any]:
    """An entry of `/api/ps` for a model of the hub, and the node that it is on."""
    standing, card = model.standing, library_card(model)
    del card["modified_at"]
    ends = None if standing.expires_at is None else datetime.fromtimestamp(standing.expires_at, UTC)
    return card | {
        "size": standing.memory_bytes,
        "size_vram": standing.gpu_bytes,
        "expires_at": _NEVER if ends is None else rfc3339(ends),
        "context_length": standing.n_ctx,
        "node": standing.node,
    }


def show_library_body(
    model: LibraryModel, capabilities: list[str], template: str, metadata: Mapping[str, Any], *, verbose: bool
) -> dict[str, Any]:
    """The answer of `/api/show` for a model of the hub: what its manifest and the header of its file
    say. `template` is the one that holds.
    """
    manifest = model.manifest
    parameters = [(name, value) for name, given in manifest.parameters.items() for value in _each(given)]
    return {
        "modelfile": _modelfile(model, parameters),
        "parameters": "\n".join(f"{name:<30} {_quoted(value)}" for name, value in parameters),
        "template": template,
        **({"system": manifest.system} if manifest.system else {}),
        "details": _details(manifest),
        "model_info": _model_info(manifest, metadata, verbose=verbose),
        "capabilities": capabilities,
        "modified_at": rfc3339(manifest.created),
    }


def _modelfile(model: LibraryModel, parameters: list[tuple[str, Any]]) -> str:
    """What `create` would make the model from."""
    manifest = model.manifest
    remote = "://" in manifest.source and not manifest.source.startswith("file:")
    lines = [f"FROM {manifest.source if remote else model.id}"]  # where files lie here is nobody's business
    lines += [f'SYSTEM """{manifest.system}"""'] if manifest.system else []
    lines += [f'TEMPLATE """{manifest.template}"""'] if manifest.template else []
    lines += [f"PARAMETER {name} {_quoted(value)}" for name, value in parameters]
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _model_info(manifest: Manifest, metadata: Mapping[str, Any], *, verbose: bool) -> dict[str, Any]:
    """The header's keys as Ollama shows them: lists only with `verbose`, and no template."""
    told = {
        key: value if verbose or not isinstance(value, list) else []
        for key, value in metadata.items()
        if key not in _NOT_INFO and not key.startswith("split.")
    }
    details = manifest.details
    return {
        **told,
        "general.architecture": details.architecture,
        "general.parameter_count": details.n_params,
        f"{details.architecture}.context_length": details.n_ctx_train,
    }


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def can_think(prompts: PromptPort) -> bool:
    """Whether the model reasons: its template opens the reasoning, or heeds one of the switches. May
    take long.
    """
    if prompts.tool_format.reasoning is None:
        return False
    hello = [{"role": "user", "content": "Hello"}]
    settings = (
        {"enable_thinking": True, "thinking": True},
        {"enable_thinking": False, "thinking": False},
        {"reasoning_effort": "low"},
        {"reasoning_effort": "high"},
    )
    try:
        on, off, low, high = (prompts.render_chat(hello, None, setting) for setting in settings)
    except ErllamaError:
        return False
    return on.in_reasoning or on.prompt != off.prompt or low.prompt != high.prompt


def can_insert(prompts: PromptPort) -> bool:
    """Whether the model fills in the middle. May take long."""
    return prompts.fills_gaps


def capabilities(info: ModelInfo | None, *, thinks: bool, inserts: bool) -> list[str]:
    """Ollama's words for what a model does. Tools work with any chat template here."""
    if info is not None and not info.generates:
        return ["embedding"] if info.embeds else []
    return ["completion", "tools", *(["insert"] if inserts else []), *(["thinking"] if thinks else [])]


def _created(model: ServedModel) -> str:
    return rfc3339(datetime.fromtimestamp(model.created, UTC))
