"""What a model takes as it is configured. Pure: microseconds, no file, no llama.cpp.

Contexts are made as `erllama/llama/context_params.py` says: each sequence has a KV stream of its own,
of `n_ctx` cells padded to 256, and layers with a sliding window have it in full length, because
`swa_full` is llama.cpp's default. `n_gpu_layers` counts from the end, the output first
(llama-model.cpp: `i_gpu_start`); the embedding is always looked up in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from erllama.config import MAX_UBATCH, EngineConfig, padded_context
from erllama.footprint.fit import DeviceNeed, MemoryNeed
from erllama.footprint.shape import LayerShape, MemoryShape

_F32_BYTES, _F16_BYTES = 4, 2
PROCESS_BYTES = 98 << 20
"""What a process takes with Python, erllama and llama.cpp, but no model: before one was loaded, and of
one that was unloaded all but the vocabulary. Measured by `bench/fit.py`; an installation without
compiled Python files has 30 MiB more. Ray comes on top."""
TOKEN_BYTES = 315
"""What a token of the vocabulary takes, which stays when the model is unloaded (`LlamaVocab`)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the weights in RAM: `mapped_bytes` stay pages of the file, which the system may drop and read
    again; `private_bytes` it cannot. Without mmap all are private.

    A tied output that is copied counts beside the embedding that it was copied from.
    """

    mapped_bytes: int
    private_bytes: int


def estimate(shape: MemoryShape, config: EngineConfig) -> MemoryNeed:
    """Bytes in RAM and on GPUs. `n_ctx` 0 is the training context; `n_gpu_layers` "auto" is none, -1 all:
    only who knows the GPUs can say. The process itself (`process_bytes`) comes on top.

    Mapped weights count in full: all of them are read for each token. Pages of tensors that were
    copied into another layout do not count, they are never read again.
    """
    n_gpu = _gpu_layers(shape, config)
    ram, gpu = _split(shape, n_gpu)
    loaded = weights(shape, config)
    compute_ram, compute_gpu = compute_buffers(shape, config)
    return MemoryNeed(
        weights_bytes=loaded.mapped_bytes + loaded.private_bytes,
        kv_bytes=sum(_kv_bytes(shape, layer, config) for layer in ram),
        compute_bytes=compute_ram + _work_bytes(shape, config),
        gpu=DeviceNeed(
            weights_bytes=sum(layer.weights_bytes for layer in gpu)
            + (shape.output_bytes + shape.tied_bytes if n_gpu else 0),
            kv_bytes=sum(_kv_bytes(shape, layer, config) for layer in gpu),
            compute_bytes=compute_gpu,
        ),
    )


def process_bytes(shape: MemoryShape) -> int:
    """What is left of a process in which the model was unloaded, and what it has beside a loaded one."""
    return PROCESS_BYTES + TOKEN_BYTES * shape.n_vocab


def weights(shape: MemoryShape, config: EngineConfig) -> Weights:
    """What of the weights lies in RAM."""
    n_gpu = _gpu_layers(shape, config)
    ram, _ = _split(shape, n_gpu)
    n_bytes = shape.input_bytes + sum(layer.weights_bytes for layer in ram)
    copied = sum(layer.copied_bytes for layer in ram)
    if not n_gpu:
        n_bytes += shape.output_bytes
        copied += shape.output_copied_bytes
    n_tied = shape.tied_bytes if shape.tied_copied and not n_gpu else 0
    if not config.use_mmap:
        return Weights(0, n_bytes + n_tied)
    return Weights(n_bytes - copied, copied + n_tied)


def _gpu_layers(shape: MemoryShape, config: EngineConfig) -> int:
    most, wanted = shape.n_layer + 1, config.n_gpu_layers
    if wanted == "auto":
        return 0
    return most if wanted < 0 else min(wanted, most)


def _split(shape: MemoryShape, n_gpu: int) -> tuple[tuple[LayerShape, ...], tuple[LayerShape, ...]]:
    """Layers in RAM, and on a GPU; one of `n_gpu` is the output."""
    first = shape.n_layer - max(0, n_gpu - 1)
    return shape.layers[:first], shape.layers[first:]


# --- KV -------------------------------------------------------------------------------------------


def _cells(shape: MemoryShape, config: EngineConfig) -> int:
    """Of one sequence."""
    return padded_context(config.n_ctx or shape.n_ctx_train)


def _row_bytes(kind: str, width: int) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return -(-width // block) * block_bytes


def _kv_bytes(shape: MemoryShape, layer: LayerShape, config: EngineConfig) -> int:
    """llama-kv-cache.cpp and llama-memory-recurrent.cpp: cells of K and V, and one state, per sequence.

    Without flash attention V lies transposed, as wide as the widest layer's.
    """
    if not shape.generates:
        return 0
    v_width = layer.v_width
    if v_width and not config.flash_attn:
        v_width = max(other.v_width for other in shape.layers)
    row = _row_bytes(config.type_k, layer.k_width) + _row_bytes(config.type_v, v_width)
    state_bytes = layer.recurrent.state_bytes if layer.recurrent is not None else 0
    return config.n_parallel * (_cells(shape, config) * row + state_bytes)


# --- what it computes in --------------------------------------------------------------------------


def compute_buffers(shape: MemoryShape, config: EngineConfig) -> tuple[int, int]:
    """What llama.cpp's log calls compute and output buffers, in RAM and on a GPU.

    Where layers are on both, each has a buffer for the largest; the masks and the embedded tokens are
    made in RAM, and the logits end there.
    """
    if not shape.generates:
        return 0, 0
    n_gpu, n_tokens = _gpu_layers(shape, config), _batch_tokens(config)
    inputs = n_tokens * (_mask_bytes(shape, config) + _F32_BYTES * shape.n_embd)
    layers = _layers_bytes(shape, config, n_tokens)
    logits = config.n_parallel * shape.n_vocab * _F32_BYTES
    outputs = logits + config.n_parallel * 2 * shape.n_embd * _F32_BYTES
    everything = max(layers, outputs)
    if n_gpu == 0:
        return everything + logits, 0
    if n_gpu == 1:
        return layers + logits, outputs
    return (layers if n_gpu <= shape.n_layer else inputs) + logits, everything


def _work_bytes(shape: MemoryShape, config: EngineConfig) -> int:
    """What the CPU's layers convert the second factor of a multiplication into, half precision at
    most (ggml-cpu.c: `ggml_graph_plan`): activations, or without flash attention the scores. It is in
    no buffer that the log names.
    """
    ram, _ = _split(shape, _gpu_layers(shape, config))
    if not shape.generates or not ram:
        return 0
    widths = [max(layer.feed_forward_width // 2, shape.n_embd) for layer in ram]
    if not config.flash_attn:
        widths += [layer.n_head * _cells(shape, config) for layer in ram]
    return _batch_tokens(config) * _F16_BYTES * max(widths)


def _batch_tokens(config: EngineConfig) -> int:
    """Of the batch that `graph_reserve` in llama-context.cpp plans for: as many of each sequence."""
    n_tokens = min(MAX_UBATCH, config.n_batch)
    return -(-n_tokens // config.n_parallel) * config.n_parallel


def _mask_bytes(shape: MemoryShape, config: EngineConfig) -> int:
    """Of one token: whom it attends to, in half precision for flash attention."""
    if not any(layer.n_head for layer in shape.layers):
        return 0
    return shape.n_masks * _cells(shape, config) * (_F16_BYTES if config.flash_attn else _F32_BYTES)


def _layers_bytes(shape: MemoryShape, config: EngineConfig, n_tokens: int) -> int:
    """The largest phase of any layer, with the masks that live through all of them."""
    largest = max(phase for layer in shape.layers for phase in _phases(shape, layer, config, n_tokens))
    return n_tokens * _mask_bytes(shape, config) + largest


def _phases(shape: MemoryShape, layer: LayerShape, config: EngineConfig, n_tokens: int) -> Iterator[int]:
    """Bytes that are alive at once in feed-forward, attention and recurrence.

    ggml-alloc.c hands out the best hole that is large enough, and holes that a residual stream or a
    norm has left are too small for a feed-forward: hence four and not two times `n_embd`. Without
    flash attention there is a score for each head and cell; the softmax is computed in place.
    """
    token_bytes = _F32_BYTES * n_tokens
    yield token_bytes * (layer.feed_forward_width + 4 * shape.n_embd)
    if layer.n_head:
        scores = 0 if config.flash_attn else layer.n_head * _cells(shape, config)
        heads = layer.q_width + layer.k_width + layer.v_width
        yield token_bytes * (3 * shape.n_embd + 2 * heads + scores)
    if layer.recurrent is not None:
        moving = config.n_parallel * layer.recurrent.moving_bytes
        yield token_bytes * (layer.recurrent.mixer_width + shape.n_embd) + moving
