"""A malformed GGUF is a `ModelLoadError` with a reason, never another exception and never the end
of the process.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama.errors import InvalidParameter, ModelLoadError
from erllama.gguf.check import check_adapter, check_cache_types, inspect_gguf, split_paths
from erllama.gguf.header import GgufValue, read_header
from erllama.testing.random_gguf import write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.bounds import NO_WAIT_S
from tests.support.gguf_files import serialise, with_value


@pytest.fixture(scope="module")
def adapter(tiny):
    path = tiny.with_name("adapter.gguf")
    write_random_lora(path, tiny, rank=4)
    return path


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "mutated.gguf"


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        inspect_gguf(path)
    assert str(path) in caught.value.message
    return caught.value.message


def test_a_model_is_described(tiny):
    info = inspect_gguf(tiny)
    assert (info.architecture, info.n_layer, info.n_embd, info.n_ctx_train) == ("llama", 2, 64, 2048)
    assert info.n_vocab == len(read_header(tiny).metadata["tokenizer.ggml.tokens"].data)
    assert info.file_type == "F16"
    assert 16 < info.bits_per_weight < 16.2
    assert "<|im_start|>" in info.chat_template
    assert info.adapter_type is None
    assert info.size_bytes == tiny.stat().st_size


def test_an_adapter_is_described_and_fits_its_base(tiny, adapter):
    assert inspect_gguf(adapter).adapter_type == "lora"
    check_adapter(adapter, inspect_gguf(tiny))


def test_a_missing_file_a_directory_and_a_text_file_are_named(tmp_path):
    with pytest.raises(ModelLoadError, match="there is no such file"):
        inspect_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelLoadError, match="is a directory"):
        inspect_gguf(tmp_path)
    assert "is not a GGUF file" in refusal(tmp_path / "text.gguf", b"hello, world")
    assert "4 bytes" in refusal(tmp_path / "empty.gguf", b"")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        inspect_gguf("a\0b.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(ModelLoadError, match="permission denied"):
        inspect_gguf(path)


def test_counts_that_the_file_cannot_hold_are_refused_at_once(scratch, tiny):
    raw = tiny.read_bytes()
    for position in (8, 16):
        for count in (2**63, 2**64 - 1, 10**9):
            started = time.monotonic()
            assert "need" in refusal(scratch, raw[:position] + struct.pack("<Q", count) + raw[position + 8 :])
            assert time.monotonic() - started < NO_WAIT_S


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions_are_refused(scratch, tiny, version):
    raw = tiny.read_bytes()
    assert "version" in refusal(scratch, raw[:4] + struct.pack("<I", version) + raw[8:])


@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("general.architecture", b"", "has no general.architecture"),
        ("general.architecture", b"clip", "expected a model"),
        ("general.type", b"mmproj", "expected a model"),
        ("llama.block_count", 0, "block_count is 0"),
        ("llama.context_length", 0, "context_length is 0"),
        ("llama.attention.key_length", 8, "rotates"),
        ("llama.rope.dimension_count", 0, "rotates 0 elements"),
        ("llama.rope.dimension_count", 7, "rotates 7 elements"),
        ("llama.rope.dimension_count", 32, "rotates 32 elements of K heads of 16"),
        ("llama.embedding_length_out", 128, "no tensor projects 64"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "epsilon is nan"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "at least 0"),
        ("llama.rope.freq_base", float("inf"), "freq_base is inf"),
        ("tokenizer.ggml.eos_token_id", 100_000, "eos_token_id is 100000, but the vocabulary has"),
        ("tokenizer.ggml.tokens", [], "has no tokens"),
        ("tokenizer.ggml.tokens", [b"a", b"b", b"a"], "tokens 0 and 2 have the same text b'a'"),
        ("tokenizer.ggml.tokens", [b"a", b"b", b"a\0c"], "tokens 0 and 2 have the same text b'a'"),
        ("tokenizer.ggml.tokens", [b"[EMPTY_1]", b""], "tokens 0 and 1 have the same text"),
        ("tokenizer.ggml.merges", [b"ab"], "merge 0 is b'ab'"),
    ],
)
def test_a_bad_value_is_named_with_its_number(scratch, tiny, key, data, reason):
    assert reason in refusal(scratch, with_value(tiny, key, data))


@pytest.mark.parametrize(
    ("key", "data", "kind", "reason"),
    [
        ("general.architecture", 7, GGUFValueType.UINT32, "expected a string"),
        ("llama.block_count", b"2", GGUFValueType.STRING, "expected an integer"),
        ("tokenizer.ggml.tokens", 1, GGUFValueType.UINT8, "expected an array of strings"),
        ("split.count", 2, GGUFValueType.UINT16, "part 1 of 2, expected part 1 of 1"),
    ],
)
def test_a_value_of_another_type_is_named(scratch, tiny, key, data, kind, reason):
    assert reason in refusal(scratch, with_value(tiny, key, data, kind))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": (2**62, 2**62)}, "truncated or malformed"),
        ({"name": "x" * 64}, "has 64 bytes"),
        ({"type": "I16"}, "does not compute with"),
    ],
)
def test_a_bad_tensor_is_named(scratch, tiny, changes, reason):
    header = read_header(tiny)
    first, *others = header.tensors.values()
    assert reason in refusal(scratch, serialise(header, tensors=[replace(first, **changes), *others]))


def test_a_norm_must_be_f32(scratch, tiny):
    header = read_header(tiny)
    last = next(info for info in header.tensors.values() if info.name == "output_norm.weight")
    tensors = [replace(info, type="BF16", shape=(128,)) if info is last else info for info in header.tensors.values()]
    assert "takes only F32" in refusal(scratch, serialise(header, tensors=tensors))


def test_a_vocabulary_without_a_model_is_refused(scratch, tiny):
    assert "has no tensors" in refusal(scratch, serialise(read_header(tiny), tensors=[]))


def test_all_parts_of_a_split_model_must_be_there(tmp_path, tiny):
    header = read_header(tiny)
    tensors = list(header.tensors.values())
    second = [replace(tensors[-1], offset=0)]
    split = {"split.count": GgufValue(GGUFValueType.UINT16, None, 2)}
    one, two = split_paths(tmp_path / "m-00001-of-00002.gguf")
    one.write_bytes(
        serialise(
            header, header.metadata | split | {"split.no": GgufValue(GGUFValueType.UINT16, None, 0)}, tensors[:-1]
        )
    )
    with pytest.raises(ModelLoadError, match=r"00002-of-00002.gguf: there is no such file"):
        inspect_gguf(one)
    two.write_bytes(serialise(header, split | {"split.no": GgufValue(GGUFValueType.UINT16, None, 1)}, second))
    assert inspect_gguf(one).n_params == inspect_gguf(tiny).n_params
    with pytest.raises(ModelLoadError, match="give the path of part 1"):
        inspect_gguf(two)
    two.write_bytes(one.read_bytes())
    with pytest.raises(ModelLoadError, match="was it renamed"):
        inspect_gguf(one)


def test_a_vocabulary_of_150k_is_checked_within_a_second(tmp_path, tiny):
    header = read_header(tiny)
    tokens = [b"token%d" % i for i in range(150_000)]
    merges = [b"to ken%d" % i for i in range(150_000)]
    metadata = dict(header.metadata)
    metadata["tokenizer.ggml.tokens"] = replace(metadata["tokenizer.ggml.tokens"], data=tokens)
    metadata["tokenizer.ggml.merges"] = replace(metadata["tokenizer.ggml.merges"], data=merges)
    metadata["tokenizer.ggml.token_type"] = replace(
        metadata["tokenizer.ggml.token_type"], data=np.ones(150_000, dtype="<i4")
    )
    path = tmp_path / "large.gguf"
    path.write_bytes(serialise(header, metadata))
    started = time.process_time()
    assert inspect_gguf(path).n_vocab == 150_000
    assert time.process_time() - started < NO_WAIT_S


def test_an_adapter_for_another_model_is_refused(tmp_path, tiny, adapter, encoder):
    other = tmp_path / "other.gguf"
    write_random_model(other, replace(SHAPES["tiny-llama"], n_ff=256), file_type="F16")
    with pytest.raises(ModelLoadError, match=r"do not fit blk.0.ffn_up.weight"):
        check_adapter(adapter, inspect_gguf(other))
    with pytest.raises(ModelLoadError, match=r"general.architecture is 'llama', expected 'bert'"):
        check_adapter(adapter, inspect_gguf(encoder))
    with pytest.raises(ModelLoadError, match=r"general.type is 'model', expected 'adapter'"):
        check_adapter(tiny, inspect_gguf(tiny))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda infos: infos[:-1], "other half is missing"),
        (lambda infos: [], "has no lora_a"),
        (lambda infos: [*infos[:-1], replace(infos[-1], name="blk.9.ffn_up.weight.lora_c")], "neither"),
    ],
)
def test_an_adapter_with_odd_tensors_is_refused(scratch, tiny, adapter, change, reason):
    header = read_header(adapter)
    scratch.write_bytes(serialise(header, tensors=change(list(header.tensors.values()))))
    with pytest.raises(ModelLoadError, match=reason):
        check_adapter(scratch, inspect_gguf(tiny))


def test_an_alpha_of_another_type_is_refused(scratch, tiny, adapter):
    scratch.write_bytes(with_value(adapter, "adapter.lora.alpha", 4, GGUFValueType.UINT32))
    with pytest.raises(ModelLoadError, match=r"adapter.lora.alpha is 4 of type UINT32"):
        check_adapter(scratch, inspect_gguf(tiny))


def _inspect_or_refuse(path: Path) -> None:
    started = time.monotonic()
    with contextlib.suppress(ModelLoadError):
        inspect_gguf(path)
    assert time.monotonic() - started < NO_WAIT_S


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncation_anywhere_is_refused(scratch, tiny, data):
    raw = tiny.read_bytes()
    refusal(scratch, raw[: data.draw(st.integers(0, len(raw) - 33))])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_anywhere_in_the_header_never_raise_anything_else(scratch, tiny, data):
    raw = bytearray(tiny.read_bytes())
    end = read_header(tiny).data_offset
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        raw[position] = byte
    scratch.write_bytes(raw)
    _inspect_or_refuse(scratch)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
def test_random_bytes_behind_the_magic_never_raise_anything_else(scratch, content):
    scratch.write_bytes(b"GGUF\3\0\0\0" + content)
    _inspect_or_refuse(scratch)


@pytest.mark.parametrize(
    ("types", "field"),
    [(("f16", "f16"), None), (("bf16", "f32"), None), (("q8_0", "f16"), "type_k"), (("f16", "q5_1"), "type_v")],
)
def test_a_cache_type_whose_blocks_no_head_fills_is_refused_by_name(tiny, types, field):
    info = inspect_gguf(tiny)
    assert (info.k_head, info.v_head) == (16, 16)
    if field is None:
        check_cache_types(info, *types)
        return
    with pytest.raises(InvalidParameter, match=f"{field}: .* have 16") as caught:
        check_cache_types(info, *types)
    assert caught.value.param == field


def test_a_head_has_its_own_size_where_the_file_gives_one(tiny, scratch):
    scratch.write_bytes(with_value(tiny, "llama.attention.value_length", 64, GGUFValueType.UINT32))
    check_cache_types(inspect_gguf(scratch), "f16", "q8_0")
