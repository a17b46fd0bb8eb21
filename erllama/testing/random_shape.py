"""Shapes of random-weight models: the hyperparameters and, derived from them, the tensors that
llama.cpp expects.

Names and dimensions follow llama.cpp's `src/models/<arch>.cpp`. Weights are Gaussian, scaled so
that activations stay of order one through any depth: 1/sqrt(inputs) for a matrix, and a further
1/sqrt(2 * n_layer) for what is added to the residual stream (as GPT-2 initialises). Then logits
have a spread of one, and half-precision never overflows. Queries and feed-forwards get a little
more than that: with uniform attention the positions of a deep random model become alike and greedy
text is one token repeated, with sharp attention some 28 of 32 tokens differ and depend on the whole
prompt, so that a test can tell a restored context from a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGUFWriter, PoolingType

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "mamba", "jamba")
MAMBA_ARCHITECTURES = ("mamba", "jamba")  # with recurrent layers
MAMBA_STATE, MAMBA_CONV = 16, 4  # the published models' d_state and d_conv
NORM_EPSILON = 1e-6
RANK_LABELS = ("yes", "no")  # llama.cpp takes the first one's probability for the score
RERANK_TEMPLATE = "<|im_start|>user\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
QUERY_GAIN, FEED_FORWARD_GAIN = 3.0, 2.0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`head_dim` None is n_embd / n_head. `sliding_window` is for gemma3, whose every sixth layer
    attends to everything.

    In a jamba every second layer attends, the others are mamba's. One that `ranks` is a qwen3 with a
    head for "yes" and "no", as Qwen3-Reranker.

    A tied gemma3 repeats its last token for ever, because that architecture scales embeddings up by
    sqrt(n_embd).
    """

    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx: int
    rope_base: float = 10_000.0
    head_dim: int | None = None
    tied: bool = True
    sliding_window: int = 0
    ranks: bool = False

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch {self.arch!r} is not one of {', '.join(ARCHITECTURES)}")
        if self.arch != "mamba" and (
            self.n_head % self.n_head_kv or (self.head_dim is None and self.n_embd % self.n_head)
        ):
            raise ValueError(f"{self.n_embd} wide, {self.n_head} heads and {self.n_head_kv} KV heads do not divide")

    @property
    def n_embd_head(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    def is_recurrent(self, layer: int) -> bool:
        return self.arch == "mamba" or (self.arch == "jamba" and layer % 2 == 0)


SHAPES = {
    "qwen2-0.5b": ModelShape("qwen2", 24, 896, 14, 2, 4864, 32768, rope_base=1e6),
    "qwen2-1.5b": ModelShape("qwen2", 28, 1536, 12, 2, 8960, 32768, rope_base=1e6),
    "llama-1b": ModelShape("llama", 16, 2048, 32, 8, 8192, 131072, rope_base=5e5),
    "tiny-llama": ModelShape("llama", 2, 64, 4, 2, 128, 2048),
    "tiny-qwen2": ModelShape("qwen2", 2, 64, 4, 2, 128, 2048, rope_base=1e6),
    "tiny-qwen3": ModelShape("qwen3", 2, 64, 4, 2, 128, 2048, rope_base=1e6, head_dim=32),
    "tiny-qwen3-rank": ModelShape("qwen3", 2, 64, 4, 2, 128, 2048, rope_base=1e6, head_dim=32, ranks=True),
    "tiny-gemma3": ModelShape(
        "gemma3", 6, 64, 4, 1, 128, 2048, rope_base=1e6, head_dim=32, tied=False, sliding_window=64
    ),
    "tiny-mamba": ModelShape("mamba", 2, 64, 0, 0, 0, 2048),
    "tiny-jamba": ModelShape("jamba", 4, 64, 2, 1, 128, 2048),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: `shape` in numpy's order (ggml's reversed), filled with `centre` + `spread` *
    N(0, 1). `matrix`: may be quantised. With `moved_from` it has the rows of that tensor, each one further.
    """

    name: str
    shape: tuple[int, ...]
    spread: float
    centre: float = 0.0
    matrix: bool = False
    moved_from: str = ""


def norm(name: str, width: int) -> TensorSpec:
    return TensorSpec(f"{name}.weight", (width,), 0.02, 1.0)


def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> TensorSpec:
    return TensorSpec(f"{name}.weight", (n_out, n_in), gain / math.sqrt(n_in), matrix=True)


def tensor_specs(shape: ModelShape, n_vocab: int) -> list[TensorSpec]:
    specs = [matrix("token_embd", n_vocab, shape.n_embd), norm("output_norm", shape.n_embd)]
    if not shape.tied:
        specs.append(matrix("output", n_vocab, shape.n_embd))
    if shape.ranks:
        specs.append(matrix("cls.output", len(RANK_LABELS), shape.n_embd))
    for i in range(shape.n_layer):
        specs.extend((_mamba if shape.is_recurrent(i) else _attention)(shape, f"blk.{i}"))
        if shape.n_ff:
            specs.extend(_feed_forward(shape, f"blk.{i}"))
    return specs


def _residual_gain(shape: ModelShape) -> float:
    return 1 / math.sqrt((2 if shape.n_ff else 1) * shape.n_layer)


def _attention(shape: ModelShape, blk: str) -> Iterator[TensorSpec]:
    width, n_q, n_kv = shape.n_embd, shape.n_head * shape.n_embd_head, shape.n_head_kv * shape.n_embd_head
    residual_gain = _residual_gain(shape)
    yield norm(f"{blk}.attn_norm", width)
    for name, n_out in (("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)):
        yield matrix(f"{blk}.{name}", n_out, width, QUERY_GAIN if name == "attn_q" else 1.0)
        if shape.arch == "qwen2":
            yield TensorSpec(f"{blk}.{name}.bias", (n_out,), 0.1)
    if shape.arch in ("qwen3", "gemma3"):
        yield TensorSpec(f"{blk}.attn_q_norm.weight", (shape.n_embd_head,), 0.02, QUERY_GAIN)
        yield norm(f"{blk}.attn_k_norm", shape.n_embd_head)
    yield matrix(f"{blk}.attn_output", width, n_q, residual_gain)
    if shape.arch == "gemma3":
        yield TensorSpec(f"{blk}.post_attention_norm.weight", (width,), 0.02, residual_gain)


def _feed_forward(shape: ModelShape, blk: str) -> Iterator[TensorSpec]:
    width, residual_gain = shape.n_embd, _residual_gain(shape)
    yield norm(f"{blk}.ffn_norm", width)
    yield matrix(f"{blk}.ffn_gate", shape.n_ff, width)
    yield matrix(f"{blk}.ffn_up", shape.n_ff, width)
    yield matrix(f"{blk}.ffn_down", width, shape.n_ff, FEED_FORWARD_GAIN * residual_gain)
    if shape.arch == "gemma3":
        yield TensorSpec(f"{blk}.post_ffw_norm.weight", (width,), 0.02, FEED_FORWARD_GAIN * residual_gain)


def _mamba(shape: ModelShape, blk: str) -> Iterator[TensorSpec]:
    width, inner, rank = shape.n_embd, 2 * shape.n_embd, _mamba_rank(shape)
    yield norm(f"{blk}.attn_norm", width)
    yield matrix(f"{blk}.ssm_in", 2 * inner, width)
    yield TensorSpec(f"{blk}.ssm_conv1d.weight", (inner, MAMBA_CONV), 0.5)
    yield TensorSpec(f"{blk}.ssm_conv1d.bias", (inner,), 0.1)
    yield matrix(f"{blk}.ssm_x", rank + 2 * MAMBA_STATE, inner)
    yield TensorSpec(f"{blk}.ssm_dt.weight", (inner, rank), 1 / math.sqrt(rank))
    yield TensorSpec(f"{blk}.ssm_dt.bias", (inner,), 0.5, -3.0)  # softplus: time steps around 0.05
    yield TensorSpec(f"{blk}.ssm_a", (inner, MAMBA_STATE), 0.1, -1.0)  # must be negative, or the state explodes
    yield TensorSpec(f"{blk}.ssm_d", (inner,), 0.1, 1.0)
    yield matrix(f"{blk}.ssm_out", width, inner, _residual_gain(shape))
    if shape.arch == "jamba":
        for name, n in (("dt", rank), ("b", MAMBA_STATE), ("c", MAMBA_STATE)):
            yield norm(f"{blk}.ssm_{name}_norm", n)


def _mamba_rank(shape: ModelShape) -> int:
    return max(1, shape.n_embd // 16)


def add_hyperparameters(writer: GGUFWriter, shape: ModelShape) -> None:
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    if shape.ranks:
        writer.add_pooling_type(PoolingType.RANK)
        writer.add_classifier_output_labels(RANK_LABELS)
    if shape.arch in MAMBA_ARCHITECTURES:
        writer.add_ssm_conv_kernel(MAMBA_CONV)
        writer.add_ssm_inner_size(2 * shape.n_embd)
        writer.add_ssm_state_size(MAMBA_STATE)
        writer.add_ssm_time_step_rank(_mamba_rank(shape))
    if shape.arch == "mamba":
        return
    if shape.arch == "jamba":  # attends without rotation; a layer without KV heads is a recurrent one
        writer.add_head_count_kv([0 if shape.is_recurrent(i) else shape.n_head_kv for i in range(shape.n_layer)])
        return
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.n_embd_head)
    if shape.head_dim is not None:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if shape.sliding_window:
        writer.add_sliding_window(shape.sliding_window)
