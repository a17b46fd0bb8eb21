"""A wrong setting fails at construction, with the field's name and the limit."""

import re
from dataclasses import fields

import pytest

from erllama.config import KV_TYPES, EngineConfig
from erllama.errors import InvalidParameter

RANGES = [
    ("n_ctx", 0, 16_777_216),
    ("n_parallel", 1, 64),
    ("n_batch", 32, 16_384),
    ("prefill_slice", 16, 16_384),
    ("max_queue", 0, 100_000),
    ("max_threads", 0, 1024),
    ("long_prompt_tokens", 0, 16_777_216),
]
WRONG = [
    ("path", ""),
    ("path", 5),
    ("path", None),
    ("id", ""),
    ("id", "has space"),
    ("id", "-first"),
    ("id", "x" * 201),
    ("id", "ok\n"),
    ("id", 5),
    *((name, value) for name, _, _ in RANGES for value in (True, 64.0, "64", None)),
    ("n_threads", 0),
    ("n_threads", 1025),
    ("prefill_slice", "all"),
    ("max_pause_ms", -1.0),
    ("max_pause_ms", float("inf")),
    ("max_pause_ms", "auto"),
    ("idle_prefill", "yes"),
    ("speculation", "some"),
    ("n_threads", True),
    ("n_threads", 1.5),
    ("n_threads", "many"),
    ("n_gpu_layers", -2),
    ("n_gpu_layers", "all"),
    ("type_k", "f64"),
    ("type_v", None),
    ("flash_attn", "no"),
    ("use_mmap", 1),
    ("use_mlock", None),
    ("deterministic", "false"),
    ("idle_prefill", "yes"),
    ("parse_special_in_content", 1),
    ("chat_template", ""),
    ("chat_template", 5),
    ("tool_format", ""),
    ("template_clock", "minute"),
    ("spm_infill", "yes"),
    ("constrain_tool_calls", None),
    ("keep_sampled_reasoning", "yes"),
    ("fingerprint", "fast"),
    ("speculation", "sometimes"),
    ("stream_interval_ms", -1.0),
    ("stream_interval_ms", float("inf")),
    ("stream_interval_ms", "50"),
    ("decode_budget_s", -1.0),
    ("decode_budget_s", float("nan")),
    ("decode_budget_s", None),
    ("rope_freq_base", -1.0),
    ("rope_freq_base", float("nan")),
    ("rope_freq_scale", float("inf")),
    ("rope_freq_scale", "1"),
]


def config(**settings) -> EngineConfig:
    return EngineConfig(**{"path": "demo", **settings})


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: repr(v)[:20])
def test_a_wrong_setting_is_refused_with_its_name(name: str, value: object):
    with pytest.raises(InvalidParameter) as caught:
        config(**{name: value})
    assert caught.value.param == name
    assert caught.value.message.startswith(name)


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_a_number_out_of_range_is_refused_with_both_limits(name: str, low: int, high: int):
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidParameter, match=re.escape(f"{name} must be between {low} and {high}, got {value}")):
            config(**{name: value})


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_the_limits_themselves_are_legal(name: str, low: int, high: int):
    assert getattr(config(**{name: low}), name) == low
    assert getattr(config(**{"n_batch": 64, name: high}), name) == high


def test_every_setting_has_a_test():
    assert {f.name for f in fields(EngineConfig)} == {name for name, _ in WRONG}


def test_a_batch_has_room_for_a_token_of_every_sequence():
    assert config(n_batch=64, n_parallel=64).n_batch == 64
    with pytest.raises(InvalidParameter, match=r"n_batch must be at least n_parallel \(33\), got 32"):
        config(n_batch=32, n_parallel=33)


@pytest.mark.parametrize("kind", KV_TYPES)
def test_a_quantised_v_cache_needs_flash_attention(kind: str):
    assert config(type_v=kind, flash_attn=True).type_v == kind
    assert config(type_k=kind, flash_attn=False).type_k == kind
    if kind in ("f32", "f16", "bf16"):
        config(type_v=kind, flash_attn=False)
    else:
        with pytest.raises(InvalidParameter, match=f"type_v {kind} needs flash_attn"):
            config(type_v=kind, flash_attn=False)


@pytest.mark.parametrize(
    "model_id", ["demo", "qwen2.5:0.5b-instruct", "A_b-c.d:e", "x" * 200, "7b", "hf.co/owner/repo:q4"]
)
def test_ids_in_use_elsewhere_are_legal(model_id: str):
    assert config(id=model_id).id == model_id


def test_integers_are_fine_where_a_float_is_meant():
    assert config(rope_freq_base=10_000, rope_freq_scale=1).rope_freq_base == 10_000


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="n_contexts"):
        config(n_contexts=5)


@pytest.mark.parametrize(("max_queue", "most"), [(0, 4), (1, 5), (4, 7), (128, 100)])
def test_a_tenant_may_have_what_runs_and_three_quarters_of_the_queue(max_queue: int, most: int):
    assert EngineConfig(path="x", n_parallel=4, max_queue=max_queue).max_tenant == most
