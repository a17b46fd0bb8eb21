"""What the parameters of a manifest mean here. They have Ollama's names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from deployments.dialects.ollama.options import Options
from erllama.errors import InvalidParameter
from erllama.request import GenerationRequest, Prompt, SamplingParams

_CONTEXT = "num_ctx"


@dataclass(frozen=True, slots=True)
class ManifestDefaults:
    """How replies are drawn and where they end, where a request says nothing, and the context in
    tokens, None for the server's. `ignored` are the names of parameters that nothing here reads, or
    whose value is impossible.
    """

    sampling: SamplingParams
    stop: tuple[str, ...]
    max_tokens: int | None
    n_ctx: int | None
    ignored: tuple[str, ...]


def defaults_of(parameters: Mapping[str, Any], sampling: SamplingParams | None = None) -> ManifestDefaults:
    """Each parameter counts for itself: one that is impossible takes no other with it. `sampling` is
    what holds where they say nothing.
    """
    good = {name: value for name, value in parameters.items() if _is_good(name, value)}
    options = Options.model_validate(good)
    return ManifestDefaults(
        options.sampling(sampling or SamplingParams()),
        options.stop,
        options.max_tokens,
        good.get(_CONTEXT),
        tuple(name for name in parameters if name not in good),
    )


def _is_good(name: str, value: Any) -> bool:
    if name == _CONTEXT:
        return type(value) is int and value > 0
    if name not in Options.model_fields:
        return False
    try:
        options = Options.model_validate({name: value})
        options.sampling(SamplingParams())
        GenerationRequest("-", Prompt.of([0]), stop=options.stop)
    except (ValidationError, InvalidParameter):
        return False
    return True
