"""A longrope model (Phi-3's family) computes with other RoPE factors once its context is larger
than what it was first trained with.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf

pytestmark = pytest.mark.model

ORIGINAL_CONTEXT = 1024
PROMPT = [300 + i * 37 % 900 for i in range(700)]
POLICY = CachePolicy(min_tokens=64, cold_min_tokens=64, restore_always=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with short factors of 1 (which change nothing) and long ones of 2."""
    path = tmp_path_factory.mktemp("longrope") / "longrope.gguf"
    reader = gguf.GGUFReader(demo_model_path())
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_string("llama.rope.scaling.type", "longrope")
    writer.add_uint32("llama.rope.scaling.original_context_length", ORIGINAL_CONTEXT)
    n_rot = reader.fields["llama.embedding_length"].contents() // reader.fields["llama.attention.head_count"].contents()
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("rope_factors_long.weight", np.full(n_rot // 2, 2.0, np.float32))
    writer.add_tensor("rope_factors_short.weight", np.ones(n_rot // 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(path: Path, n_ctx: int, store: Path | None):
    tiers = None if store is None else StoreConfig(tiers=(TierConfig(str(store)),))
    with Model(
        path=str(path), n_ctx=n_ctx, n_parallel=1, n_threads=1, type_k="q8_0", type_v="q8_0", store=tiers, policy=POLICY
    ) as model:
        return model.complete(PROMPT, response_tokens=24, temperature=0, ignore_eos=True)


def test_the_header_tells_where_the_factors_change(path):
    assert inspect_gguf(path).long_rope_beyond == ORIGINAL_CONTEXT
    assert inspect_gguf(demo_model_path()).long_rope_beyond == 0


def test_kv_of_one_side_is_not_used_on_the_other(path, tmp_path):
    short = run(path, ORIGINAL_CONTEXT, tmp_path)
    alone, beside = run(path, 2048, None), run(path, 2048, tmp_path)
    assert short.tokens != alone.tokens  # else this test could not fail
    assert (beside.tokens, beside.stats.cached_tokens) == (alone.tokens, 0)
    assert run(path, 4096, tmp_path).stats.cached_tokens == len(PROMPT)  # the same side: a context may grow
