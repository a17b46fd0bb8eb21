"""`options` of a request: what a reply is sampled with, and everything about the machine, which is
this server's own affair.

Ollama passes over options that it does not know. What it reads and cannot be done here is in
`NEUTRAL`: it passes with the value that switches it off. Loading options (`num_ctx`, `num_gpu`,
`num_thread`, `num_batch`, `use_mmap`, ...) pass with any value: a model is loaded as the server's
configuration says, and a prompt that does not fit into its context is refused whatever `num_ctx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deployments.http.body import TopK, Whole
from erllama.errors import InvalidParameter
from erllama.request import SamplingParams

NEUTRAL: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,), "dry_multiplier": (0,), "xtc_probability": (0,)}
)

NO_LIMIT = 2**31 - 1
"""Tokens of a reply, which no context has."""


def _stop(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(text for text in value if text)
    raise ValueError("must be a list of strings")


def _seed(value: Any) -> Any:
    return None if value == -1 and not isinstance(value, bool) else value


class Options(BaseModel):
    """What is left out keeps this server's default, the model's or llama.cpp's. Ranges are checked by
    `SamplingParams`.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    num_predict: Annotated[Whole, Field(le=NO_LIMIT)] | None = None
    temperature: float | None = None
    top_k: TopK | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Annotated[Whole | None, BeforeValidator(_seed)] = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop)] = ()

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, value: Any) -> Any:
        if value is None:
            return {}
        for name, off in NEUTRAL.items() if isinstance(value, dict) else ():
            given = value.get(name)
            if given is not None and (isinstance(given, bool) or given not in off):
                raise ValueError(f"{name} is not supported by this server; leave it out or send {off[0]}")
        return value

    @property
    def max_tokens(self) -> int | None:
        """None leaves it to the model. A reply that runs to the end of the context, which Ollama writes as
        -1, -2 or 0, has more than any context.
        """
        return NO_LIMIT if self.num_predict is not None and self.num_predict <= 0 else self.num_predict

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` stand for what the options do not say. Raises `InvalidParameter` with Ollama's names."""
        given = self.model_dump(exclude={"num_predict", "stop", "repeat_penalty"}, exclude_none=True)
        if self.repeat_penalty is not None:
            given["repetition_penalty"] = self.repeat_penalty
        try:
            return replace(defaults, **given)
        except InvalidParameter as error:
            ours = error.param or ""
            name = "options." + ("repeat_penalty" if ours == "repetition_penalty" else ours)
            raise InvalidParameter(error.message.replace(ours, name, 1), param=name) from None
