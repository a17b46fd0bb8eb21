"""What of a model's context fits into the memory that there is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from erllama.config import CTX_PAD, EngineConfig, padded_context
from erllama.errors import DoesNotFit

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """What a model takes in one kind of memory, in bytes: its weights, the KV (or recurrent state) of
    its context, and what it computes in.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class MemoryNeed(DeviceNeed):
    """What a loaded model takes in RAM, and beside it on GPUs."""

    gpu: DeviceNeed = DeviceNeed(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Fitted:
    config: EngineConfig
    need: MemoryNeed


NeedOf = Callable[[EngineConfig], MemoryNeed]
"""What a model takes as it is configured: asked of llama.cpp, or estimated from the header. More for more
sequences or a longer context, and with more layers on GPUs more there. (What it computes in may be a
few tokens smaller for one sequence more; then what is found fits, and one more would not.)"""


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """Memory of the GPUs that a model may have, and how many layers it could put there: its own, and
    one for the output.
    """

    n_bytes: int
    n_layers: int


def fit(
    config: EngineConfig,
    need_of: NeedOf,
    room_bytes: int,
    *,
    min_ctx: int,
    min_parallel: int,
    gpu_room: GpuRoom | None = None,
) -> Fitted:
    """The model as configured, if it fits into `room_bytes`. Else with fewer sequences, but no fewer
    than `min_parallel`; else with a shorter context of each, but not below `min_ctx`. It shrinks no
    more than it must: one sequence more, or 256 tokens, would not fit.

    With a `gpu_room` as many layers as fit are put there, no more than `config.n_gpu_layers` names; the
    others stay in `room_bytes`. Without one `n_gpu_layers` is left as it is.

    `config.n_ctx` must be a number of tokens, not 0. Raises `DoesNotFit` with the numbers.
    """

    def placed(one: EngineConfig) -> Fitted:
        return _placed(one, need_of, gpu_room)

    def with_parallel(n_parallel: int) -> Fitted:
        return placed(replace(config, n_parallel=n_parallel))

    wanted = placed(config)
    if wanted.need.total_bytes <= room_bytes:
        return wanted
    fewest = min(config.n_parallel, min_parallel)
    fewer = with_parallel(fewest) if fewest < config.n_parallel else wanted
    if fewer.need.total_bytes <= room_bytes:
        return _most(with_parallel, room_bytes, (fewest, fewer), (config.n_parallel, wanted))

    def with_blocks(blocks: int) -> Fitted:
        return placed(replace(config, n_parallel=fewest, n_ctx=blocks * CTX_PAD))

    longest = padded_context(config.n_ctx) // CTX_PAD
    shortest = padded_context(min(config.n_ctx, min_ctx)) // CTX_PAD
    least = with_blocks(shortest)
    if least.need.total_bytes > room_bytes:
        raise DoesNotFit(_refusal(least, room_bytes, gpu_room), param="model")
    return _most(with_blocks, room_bytes, (shortest, least), (longest, fewer))


def _most(at: Callable[[int], Fitted], room_bytes: int, low: tuple[int, Fitted], high: tuple[int, Fitted]) -> Fitted:
    """The most between a number that fits and one that does not.

    A need grows nearly in a straight line, and an answer of llama.cpp takes half a second: every
    second guess is where the line would meet the room, the others halve what is left.
    """
    halve = False
    while high[0] - low[0] > 1:
        guess = (low[0] + high[0]) // 2 if halve else _crossing(room_bytes, low, high)
        found = at(guess)
        if found.need.total_bytes <= room_bytes:
            low = guess, found
        else:
            high = guess, found
        halve = not halve
    return low[1]


def _crossing(room_bytes: int, low: tuple[int, Fitted], high: tuple[int, Fitted]) -> int:
    """The last number whose need, on a line between the two, is within the room; strictly between
    them.
    """
    rise = high[1].need.total_bytes - low[1].need.total_bytes
    guess = low[0] + (room_bytes - low[1].need.total_bytes) * (high[0] - low[0]) // max(1, rise)
    return min(max(guess, low[0] + 1), high[0] - 1)


def _placed(config: EngineConfig, need_of: NeedOf, gpu_room: GpuRoom | None) -> Fitted:
    """With as many layers on GPUs as fit there."""
    if gpu_room is None:
        return Fitted(config, need_of(config))
    low, high = 0, gpu_room.n_layers + 1
    if config.n_gpu_layers != "auto" and config.n_gpu_layers >= 0:
        high = min(high, config.n_gpu_layers + 1)
    best = replace(config, n_gpu_layers=0)
    need = need_of(best)
    while high - low > 1:
        middle = (low + high) // 2
        more = replace(config, n_gpu_layers=middle)
        there = need_of(more)
        if there.gpu.total_bytes <= gpu_room.n_bytes:
            low, best, need = middle, more, there
        else:
            high = middle
    return Fitted(best, need)


def _refusal(least: Fitted, room_bytes: int, gpu_room: GpuRoom | None) -> str:
    config, need = least.config, least.need
    context = f"{config.n_parallel} x {config.n_ctx} tokens of context"
    parts = (
        f"{need.weights_bytes / _GIB:.2f} GiB for the weights, {need.kv_bytes / _GIB:.2f} GiB for {context} and "
        f"{need.compute_bytes / _GIB:.2f} GiB to compute in"
    )
    beside = "" if gpu_room is None else f" beside {config.n_gpu_layers} layers on GPUs"
    return (
        f"{config.id} needs {need.total_bytes / _GIB:.2f} GiB of memory{beside} ({parts}), and there are "
        f"{room_bytes / _GIB:.2f} GiB for it"
    )
