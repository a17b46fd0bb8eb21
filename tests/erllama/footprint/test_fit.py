"""What fits is the most that fits, and never more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.config import EngineConfig
from erllama.errors import DoesNotFit
from erllama.footprint.fit import DeviceNeed, Fitted, GpuRoom, MemoryNeed, NeedOf, fit

GIB = 1 << 30
N_LAYERS = 33  # and one of them is the output


def need_of(config: EngineConfig) -> MemoryNeed:
    """A model of 33 layers, straight lines all of it."""
    n_gpu = N_LAYERS if config.n_gpu_layers == -1 else 0 if config.n_gpu_layers == "auto" else config.n_gpu_layers
    kv = config.n_ctx * config.n_parallel
    return MemoryNeed(
        (N_LAYERS - n_gpu) * 3_000_000,
        (N_LAYERS - n_gpu) * kv,
        1_000_000 + 3 * config.n_ctx,
        gpu=DeviceNeed(n_gpu * 3_000_000, n_gpu * kv, 500_000 if n_gpu else 0),
    )


def stepped(config: EngineConfig) -> MemoryNeed:
    """Grows in leaps, as what pads its buffers does."""
    return MemoryNeed(1_000_000, (config.n_ctx // 4096) ** 2 * 100_000 * (config.n_parallel // 3), 0)


CONFIGS = st.builds(
    EngineConfig,
    path=st.just("model.gguf"),
    n_ctx=st.integers(1, 40_000),
    n_parallel=st.integers(1, 32),
)
ROOMS = st.integers(0, 3 * GIB)


def kept(config: EngineConfig) -> tuple[int, int]:
    return config.n_ctx, config.n_parallel


def fitted_or_none(*args, **kwargs) -> Fitted | None:
    try:
        return fit(*args, **kwargs)
    except DoesNotFit:
        return None


@given(CONFIGS, st.sampled_from([need_of, stepped]), ROOMS, st.integers(1, 50_000), st.integers(1, 40))
def test_what_is_fitted_fits_and_shrinks_no_more_than_it_must(
    config: EngineConfig, need: NeedOf, room: int, min_ctx: int, min_parallel: int
):
    found = fitted_or_none(config, need, room, min_ctx=min_ctx, min_parallel=min_parallel)
    fewest = min(min_parallel, config.n_parallel)
    if found is None:
        shortest = -(-min(min_ctx, config.n_ctx) // 256) * 256
        assert need(replace(config, n_parallel=fewest, n_ctx=shortest)).total_bytes > room
        return
    assert found.need == need(found.config)
    assert found.need.total_bytes <= room
    assert fewest <= found.config.n_parallel <= config.n_parallel
    if kept(found.config) == kept(config):
        return
    if found.config.n_ctx == config.n_ctx:
        more = replace(found.config, n_parallel=found.config.n_parallel + 1)
    else:
        assert found.config.n_parallel == fewest
        assert found.config.n_ctx % 256 == 0
        assert found.config.n_ctx >= min(min_ctx, config.n_ctx)
        more = replace(found.config, n_ctx=found.config.n_ctx + 256)
    assert need(more).total_bytes > room


@given(CONFIGS, ROOMS, st.integers(0, GIB))
def test_more_room_never_fits_less(config: EngineConfig, room: int, more: int):
    small = fitted_or_none(config, need_of, room, min_ctx=512, min_parallel=1)
    large = fitted_or_none(config, need_of, room + more, min_ctx=512, min_parallel=1)
    if small is not None:
        assert large is not None
        assert large.config.n_parallel >= small.config.n_parallel
        assert large.config.n_ctx >= small.config.n_ctx or large.config.n_parallel > small.config.n_parallel


@given(CONFIGS, ROOMS, st.integers(0, GIB), st.sampled_from(["auto", -1, 0, 7, 33, 40]))
def test_gpus_take_as_many_layers_as_fit_there(config: EngineConfig, room: int, gpu_bytes: int, wanted):
    config = replace(config, n_gpu_layers=wanted)
    gpu_room = GpuRoom(gpu_bytes, N_LAYERS)
    found = fitted_or_none(config, need_of, room, min_ctx=512, min_parallel=1, gpu_room=gpu_room)
    if found is None:
        return
    n_gpu = found.config.n_gpu_layers
    assert isinstance(n_gpu, int)
    assert found.need.total_bytes <= room
    assert found.need.gpu.total_bytes <= gpu_bytes
    most = N_LAYERS if wanted in ("auto", -1) else min(wanted, N_LAYERS)
    assert 0 <= n_gpu <= most
    if n_gpu < most:
        assert need_of(replace(found.config, n_gpu_layers=n_gpu + 1)).gpu.total_bytes > gpu_bytes


def test_without_gpus_to_fill_the_layers_stay_as_configured():
    config = EngineConfig(path="model.gguf", n_gpu_layers=9)
    assert fit(config, need_of, 3 * GIB, min_ctx=512, min_parallel=1).config == config


def test_a_straight_line_is_found_in_few_questions():
    """llama.cpp takes half a second for an answer."""
    asked = []

    def counted(config: EngineConfig) -> MemoryNeed:
        asked.append(config)
        return need_of(config)

    config = EngineConfig(path="model.gguf", n_ctx=131_072, n_parallel=1)
    found = fit(config, counted, GIB, min_ctx=512, min_parallel=1)
    assert found.config.n_ctx > 20_000
    assert len(asked) <= 6


def test_a_refusal_has_the_numbers():
    config = EngineConfig(path="model.gguf", id="big", n_ctx=8192, n_parallel=4)

    def large(config: EngineConfig) -> MemoryNeed:
        return MemoryNeed(4 * GIB, config.n_ctx * config.n_parallel << 18, GIB // 4)

    with pytest.raises(DoesNotFit) as refused:
        fit(config, large, 3 * GIB, min_ctx=2048, min_parallel=2)
    assert refused.value.http_status == 503
    assert refused.value.code == "model_does_not_fit"
    assert refused.value.message == (
        "big needs 5.25 GiB of memory (4.00 GiB for the weights, 1.00 GiB for 2 x 2048 tokens of context and "
        "0.25 GiB to compute in), and there are 3.00 GiB for it"
    )
