"""What of a model decides how much memory it takes: its layers, their widths and their bytes.

Widths are elements for each token. What a layer does is read from the names of its tensors and from
`head_count_kv`, not from a table of architectures: a layer with `ssm_*`, `time_mix_*` or `shortconv.*`
has a recurrent state, one with keys and at least one KV head has KV (falcon-h1's have both).

Not known: the key caches of sparse attention (`attention.indexer.*`: deepseek32, glm-dsa, ...) and
deepseek4's compressed ones; both come on top.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from erllama.footprint.copies import NONE, RowGroups, copied_as_output, is_copied
from erllama.footprint.hyperparameters import Hyperparameters
from erllama.footprint.recurrent import RecurrentShape
from erllama.gguf.header import GgufHeader, TensorInfo

_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
_ATTENDS = re.compile(r"^(attn_k|attn_kv_a_mqa|attn_kv_a|attn_qkv)\.")
_RECURRENT = re.compile(r"^(ssm_|time_mix_|shortconv\.)")
_FUSED_RECURRENT = "attn_qkv"  # qwen3next's recurrent layers project with it, too, and attend to nothing
_GEMMA3N_KV_LAYERS = 20  # models/gemma3n.cpp: n_layer_kv_from_start


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block. `copied_bytes` of `weights_bytes` go into the layout of the kernels.

    `k_width` and `v_width` are what its cache keeps of a token, `q_width` are its queries, `n_head` its
    rows of scores; `feed_forward_width` is what is alive at once of a token there. `recurrent` is its
    recurrent part, if it has one.
    """

    weights_bytes: int
    copied_bytes: int = 0
    k_width: int = 0
    v_width: int = 0
    q_width: int = 0
    n_head: int = 0
    feed_forward_width: int = 0
    recurrent: RecurrentShape | None = None


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """A model. `input_bytes` are looked up, always in RAM; `output_bytes` are multiplied after the last
    layer, and `tied_bytes` are those of the embedding where it serves as the output, too.

    `tied_copied`: that output is a copy already in RAM. `n_masks` of attention: two where some layers
    have a sliding window. `generates` is false for an encoder, which has no KV.
    """

    architecture: str
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    layers: tuple[LayerShape, ...]
    input_bytes: int
    output_bytes: int
    output_copied_bytes: int = 0
    tied_bytes: int = 0
    tied_copied: bool = False
    n_masks: int = 1
    generates: bool = True

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @classmethod
    def of(cls, headers: Sequence[GgufHeader], groups: RowGroups = NONE) -> MemoryShape:
        """From the headers of all parts, in order, that `inspect_headers` has checked. `groups` is what
        the CPU copies (`copies.row_groups`). Raises `ModelLoadError`.
        """
        hyper = Hyperparameters.of(headers[0])
        tensors = [tensor for header in headers for tensor in header.tensors.values()]
        rest = {tensor.name: tensor for tensor in tensors if _BLOCK.match(tensor.name) is None}
        embedding, output = rest.get("token_embd.weight"), rest.get("output.weight")
        behind = [tensor for name, tensor in rest.items() if name.startswith(("output", "cls"))]
        tied = embedding if output is None else None
        return cls(
            architecture=hyper.architecture,
            n_ctx_train=hyper.number("context_length"),
            n_embd=hyper.number("embedding_length"),
            n_vocab=embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0,
            layers=_layers(hyper, tensors, groups),
            input_bytes=sum(tensor.n_bytes for tensor in rest.values() if tensor not in behind),
            output_bytes=sum(tensor.n_bytes for tensor in behind),
            output_copied_bytes=_copied(behind, groups),
            tied_bytes=tied.n_bytes if tied is not None else 0,
            tied_copied=tied is not None and copied_as_output(tied, groups),
            n_masks=2 if hyper.number("attention.sliding_window") > 0 else 1,
            generates=hyper.flag("attention.causal", True),
        )


