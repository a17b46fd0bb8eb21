"""Decide from the header whether a GGUF may be given to llama.cpp, which aborts the whole process on some malformed files.

`inspect_gguf` returns what is known about a model, or raises `ModelLoadError` with the file and the reason. The rules are those that
llama.cpp asserts instead of reporting: in `gguf.cpp`, `llama-model.cpp` (hyperparameters), `llama-vocab.cpp`, and in the graphs, which
assert types and dimensions when the context is created. What llama.cpp itself reports as an error may pass here. Weights are not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import LlamaFileType
from gguf.constants import GGUFValueType

from erllama.errors import ModelLoadError
from erllama.gguf.header import GgufHeader, TensorInfo, read_header
from erllama.gguf.tokenizer import check_tokenizer

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_WIDTH = 1 << 24  # no model is near; keeps products of hyperparameters far from overflow
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLING_TYPES = range(5)  # none, mean, cls, last, rank

_ENCODER_NAMES = """
bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert t5encoder gemma-embedding llama-embed
"""
ENCODERS = frozenset(_ENCODER_NAMES.split())
RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])  # no attention heads at all
# Architectures whose graphs assert that K and V heads are equally wide, and those which also assert that a whole head is rotated.
_EQUAL_HEADS_NAMES = """
afmoe bailingmoe2 bert bitnet bloom chatglm cohere2 command-r eurobert glm4 glm4moe gpt2 gptneox granitehybrid jais jina-bert-v2
jina-bert-v3 laguna minimax-m2 modern-bert mpt nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe openelm phi2
phi3 phimoe qwen qwen35 qwen35moe qwen3next refact spark2_5 stablelm starcoder t5 t5encoder
"""
_FULL_ROTATION_NAMES = """
apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deepseek dots1 dream ernie4_5 ernie4_5-moe exaone exaone4
exaone-moe falcon granite granitemoe grok grovemoe hunyuan-dense hunyuan-moe internlm2 jais2 llada llada-moe llama llama4 maincoder mellum
mistral3 olmo olmo2 olmoe orion pangu-embedded plamo qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker
smollm3 starcoder2 talkie xverse
"""
FULL_ROTATION = frozenset(_FULL_ROTATION_NAMES.split())
EQUAL_HEADS = FULL_ROTATION.union(_EQUAL_HEADS_NAMES.split())
_FILE_TYPES = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
_MAY_SKIP_LAYERS = frozenset(["deci"])  # pruned models have layers without any tensor
_MAY_ROTATE_NOTHING = frozenset(["granitehybrid", "nemotron_h", "nemotron_h_moe", "jamba", "plamo2", "falcon-h1"])
_NOT_WEIGHTS = frozenset(["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"])
# Added, multiplied or convolved with float activations: ggml's CPU operators abort on any other type of the second operand.
_F32_ONLY = re.compile(
    r"(norm\.weight|norm_\d\.weight|_scale\.weight|\.bias|ssm_conv1d\.weight|shortconv\.conv\.weight|ssm_a|ssm_d|attn_sinks\.weight"
    r"|token_types\.weight|rope_freqs\.weight|rope_factors_(long|short)\.weight)$"
)
_LAYER = re.compile(r"^blk\.(\d+)\.")
_SPLIT_NAME = re.compile(r"^(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a header tells. `bits_per_weight` is measured over all tensors; `adapter_type` is None for a model.

    `name` is the file's own or, without one, the file name. For an adapter the counts of layers, widths and tokens are 0.
    """

    path: Path
    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_ctx_train: int
    n_vocab: int
    n_params: int
    size_bytes: int
    file_type: str
    bits_per_weight: float
    chat_template: str | None
    adapter_type: str | None = None
    long_rope_beyond: int = 0  # a context beyond so many tokens gets other RoPE factors (longrope models); 0: none does

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def is_encoder(self) -> bool:
        return self.architecture in ENCODERS


