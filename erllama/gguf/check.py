"""What a GGUF is, read from its header, and whether that contradicts itself or what llama.cpp
computes with.

`inspect_gguf` returns what is known about a model, or raises `ModelLoadError` with the file and the
reason. Its rules are those that hold for every architecture and that nothing else would report:
llama.cpp ignores the fault, or meets it while it computes, and then aborts the process. What it
reports or asserts when a model and its contexts are made is left to the probe
(`erllama.gguf.probe`), which every file passes before this process loads it. Weights are not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import LlamaFileType
from gguf.constants import GGUFValueType

from erllama.errors import InvalidParameter, ModelLoadError
from erllama.gguf.header import TENSOR_TYPES, GgufHeader, TensorInfo, read_header, until_nul
from erllama.gguf.rank_head import count_scores, names_rank_pooling

NO_TOKEN = 0xFFFFFFFF  # how a converter writes -1
MAX_NUMBER = 2**31 - 1  # llama.cpp keeps them as int32
_FILE_TYPES = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
_MAY_ROTATE_NOTHING = frozenset(["granitehybrid", "nemotron_h", "nemotron_h_moe", "jamba", "plamo2", "falcon-h1"])
_NOT_WEIGHTS = frozenset(["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"])
# Added, multiplied or convolved with float activations: ggml's CPU operators abort on any other
# type of the second operand.
_F32_ONLY = re.compile(
    r"(norm\.weight|norm_\d\.weight|_scale\.weight|\.bias|ssm_conv1d\.weight|shortconv\.conv\.weight|ssm_a|ssm_d|attn_sinks\.weight"
    r"|token_types\.weight|rope_freqs\.weight|rope_factors_(long|short)\.weight)$"
)
_BLOCK_SIZES = {name: block for name, block, _ in TENSOR_TYPES.values()}
_SPLIT_NAME = re.compile(r"^(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a header tells. `bits_per_weight` is measured over all tensors; `adapter_type` is None
    for a model.

    `name` is the file's own or, without one, the file name. For an adapter the counts of layers,
    widths and tokens are 0.
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
    k_head: int = 0  # elements of one K head and of one V head, as they lie in the cache; 0: there are none
    v_head: int = 0
    ranks: bool = False  # pairs of texts, and has no embeddings
    n_scores: int = 0  # that its rank head gives for a pair; 0: there is no head
    long_rope_beyond: int = 0  # a context beyond so many tokens gets other RoPE factors (longrope models); 0: none does


def split_paths(path: str | Path) -> list[Path]:
    """All files of a model: the path itself, or for `x-00001-of-0000N.gguf` every part. Does not
    look at the disk.
    """
    path = Path(path)
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if int(match["number"]) != 1:
        raise ModelLoadError(f"{path}: is part {int(match['number'])} of {count}; give the path of part 1")
    return [path.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def inspect_gguf(path: str | Path) -> GgufInfo:
    """Check a model or an adapter. Raises `ModelLoadError`, never anything else; reads the header
    only.
    """
    return inspect_headers([read_header(part) for part in split_paths(path)])


def inspect_headers(parts: list[GgufHeader]) -> GgufInfo:
    """Check a model, all its parts in order, or an adapter by headers that are read already.

    Raises `ModelLoadError`, never anything else.
    """
    _check_parts(parts)
    header, tensors = parts[0], [info for part in parts for info in part.tensors.values()]
    architecture = header.get_string("general.architecture")
    if not architecture:
        raise header.error("has no general.architecture")
    kind = header.get_string("general.type") or "model"
    if kind == "adapter":
        return _info(parts, architecture, tensors, 0, adapter_type=header.get_string("adapter.type") or "unknown")
    if kind != "model" or architecture == "clip":
        raise header.error(f"is a {kind} of architecture {architecture}, expected a model")
    n_vocab = _check_tokenizer(header)
    if not tensors:
        raise header.error("has no tensors: it is a vocabulary without a model")
    _check_numbers(header, architecture)
    _check_rotation(header, architecture)
    _check_tensors(header, architecture, tensors)
    return _info(parts, architecture, tensors, n_vocab)


def check_adapter(path: str | Path, model: GgufInfo) -> None:
    """Check that a LoRA adapter belongs to `model`. Raises `ModelLoadError` that names the tensor
    and the dimensions.
    """
    header = read_header(path)
    for key, expected in (
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.architecture", model.architecture),
    ):
        found = header.get_string(key)
        if found != expected:
            raise header.error(f"{key} is {found!r}, expected {expected!r}")
    alpha = header.metadata.get("adapter.lora.alpha")  # llama.cpp asserts its type; none switches scaling by rank off
    if alpha is not None and (alpha.type is not GGUFValueType.FLOAT32 or not math.isfinite(alpha.data)):
        raise header.error(f"adapter.lora.alpha is {alpha.data!r} of type {alpha.type.name}, expected a finite FLOAT32")
    parts = [read_header(part) for part in split_paths(model.path)]
    _check_parts(parts)
    base = {info.name: info for part in parts for info in part.tensors.values()}
    pairs = _adapter_pairs(header)
    if not pairs:
        raise header.error("has no lora_a and lora_b tensors")
    for name, (a, b) in pairs.items():
        if name not in base:
            raise header.error(f"changes tensor {name}, which {model.path} does not have")
        _check_pair(header, base[name], a, b)


def check_cache_types(info: GgufInfo, type_k: str, type_v: str) -> None:
    """Check that the heads of `info` can be kept in these types: a quantised type has blocks, and a
    head is a whole number of them. Raises `InvalidParameter`; llama.cpp makes no context then.
    """
    for name, kind, size in (("type_k", type_k, info.k_head), ("type_v", type_v, info.v_head)):
        block = _BLOCK_SIZES.get(kind.upper(), 1)
        if size % block:
            raise InvalidParameter(
                f"{name}: {kind} keeps blocks of {block} elements, the heads of {info.path.name} have {size}: "
                "choose f16, bf16 or f32",
                param=name,
            )


def _check_parts(parts: list[GgufHeader]) -> None:
    for i, part in enumerate(parts):
        for key in ("split.no", "split.count"):
            if key not in part.metadata and len(parts) > 1:
                raise part.error(f"has no {key}, but its name says that it is part {i + 1} of {len(parts)}")
        number, count = part.get_int("split.no") or 0, part.get_int("split.count") or 1
        if (number, max(count, 1)) != (i, len(parts)):
            raise part.error(
                f"says it is part {number + 1} of {count}, expected part {i + 1} of {len(parts)}: was it renamed?"
            )


def _info(
    parts: list[GgufHeader], architecture: str, tensors: list[TensorInfo], n_vocab: int, adapter_type: str | None = None
) -> GgufInfo:
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
        k_head=_head_size(header, architecture, "key_length") if n_vocab else 0,
        v_head=_head_size(header, architecture, "value_length") if n_vocab else 0,
        ranks=names_rank_pooling(header, architecture),
        n_scores=count_scores(header, architecture, {info.name: info for info in tensors}),
        long_rope_beyond=_long_rope_beyond(header, architecture, tensors),
    )


def _long_rope_beyond(header: GgufHeader, architecture: str, tensors: list[TensorInfo]) -> int:
    """The context that a longrope model was first trained with; llama.cpp chooses by the size of a
    context, not by how full it is.
    """
    if not any("rope_factors_long" in info.name for info in tensors):
        return 0
    original = header.get_int(f"{architecture}.rope.scaling.original_context_length")
    return original or header.get_int(f"{architecture}.context_length") or 0


def _file_type(header: GgufHeader, tensors: list[TensorInfo]) -> str:
    """The name that llama.cpp gives it, or the type of most weights when the file does not say or
    says an unknown number.
    """
    number = header.get_int("general.file_type")
    if number in _FILE_TYPES:
        return _FILE_TYPES[number]
    weights: Counter[str] = Counter()
    for info in tensors:
        weights[info.type] += info.n_elements
    return weights.most_common(1)[0][0] if weights else "unknown"


def _check_tokenizer(header: GgufHeader) -> int:
    """The number of tokens. Only what llama.cpp keeps to itself: it ignores what is wrong, or dies
    without a word of why.
    """
    tokens = _strings(header, "tokenizer.ggml.tokens")
    if not tokens:
        raise header.error("has no tokens (tokenizer.ggml.tokens is missing or empty)")
    _check_unique(header, tokens)
    _check_merges(header)
    _check_special_ids(header, len(tokens))
    return len(tokens)


def _strings(header: GgufHeader, key: str) -> list[bytes]:
    """An array of strings, each cut at a NUL: two tokens that differ only behind one are the same
    token to llama.cpp.
    """
    value = header.metadata.get(key)
    if value is None:
        return []
    if value.item_type is not GGUFValueType.STRING:
        kind = f"of type {value.type.name}" if value.item_type is None else f"an array of {value.item_type.name}"
        raise header.error(f"{key} is {kind}, expected an array of strings")
    return [until_nul(text) if b"\0" in text else text for text in value.data]


def _check_unique(header: GgufHeader, tokens: list[bytes]) -> None:
    """llama.cpp renames an empty token i to [EMPTY_i], then asserts that all texts differ."""
    texts = [token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
    if len(set(texts)) == len(texts):
        return
    seen: dict[bytes, int] = {}
    for i, text in enumerate(texts):
        if text in seen:
            raise header.error(f"tokens {seen[text]} and {i} have the same text {text!r}")
        seen[text] = i


def _check_merges(header: GgufHeader) -> None:
    """llama.cpp would go on without the merge."""
    for i, merge in enumerate(_strings(header, "tokenizer.ggml.merges")):
        if b" " not in merge[1:-1]:
            raise header.error(f"merge {i} is {merge!r}, expected two pieces with a space between them")


def _check_special_ids(header: GgufHeader, n_tokens: int) -> None:
    """llama.cpp would take the id that it assumes when there is none."""
    for key in header.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            token = header.get_int(key)
            if token is not None and token not in (-1, NO_TOKEN) and not 0 <= token < n_tokens:
                raise header.error(f"{key} is {token}, but the vocabulary has {n_tokens} tokens")


def _check_numbers(header: GgufHeader, architecture: str) -> None:
    """No float of the model may be infinite or NaN, and an epsilon must not be negative (ggml
    asserts it while computing).
    """
    for name in ("block_count", "embedding_length", "context_length"):
        number = header.get_int(f"{architecture}.{name}")
        if number is None or not 0 < number <= MAX_NUMBER:
            raise header.error(f"{architecture}.{name} is {number}, expected 1 to {MAX_NUMBER}")
    for key, value in header.metadata.items():
        if not key.startswith(f"{architecture}.") or value.type not in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
            continue
        if not math.isfinite(value.data):
            raise header.error(f"{key} is {value.data}")
        if value.data < 0 and key.endswith("epsilon"):
            raise header.error(f"{key} is {value.data:g}, expected at least 0")


def _check_rotation(header: GgufHeader, architecture: str) -> None:
    """Rotating nothing never ends, an odd number or more than there is ends the process.

    Both while llama.cpp computes, so that no probe sees it.
    """
    if _of_first_layer(header, f"{architecture}.attention.head_count") < 1:
        return  # llama.cpp rotates nothing then
    key_length = _head_size(header, architecture, "key_length")
    rotated = header.get_int(f"{architecture}.rope.dimension_count")
    if rotated == 0 and architecture in _MAY_ROTATE_NOTHING:
        return
    rotated = key_length if rotated is None else rotated
    if rotated % 2 or not 0 < rotated <= key_length:
        raise header.error(
            f"{architecture}.rope.dimension_count: rotates {rotated} elements of K heads of {key_length}"
        )


def _head_size(header: GgufHeader, architecture: str, name: str) -> int:
    """Elements of an attention head, by its own key or as its share of the embedding; 0 without
    heads.
    """
    n_head = _of_first_layer(header, f"{architecture}.attention.head_count")
    if n_head < 1:
        return 0
    given = header.get_int(f"{architecture}.attention.{name}")
    return (header.get_int(f"{architecture}.embedding_length") or 0) // n_head if given is None else given


def _of_first_layer(header: GgufHeader, key: str) -> int:
    """A hyperparameter that is one number or an array with one per layer; 0 without it."""
    value = header.metadata.get(key)
    if value is None or value.item_type is None:
        return header.get_int(key) or 0
    if not isinstance(value.data, np.ndarray) or value.data.dtype.kind not in "iu":
        raise header.error(f"{key} is an array of {value.item_type.name}, expected integers")
    return int(value.data[0]) if len(value.data) else 0


def _check_tensors(header: GgufHeader, architecture: str, tensors: list[TensorInfo]) -> None:
    n_embd = header.get_int(f"{architecture}.embedding_length") or 0
    n_out = header.get_int(f"{architecture}.embedding_length_out") or 0
    if n_out > n_embd and not any(
        info.shape[1:] == (n_out,) and info.name.startswith(("dense_", "cls", "output")) for info in tensors
    ):
        # read out of bounds
        raise header.error(f"{architecture}.embedding_length_out is {n_out}, but no tensor projects {n_embd} to that")
    for info in tensors:
        if info.type in _NOT_WEIGHTS and "tid2eid" not in info.name:
            raise header.error(f"tensor {info.name} is of type {info.type}, which llama.cpp does not compute with")
        if info.type != "F32" and _F32_ONLY.search(info.name):
            raise header.error(f"tensor {info.name} is of type {info.type}, llama.cpp takes only F32 there")


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
    """A projects the input to the rank, B the rank to the output; for the token embedding the roles
    are swapped (llama-adapter.cpp).
    """
    (n_in, n_out), (a_in, a_rank), (b_rank, b_out) = ((*info.shape, 1, 1)[:2] for info in (base, a, b))
    if base.name.endswith("token_embd.weight"):
        fits = (b_out, a_rank) == (n_in, n_out) and a_in == b_rank
    else:
        fits = (a_in, b_out) == (n_in, n_out) and a_rank == b_rank
    if not fits or a.shape[2:] != base.shape[2:] or b.shape[2:] != base.shape[2:]:
        raise header.error(
            f"{a.name} is {a.shape} and {b.name} is {b.shape}: they do not fit {base.name}, which is {base.shape}"
        )