def _layers(hyper: Hyperparameters, tensors: Iterable[TensorInfo], groups: RowGroups) -> tuple[LayerShape, ...]:
    by_layer: list[dict[str, TensorInfo]] = [{} for _ in range(hyper.n_layer)]
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        if match is not None and int(match[1]) < len(by_layer):
            by_layer[int(match[1])][match[2]] = tensor
    heads = _heads(hyper)
    recurrent = RecurrentShape.of(hyper)
    used = hyper.per_layer("expert_used_count")
    return tuple(
        _layer(own, heads[i], recurrent, used[i], hyper.number("embedding_length"), groups)
        for i, own in enumerate(by_layer)
    )


@dataclass(frozen=True, slots=True)
class _Heads:
    """`kv_heads` 0: the layer has no cache. `v_size` 0: its values lie in its keys (MLA)."""

    n_head: int
    kv_heads: int
    k_size: int
    v_size: int


def _heads(hyper: Hyperparameters) -> list[_Heads]:
    """As `load_hparams` in llama-model.cpp. Layers that use another one's KV, and those that predict
    further tokens (`create_memory` leaves them out), have none of their own.
    """
    n_head = hyper.per_layer("attention.head_count")
    n_kv = hyper.per_layer("attention.head_count_kv", -1)
    size = hyper.number("embedding_length") // max(1, n_head[0])
    full = hyper.number("attention.key_length", size), hyper.number("attention.value_length", size)
    window = (
        hyper.number("attention.key_length_swa", full[0]),
        hyper.number("attention.value_length_swa", full[1]),
    )
    sliding = hyper.per_layer("attention.sliding_window_pattern")
    mla = hyper.number("attention.key_length_mla") > 0
    n_own = hyper.n_layer - hyper.number("attention.shared_kv_layers") - hyper.number("nextn_predict_layers")
    if hyper.architecture == "gemma3n":
        n_own = _GEMMA3N_KV_LAYERS
    # a scalar pattern is a period, and all its layers have heads of one size
    each = isinstance(sliding[0], int) and max(sliding) <= 1
    found = []
    for i, heads in enumerate(n_head):
        k_size, v_size = window if each and sliding[i] else full
        kv_heads = (heads if n_kv[i] < 0 else n_kv[i]) if i < n_own else 0
        found.append(_Heads(heads, kv_heads, k_size, 0 if mla else v_size))
    return found


def _layer(
    own: dict[str, TensorInfo], heads: _Heads, recurrent: RecurrentShape, n_used: int, n_embd: int, groups: RowGroups
) -> LayerShape:
    is_recurrent = any(_RECURRENT.match(name) for name in own)
    attends = any(_ATTENDS.match(name) and not (is_recurrent and name.startswith(_FUSED_RECURRENT)) for name in own)
    kv_heads = heads.kv_heads if attends else 0
    return LayerShape(
        weights_bytes=sum(tensor.n_bytes for tensor in own.values()),
        copied_bytes=_copied(own.values(), groups),
        k_width=kv_heads * heads.k_size,
        v_width=kv_heads * heads.v_size,
        q_width=heads.n_head * heads.k_size if attends else 0,
        n_head=heads.n_head if attends else 0,
        feed_forward_width=_feed_forward_width(own, n_used, n_embd),
        recurrent=recurrent if is_recurrent else None,
    )


def _feed_forward_width(own: dict[str, TensorInfo], n_used: int, n_embd: int) -> int:
    """Up and gate, and their product beside them (`build_ffn` in llama-graph.cpp).

    The same for each expert in use (`build_moe_ffn`) and the router's share of a stream; their results
    and the weighed ones take the place of up and gate, unless they are too wide for that.
    """

    def rows(name: str) -> int:
        tensor = own.get(name)
        return tensor.shape[1] if tensor is not None and len(tensor.shape) > 1 else 0

    dense = max(rows("ffn_up.weight"), rows("ffn_up_shexp.weight"))
    width = (3 if "ffn_gate.weight" in own or "ffn_gate_shexp.weight" in own else 2) * dense
    expert = max(rows("ffn_up_exps.weight"), rows("ffn_gate_up_exps.weight") // 2)
    if not expert:
        return width
    results = 2 * n_embd if n_embd > 2 * expert else 0
    return max(width, n_used * max(3 * expert, results) + n_embd)


def _copied(tensors: Iterable[TensorInfo], groups: RowGroups) -> int:
    return sum(tensor.n_bytes for tensor in tensors if is_copied(tensor, groups))