def split_paths(path: str | Path) -> list[Path]:
    """All files of a model: the path itself, or for `x-00001-of-0000N.gguf` every part. Does not look at the disk."""
    path = Path(path)
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if int(match["number"]) != 1:
        raise ModelLoadError(f"{path}: is part {int(match['number'])} of {count}; give the path of part 1")
    return [path.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def inspect_gguf(path: str | Path, *, vocab_only: bool = False) -> GgufInfo:
    """Check a model or an adapter. Raises `ModelLoadError`, never anything else; reads the header only.

    `vocab_only` also admits a file without tensors, which llama.cpp can tokenise with but not run.
    """
    parts = _read_parts(path)
    header, tensors = parts[0], [info for part in parts for info in part.tensors.values()]
    architecture = header.get_string("general.architecture")
    if not architecture:
        raise header.error("has no general.architecture")
    kind = header.get_string("general.type") or "model"
    if kind == "adapter":
        return _info(parts, architecture, tensors, 0, adapter_type=header.get_string("adapter.type") or "unknown")
    if kind != "model" or architecture == "clip":
        raise header.error(f"is a {kind} of architecture {architecture}, expected a model")
    n_vocab = check_tokenizer(header)
    if vocab_only and not tensors:
        return _info(parts, architecture, tensors, n_vocab)
    if not tensors:
        raise header.error("has no tensors: it is a vocabulary without a model")
    _check_numbers(header, architecture)
    _check_hyperparameters(header, architecture)
    _check_tensors(header, architecture, tensors, n_vocab)
    return _info(parts, architecture, tensors, n_vocab)


def check_adapter(path: str | Path, model: GgufInfo) -> None:
    """Check that a LoRA adapter belongs to `model`. Raises `ModelLoadError` that names the tensor and the dimensions."""
    header = read_header(path)
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", model.architecture)):
        found = header.get_string(key)
        if found != expected:
            raise header.error(f"{key} is {found!r}, expected {expected!r}")
    _check_adapter_values(header)
    base = {info.name: info for part in _read_parts(model.path) for info in part.tensors.values()}
    pairs = _adapter_pairs(header)
    if not pairs:
        raise header.error("has no lora_a and lora_b tensors")
    for name, (a, b) in pairs.items():
        if name not in base:
            raise header.error(f"changes tensor {name}, which {model.path} does not have")
        _check_pair(header, base[name], a, b)


def _read_parts(path: str | Path) -> list[GgufHeader]:
    parts = [read_header(part) for part in split_paths(path)]
    for i, part in enumerate(parts):
        for key in ("split.no", "split.count"):  # llama.cpp reads both as u16 and asserts the type
            value = part.metadata.get(key)
            if value is None and len(parts) > 1:
                raise part.error(f"has no {key}, but its name says that it is part {i + 1} of {len(parts)}")
            if value is not None and value.type is not GGUFValueType.UINT16:
                raise part.error(f"{key} is of type {value.type.name}, expected UINT16")
        number, count = part.get_int("split.no") or 0, part.get_int("split.count") or 1
        if (number, max(count, 1)) != (i, len(parts)):
            raise part.error(f"says it is part {number + 1} of {count}, expected part {i + 1} of {len(parts)}: was it renamed?")
    names = Counter(name for part in parts for name in part.tensors)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise parts[0].error(f"tensor {twice[0]} is in two parts")
    return parts


def _info(parts: list[GgufHeader], architecture: str, tensors: list[TensorInfo], n_vocab: int, adapter_type: str | None = None) -> GgufInfo:
    header = parts[0]
    n_params = sum(info.n_elements for info in tensors)
    return GgufInfo(
        path=header.path,
        architecture=architecture,
        name=header.get_string("general.name") or header.path.stem,
        n_layer=header.get_int(f"{architecture}.block_count") or 0,
        n_embd=header.get_int(f"{architecture}.embedding_length") or 0,
        n_ctx_train=header.get_int(f"{architecture}.context_length") or 0,
        n_vocab=n_vocab,
        n_params=n_params,
        size_bytes=sum(part.size_bytes for part in parts),
        file_type=_file_type(header, tensors),
        bits_per_weight=8 * sum(info.n_bytes for info in tensors) / n_params if n_params else 0.0,
        chat_template=header.get_string("tokenizer.chat_template"),
        adapter_type=adapter_type,
        long_rope_beyond=_long_rope_beyond(header, architecture, tensors),
    )


def _long_rope_beyond(header: GgufHeader, architecture: str, tensors: list[TensorInfo]) -> int:
    """The context that a longrope model was first trained with; llama.cpp chooses by the size of a context, not by how full it is."""
    if not any("rope_factors_long" in info.name for info in tensors):
        return 0
    original = header.get_int(f"{architecture}.rope.scaling.original_context_length")
    return original or header.get_int(f"{architecture}.context_length") or 0


def _file_type(header: GgufHeader, tensors: list[TensorInfo]) -> str:
    """The name that llama.cpp gives it, or the type of most weights when the file does not say or says an unknown number."""
    number = header.get_int("general.file_type")
    if number in _FILE_TYPES:
        return _FILE_TYPES[number]
    weights: Counter[str] = Counter()
    for info in tensors:
        weights[info.type] += info.n_elements
    return weights.most_common(1)[0][0] if weights else "unknown"


def _check_numbers(header: GgufHeader, architecture: str) -> None:
    """No float of the model may be infinite or NaN, and an epsilon must not be negative (ggml asserts it while computing)."""
    for key, value in header.metadata.items():
        if not key.startswith(f"{architecture}.") or value.type not in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
            continue
        if not math.isfinite(value.data):
            raise header.error(f"{key} is {value.data}")
        if value.data < 0 and key.endswith("epsilon"):
            raise header.error(f"{key} is {value.data:g}, expected at least 0")


def _check_hyperparameters(header: GgufHeader, architecture: str) -> None:
    def number(name: str, low: int, high: int, default: int) -> int:
        value = header.get_int(f"{architecture}.{name}")
        if value is None and default >= low:
            return default
        if value is None or not low <= value <= high:
            raise header.error(f"{architecture}.{name} is {value}, expected {low} to {high}")
        return value

    n_layer = number("block_count", 1, MAX_LAYERS, 0)
    n_embd = number("embedding_length", 1, MAX_WIDTH, 0)
    number("context_length", 1, 2**31 - 1, 0)
    number("nextn_predict_layers", 0, n_layer, 0)
    pooling = header.get_int(f"{architecture}.pooling_type")
    if pooling is not None and pooling not in POOLING_TYPES:
        raise header.error(f"{architecture}.pooling_type is {pooling}, expected 0 to {POOLING_TYPES[-1]}")
    scaling = header.get_string(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        raise header.error(f"{architecture}.rope.scaling.type is {scaling!r}, expected one of {', '.join(ROPE_SCALINGS)}")
    _check_experts(header, architecture, n_layer, number("expert_count", 0, MAX_EXPERTS, 0))
    if architecture not in RECURRENT:
        _check_heads(header, architecture, n_layer, n_embd)


def _check_experts(header: GgufHeader, architecture: str, n_layer: int, n_expert: int) -> None:
    used = max(_per_layer(header, f"{architecture}.expert_used_count", n_layer, 0))
    if not (0 < used <= n_expert if n_expert else used == 0):
        raise header.error(f"{architecture}.expert_used_count is {used} of {n_expert} experts")
    groups = header.get_int(f"{architecture}.expert_group_count") or 0
    used_groups = header.get_int(f"{architecture}.expert_group_used_count") or 0
    if groups and not 0 <= groups < n_expert:
        raise header.error(f"{architecture}.expert_group_count is {groups} for {n_expert} experts")
    if groups > 1 and (n_expert % groups or not 0 < used_groups < groups):
        raise header.error(f"{architecture} has {n_expert} experts in {groups} groups, {used_groups} of them used: that does not divide")


def _check_heads(header: GgufHeader, architecture: str, n_layer: int, n_embd: int) -> None:
    heads = _per_layer(header, f"{architecture}.attention.head_count", n_layer, 0)
    kv_heads = _per_layer(header, f"{architecture}.attention.head_count_kv", n_layer, None) or heads
    if not 0 < max(heads) <= MAX_WIDTH or min(heads) < 0:
        raise header.error(f"{architecture}.attention.head_count is {max(heads)}, expected at least 1")
    for layer, (q, kv) in enumerate(zip(heads, kv_heads, strict=True)):
        if kv < 0 or (q > 0 and kv > 0 and q % kv):
            raise header.error(f"layer {layer} has {q} attention heads and {kv} KV heads: that does not divide")
    key_length = header.get_int(f"{architecture}.attention.key_length")
    value_length = header.get_int(f"{architecture}.attention.value_length")
    if (key_length is None or value_length is None) and heads[0] and n_embd % heads[0]:
        raise header.error(f"{architecture}.embedding_length is {n_embd}, not a multiple of the {heads[0]} attention heads")
    width = n_embd // heads[0] if heads[0] else 0
    key, value = width if key_length is None else key_length, width if value_length is None else value_length
    rotated = header.get_int(f"{architecture}.rope.dimension_count")
    if rotated == 0 and architecture not in _MAY_ROTATE_NOTHING:
        raise header.error(f"{architecture}.rope.dimension_count is 0")  # llama.cpp does not come back from that
    rotated = key if rotated is None else rotated
    if not (0 <= key <= MAX_WIDTH and 0 <= value <= MAX_WIDTH and 0 <= rotated <= key) or (heads[0] and not (key and value)):
        raise header.error(f"{architecture} has K heads of {key}, V heads of {value} and rotates {rotated} of them")
    unequal = architecture in EQUAL_HEADS and key != value
    if rotated % 2 or unequal or (architecture in FULL_ROTATION and rotated != key):
        raise header.error(f"{architecture} rotates {rotated} of K heads of {key} and V heads of {value}, which llama.cpp does not compute")


def _per_layer(header: GgufHeader, key: str, n_layer: int, default: int | None) -> list[int]:
    """A hyperparameter that is one number or an array with one per layer; empty when it is missing and has no default."""
    value = header.metadata.get(key)
    if value is None:
        return [] if default is None else [default] * n_layer
    if value.item_type is None:
        return [header.get_int(key) or 0] * n_layer
    if not isinstance(value.data, np.ndarray) or value.data.dtype.kind not in "iu":
        raise header.error(f"{key} is an array of {value.item_type.name}, expected integers")
    if len(value.data) != n_layer:
        raise header.error(f"{key} has {len(value.data)} entries for {n_layer} layers")
    return [int(n) for n in value.data]


def _check_tensors(header: GgufHeader, architecture: str, tensors: list[TensorInfo], n_vocab: int) -> None:
    by_name = {info.name: info for info in tensors}
    embedding = by_name.get("token_embd.weight")
    n_embd = header.get_int(f"{architecture}.embedding_length") or 0
    if embedding is None:
        raise header.error("has no tensor token_embd.weight")
    if embedding.shape != (n_embd, n_vocab):
        raise header.error(f"token_embd.weight is {embedding.shape}, expected embedding length {n_embd} by {n_vocab} tokens")
    n_out = header.get_int(f"{architecture}.embedding_length_out") or 0
    if n_out > n_embd and not any(info.shape[1:] == (n_out,) and info.name.startswith(("dense_", "cls", "output")) for info in tensors):
        raise header.error(f"{architecture}.embedding_length_out is {n_out}, but no tensor projects {n_embd} to that")  # read out of bounds
    for info in tensors:
        if info.type in _NOT_WEIGHTS and "tid2eid" not in info.name:
            raise header.error(f"tensor {info.name} is of type {info.type}, which llama.cpp does not compute with")
        if info.type != "F32" and _F32_ONLY.search(info.name):
            raise header.error(f"tensor {info.name} is of type {info.type}, llama.cpp takes only F32 there")
    _check_layers(header, architecture, tensors)


def _check_layers(header: GgufHeader, architecture: str, tensors: Iterable[TensorInfo]) -> None:
    n_layer = header.get_int(f"{architecture}.block_count") or 0
    n_required = n_layer - (header.get_int(f"{architecture}.nextn_predict_layers") or 0)
    layers = {int(match[1]) for match in (_LAYER.match(info.name) for info in tensors) if match}
    if not layers:
        return  # t5 and its like name them otherwise
    if max(layers) >= n_layer:
        raise header.error(f"has tensors of layer {max(layers)}, but {architecture}.block_count is {n_layer}")
    missing = sorted(set(range(n_required)) - layers)
    if missing and architecture not in _MAY_SKIP_LAYERS:
        raise header.error(f"has no tensors for layer {missing[0]} of {n_layer}: it is incomplete")


def _check_adapter_values(header: GgufHeader) -> None:
    """llama.cpp asserts the type of alpha. A missing alpha means 0, which switches the rank-dependent scale off."""
    alpha = header.metadata.get("adapter.lora.alpha")
    if alpha is not None and (alpha.type is not GGUFValueType.FLOAT32 or not math.isfinite(alpha.data)):
        raise header.error(f"adapter.lora.alpha is {alpha.data!r} of type {alpha.type.name}, expected a finite FLOAT32")


def _adapter_pairs(header: GgufHeader) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    for info in header.tensors.values():
        name, _, half = info.name.rpartition(".lora_")
        if info.type in _NOT_WEIGHTS:
            raise header.error(f"tensor {info.name} is of type {info.type}, which llama.cpp does not compute with")
        if half in ("a", "b"):
            halves.setdefault(name, {})[half] = info
        elif not info.name.endswith("_norm.weight"):  # llama.cpp ignores those
            raise header.error(f"tensor {info.name} is neither .lora_a nor .lora_b")
    for name, found in halves.items():
        if len(found) != 2:
            raise header.error(f"tensor {name} has only .lora_{next(iter(found))}, the other half is missing")
    return {name: (found["a"], found["b"]) for name, found in halves.items()}


def _check_pair(header: GgufHeader, base: TensorInfo, a: TensorInfo, b: TensorInfo) -> None:
    """A projects the input to the rank, B the rank to the output; for the token embedding the roles are swapped (llama-adapter.cpp)."""
    n_in, n_out = (*base.shape, 1)[:2]
    (a_in, a_rank), (b_rank, b_out) = (*a.shape, 1)[:2], (*b.shape, 1)[:2]
    if base.name.endswith("token_embd.weight"):
        fits = (b_out, a_rank) == (n_in, n_out) and a_in == b_rank
    else:
        fits = (a_in, b_out) == (n_in, n_out) and a_rank == b_rank
    if not fits or a.shape[2:] != base.shape[2:] or b.shape[2:] != base.shape[2:]:
        raise header.error(f"{a.name} is {a.shape} and {b.name} is {b.shape}: they do not fit {base.name}, which is {base.shape}")
