"""What a header says of memory, in the words of each family."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from erllama.errors import ModelLoadError
from erllama.footprint.copies import NONE, is_copied, row_groups
from erllama.footprint.shape import MemoryShape
from erllama.gguf.header import GgufHeader, GgufValue, TensorInfo, read_header
from erllama.testing.random_gguf import write_random_encoder, write_random_model
from erllama.testing.random_shape import SHAPES

AVX2 = row_groups("CPU : SSE3 = 1 | AVX2 = 1 | F16C = 1 | REPACK = 1 |")
NEON = row_groups("CPU : NEON = 1 | ARM_FMA = 1 | MATMUL_INT8 = 1 | DOTPROD = 1 | REPACK = 1 |")
ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
GEMMA = {"attention.head_count": 8, "attention.head_count_kv": 4, "attention.key_length": 32}


def value(data: object) -> GgufValue:
    if isinstance(data, list):
        array = np.array(data)
        return GgufValue(GGUFValueType.ARRAY, GGUFValueType.BOOL if array.dtype == bool else GGUFValueType.INT32, array)
    if isinstance(data, bool):
        return GgufValue(GGUFValueType.BOOL, None, data)
    if isinstance(data, str):
        return GgufValue(GGUFValueType.STRING, None, data.encode())
    return GgufValue(GGUFValueType.UINT32, None, data)


def tensor(name: str, *shape: int, kind: str = "F16") -> TensorInfo:
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return TensorInfo(name, shape, kind, 0, math.prod(shape), math.prod(shape) // block * n_bytes)


def header(arch: str, layers: list[tuple[str, ...]], *more: TensorInfo, **keys: object) -> GgufHeader:
    """64 wide, 100 tokens; `layers` names the tensors of each block."""
    metadata = {"general.architecture": value(arch)}
    metadata |= {f"{arch}.{name}": value(data) for name, data in keys.items()}
    metadata |= {f"{arch}.embedding_length": value(64), f"{arch}.block_count": value(len(layers))}
    tensors = [tensor("token_embd.weight", 64, 100), *more]
    tensors += [tensor(f"blk.{i}.{name}.weight", 64, 64) for i, names in enumerate(layers) for name in names]
    return GgufHeader(Path("model.gguf"), metadata, {info.name: info for info in tensors}, 0, 0)


def shape_of(arch: str, layers: list[tuple[str, ...]], *more: TensorInfo, **keys: object) -> MemoryShape:
    return MemoryShape.of([header(arch, layers, *more, **keys)])


def kv_widths(shape: MemoryShape) -> list[tuple[int, int]]:
    return [(layer.k_width, layer.v_width) for layer in shape.layers]


def states(shape: MemoryShape) -> list[int]:
    """Elements."""
    return [layer.recurrent.state_bytes // 4 if layer.recurrent else 0 for layer in shape.layers]


@pytest.mark.parametrize(
    ("arch", "layers", "keys", "expected"),
    [
        ("llama", [ATTENTION] * 2, {"attention.head_count": 4}, [(64, 64)] * 2),
        ("llama", [ATTENTION] * 2, {"attention.head_count": 4, "attention.head_count_kv": 2}, [(32, 32)] * 2),
        (
            "openelm",
            [ATTENTION] * 2,
            {"attention.head_count": [4, 8], "attention.head_count_kv": [1, 2]},
            [(16, 16), (32, 32)],
        ),
        ("phi3", [("attn_qkv",)], {"attention.head_count": 4}, [(64, 64)]),
        ("gemma2", [ATTENTION], GEMMA | {"attention.value_length": 24}, [(128, 96)]),
        (
            "deepseek2",
            [("attn_q_a", "attn_kv_a_mqa", "attn_k_b", "attn_v_b")],
            {
                "attention.head_count": 4,
                "attention.head_count_kv": 1,
                "attention.key_length": 576,
                "attention.value_length": 512,
                "attention.key_length_mla": 192,
                "attention.value_length_mla": 128,
            },
            [(576, 0)],
        ),
        (
            "gemma4",
            [ATTENTION] * 4,
            GEMMA
            | {"attention.value_length": 32, "attention.key_length_swa": 16, "attention.value_length_swa": 16}
            | {"attention.sliding_window_pattern": [True, False, True, False], "attention.shared_kv_layers": 1},
            [(64, 64), (128, 128), (64, 64), (0, 0)],
        ),
        (
            "glm4moe",
            [ATTENTION] * 3,
            {"attention.head_count": 4, "nextn_predict_layers": 1},
            [(64, 64), (64, 64), (0, 0)],
        ),
        (
            "jamba",
            [("ssm_in", "ssm_out"), ATTENTION],
            {"attention.head_count": 4, "attention.head_count_kv": [0, 2]},
            [(0, 0), (32, 32)],
        ),
        (
            "qwen3next",
            [("attn_qkv", "attn_gate", "ssm_conv1d", "ssm_out"), ATTENTION],
            {"attention.head_count": 4, "attention.head_count_kv": 2},
            [(0, 0), (32, 32)],
        ),
        ("falcon-h1", [(*ATTENTION, "ssm_in")], {"attention.head_count": 4}, [(64, 64)]),
        ("nemotron_h", [("ffn_up", "ffn_down")], {"attention.head_count": 4}, [(0, 0)]),
    ],
)
def test_what_a_layer_keeps_of_a_token(arch, layers, keys, expected):
    assert kv_widths(shape_of(arch, layers, **keys)) == expected


@pytest.mark.parametrize(
    ("arch", "layers", "keys", "expected"),
    [
        ("llama", [ATTENTION], {"attention.head_count": 4}, [0]),
        ("mamba", [("ssm_in",)], {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16}, [3 * 128 + 2048]),
        (
            "mamba2",
            [("ssm_in",)],
            {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 2},
            [3 * (128 + 64) + 2048],
        ),
        (
            "jamba",
            [("ssm_in",), ATTENTION],
            {"attention.head_count": 4, "attention.head_count_kv": [0, 2], "ssm.inner_size": 128, "ssm.state_size": 16},
            [2048, 0],
        ),
        ("rwkv6", [("time_mix_key",)], {"wkv.head_size": 16, "token_shift_count": 2}, [2 * 64 + 64 * 16]),
        (
            "lfm2",
            [("shortconv.conv",), ATTENTION],
            {"attention.head_count": 4, "attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
            [128, 0],
        ),
        (
            "kimi-linear",
            [("ssm_conv1d_q", "attn_k")],
            {"attention.head_count": 4, "attention.head_count_kv": [0], "kda.head_dim": 32, "ssm.conv_kernel": 4},
            [3 * 3 * 128 + 32 * 32 * 4],
        ),
    ],
)
def test_what_a_layer_keeps_of_a_sequence(arch, layers, keys, expected):
    assert states(shape_of(arch, layers, **keys)) == expected


def experts(n_ff: int) -> MemoryShape:
    up = tensor("blk.0.ffn_up_exps.weight", 64, n_ff, 16)
    return shape_of("qwen3moe", [ATTENTION], up, expert_used_count=4, expert_count=16)


def test_what_a_feed_forward_computes_in():
    up, gate = tensor("blk.0.ffn_up.weight", 64, 256), tensor("blk.0.ffn_gate.weight", 64, 256)
    shapes = [shape_of("llama", [ATTENTION], up, gate), shape_of("gpt2", [ATTENTION], up), experts(96), experts(24)]
    widths = [shape.layers[0].feed_forward_width for shape in shapes]
    assert widths == [3 * 256, 2 * 256, 4 * 3 * 96 + 64, 4 * 2 * 64 + 64]


@pytest.mark.parametrize(
    ("kind", "rows", "groups", "copied"),
    [
        ("Q4_0", 64, AVX2, True),
        ("Q4_0", 64, NEON, True),
        ("Q4_0", 64, NONE, False),
        ("Q4_0", 60, AVX2, False),
        ("Q4_0", 60, NEON, True),
        ("Q8_0", 64, AVX2, False),
        ("Q8_0", 64, NEON, True),
        ("Q4_K", 64, AVX2, True),
        ("Q6_K", 64, AVX2, False),
        ("Q2_K", 64, AVX2, False),
        ("Q2_K", 64, row_groups("AVX2 = 1 | AVX512 = 1 | REPACK = 1"), True),
        ("Q4_0", 64, row_groups("AVX2 = 1"), False),
        ("F16", 64, AVX2, False),
    ],
)
def test_which_weights_are_copied(kind, rows, groups, copied):
    assert is_copied(tensor("blk.0.attn_q.weight", 256, rows, kind=kind), groups) is copied
    assert not is_copied(tensor("token_embd.weight", 256, rows, kind=kind), groups)


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-gemma3", "tiny-mamba", "tiny-jamba"])
def test_no_byte_of_a_file_is_lost_or_counted_twice(tmp_path, name):
    path = tmp_path / "model.gguf"
    write_random_model(path, SHAPES[name], file_type="Q4_0")
    file = read_header(path)
    shape = MemoryShape.of([file], AVX2)
    in_layers = sum(layer.weights_bytes for layer in shape.layers)
    assert in_layers + shape.input_bytes + shape.output_bytes == sum(info.n_bytes for info in file.tensors.values())
    assert shape.n_layer == SHAPES[name].n_layer
    assert (shape.tied_bytes > 0) is SHAPES[name].tied
    copied = sum(info.n_bytes for info in file.tensors.values() if is_copied(info, AVX2))
    assert sum(layer.copied_bytes for layer in shape.layers) + shape.output_copied_bytes == copied > 0


def test_parts_of_a_split_model_count_together():
    whole = header("llama", [ATTENTION] * 2, **{"attention.head_count": 4})
    infos = list(whole.tensors.values())
    parts = [
        GgufHeader(whole.path, whole.metadata if i == 0 else {}, {info.name: info for info in infos[i::2]}, 0, 0)
        for i in range(2)
    ]
    assert MemoryShape.of(parts) == MemoryShape.of([whole])


def test_an_encoder_has_no_context_to_keep(tmp_path):
    write_random_encoder(tmp_path / "bert.gguf")
    assert not MemoryShape.of([read_header(tmp_path / "bert.gguf")]).generates


@pytest.mark.parametrize(
    ("keys", "word"),
    [({"block_count": 0}, "block_count"), ({"block_count": 10**9}, "block_count"), ({"block_count": "12"}, "STRING")],
)
def test_a_header_that_makes_no_sense_is_refused_by_name(keys, word):
    file = header("llama", [ATTENTION])
    file.metadata.update({f"llama.{name}": value(data) for name, data in keys.items()})
    with pytest.raises(ModelLoadError, match=word):
        MemoryShape.of([file])
    with pytest.raises(ModelLoadError, match="array of float64"):
        shape_of("llama", [ATTENTION], **{"attention.head_count": [1.5]})
