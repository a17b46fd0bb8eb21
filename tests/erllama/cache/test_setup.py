"""The namespace: whatever changes KV bytes changes it, and nothing else does."""

from dataclasses import fields, replace

import pytest

from cache_store import root_key
from erllama.cache.setup import namespace, transcript_root
from erllama.config import EngineConfig
from erllama.kv.layout import KvKind, KvLayout
from erllama.stats import AdapterInfo

CONFIG = EngineConfig(path="model.gguf")
LAYOUT = KvLayout(KvKind.ATTENTION, ("k0", "v0"), (128, 128))
A, B = AdapterInfo("lora-a", "", "aa", 1.0), AdapterInfo("lora-b", "", "bb", 0.5)
WHOLE = (A, B)

CHANGED = {"type_k": "q8_0", "type_v": "q8_0", "flash_attn": False, "rope_freq_base": 1e6, "rope_freq_scale": 0.5}
SAME = {
    "parse_special_in_content": True,
    "chat_template": "{{ messages }}",
    "tool_format": "qwen",
    "constrain_tool_calls": False,
    "keep_sampled_reasoning": True,
    "spm_infill": True,
    "template_clock": "time",
    "path": "/elsewhere/model.gguf",
    "id": "other",
    "n_ctx": 8192,
    "n_parallel": 8,
    "n_batch": 1024,
    "prefill_slice": 64,
    "idle_prefill": False,
    "max_queue": 1,
    "long_prompt_tokens": 0,
    "stream_interval_ms": 0.0,
    "decode_budget_s": 0.0,
    "n_threads": 3,
    "n_gpu_layers": 7,
    "use_mmap": False,
    "use_mlock": True,
    "fingerprint": "trusted",
    "deterministic": True,
}


def made(
    fingerprint: str = "safe:1",
    config: EngineConfig = CONFIG,
    layout: KvLayout = LAYOUT,
    adapters=WHOLE,
    version: str = "v1",
) -> str:
    return namespace(fingerprint, config, layout, adapters, version)


def test_every_setting_is_known_to_change_kv_or_not_to():
    assert {f.name for f in fields(EngineConfig)} == set(CHANGED) | set(SAME)


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_that_changes_kv_changes_the_namespace(name: str):
    assert made(config=replace(CONFIG, **{name: CHANGED[name]})) != made()


@pytest.mark.parametrize("name", SAME)
def test_a_setting_that_leaves_kv_alone_leaves_the_namespace_alone(name: str):
    assert getattr(CONFIG, name) != SAME[name]
    assert made(config=replace(CONFIG, **{name: SAME[name]})) == made()


def test_another_model_is_another_namespace():
    assert made(fingerprint="safe:2") != made()


def test_another_state_format_is_another_namespace():
    assert made(version="v2") != made()


@pytest.mark.parametrize(
    "layout",
    [replace(LAYOUT, kind=KvKind.WINDOW), replace(LAYOUT, columns=("v0", "k0")), replace(LAYOUT, row_bytes=(128, 136))],
    ids=["kind", "columns", "row bytes"],
)
def test_another_layout_is_another_namespace(layout: KvLayout):
    assert made(layout=layout) != made()


@pytest.mark.parametrize(
    "adapters",
    [(), (A,), (B, A), (A, replace(B, scale=0.25)), (A, replace(B, sha256="cc"))],
    ids=["none", "one", "other order", "scale", "digest"],
)
def test_other_adapters_are_another_namespace(adapters: tuple[AdapterInfo, ...]):
    assert made(adapters=adapters) != made()


def test_what_an_adapter_is_called_here_does_not_matter():
    assert made(adapters=(replace(A, handle="other"), B)) == made()


def test_whole_numbers_are_the_same_however_they_are_written():
    assert made(config=replace(CONFIG, rope_freq_base=10000)) == made(config=replace(CONFIG, rope_freq_base=10000.0))
    assert made(adapters=(replace(A, scale=1), B)) == made()


def test_a_namespace_never_changes():
    # A change here loses the caches of every model: it must be meant.
    assert made() == "d3f8529382de617fd3afb0e500802e0cc24a8781633c124a383e674787e145ca"


def test_transcripts_hang_on_the_models_name_and_the_tenant_and_on_no_root_of_kv():
    roots = {
        transcript_root("a", ""),
        transcript_root("b", ""),
        transcript_root("a", "tenant"),
        root_key("a"),
        root_key(made()),
    }
    assert len(roots) == 5
    assert transcript_root("a", "") == transcript_root("a", "")


def test_a_namespace_is_64_hex_characters():
    assert len(made()) == 64
    int(made(), 16)


def test_a_longrope_model_beyond_its_first_context_is_another_namespace():
    assert namespace("safe:1", CONFIG, LAYOUT, WHOLE, "v1", long_rope=True) != made()
