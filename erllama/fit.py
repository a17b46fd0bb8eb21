"""What of a model's context fits into the memory that there is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from erllama.config import CTX_PAD, EngineConfig, padded_context
from erllama.errors import ModelLoadError

_GIB = 1 << 30
_STEPS = 6  # tries of a length after the first guess; each halves what is left to win


class DoesNotFit(ModelLoadError):
    """The model needs more memory than it may have, however short its context is."""

    http_status = 503
    code = "model_does_not_fit"


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a loaded model takes, in bytes: its weights, the KV (or recurrent state) of its context,
    and what it computes in.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class Fitted:
    config: EngineConfig
    need: MemoryNeed


NeedOf = Callable[[EngineConfig], MemoryNeed]
"""What a model takes as it is configured. Never less for more sequences or a longer context."""


def fit(config: EngineConfig, need_of: NeedOf, room_bytes: int, *, min_ctx: int, min_parallel: int) -> Fitted:
    """The model as configured, if it fits into `room_bytes`. Else with fewer sequences, but no fewer
    than `min_parallel`; else with a shorter context of each, but not below `min_ctx`.

    `config.n_ctx` must be a number of tokens, not 0. Raises `DoesNotFit` with the numbers.
    """

    def fits(one: EngineConfig) -> Fitted | None:
        need = need_of(one)
        return Fitted(one, need) if need.total_bytes <= room_bytes else None

    fitted = fits(config)
    fewest = min(config.n_parallel, min_parallel)
    shortest = padded_context(min(config.n_ctx, min_ctx))
    n_parallel = config.n_parallel
    while fitted is None and n_parallel > fewest:
        n_parallel = max(fewest, n_parallel // 2)
        fitted = fits(replace(config, n_parallel=n_parallel))
    if fitted is not None:
        return fitted
    least = replace(config, n_parallel=fewest, n_ctx=shortest)
    fitted = fits(least)
    if fitted is None:
        raise _refusal(least, need_of(least), room_bytes)
    return _longest(config, fitted, fits)


def _longest(config: EngineConfig, fitted: Fitted, fits: Callable[[EngineConfig], Fitted | None]) -> Fitted:
    """The longest context between one that fits and the configured one, which does not."""
    low, high = fitted.config.n_ctx // CTX_PAD, padded_context(config.n_ctx) // CTX_PAD
    for _ in range(_STEPS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        longer = fits(replace(fitted.config, n_ctx=middle * CTX_PAD))
        if longer is None:
            high = middle
        else:
            low, fitted = middle, longer
    return fitted


def _refusal(config: EngineConfig, need: MemoryNeed, room_bytes: int) -> DoesNotFit:
    context = f"{config.n_parallel} x {config.n_ctx} tokens of context"
    parts = (
        f"{need.weights_bytes / _GIB:.2f} GiB for the weights, {need.kv_bytes / _GIB:.2f} GiB for {context} and "
        f"{need.compute_bytes / _GIB:.2f} GiB to compute in"
    )
    return DoesNotFit(
        f"{config.id} needs {need.total_bytes / _GIB:.2f} GiB of memory ({parts}), and there are "
        f"{room_bytes / _GIB:.2f} GiB for it",
        param="model",
    )
