"""Random-weight GGUF files of any real shape: models, a tiny encoder, LoRA adapters. For benchmarks
and tests, without a download.

Weights depend only on the seed and the tensor's name, so a file is reproducible to the byte. A 0.5B
model in Q4_0 takes about ten seconds: tensors are drawn, quantised and written in pieces.

    python -m erllama.testing.random_gguf --shape qwen2-0.5b --vocab ggml-vocab-qwen2.gguf --type
    Q4_0 OUT.gguf
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import typer
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from erllama.gguf.header import GgufHeader, read_header
from erllama.testing.random_shape import (
    RERANK_TEMPLATE,
    SHAPES,
    ModelShape,
    TensorSpec,
    add_hyperparameters,
    matrix,
    norm,
    tensor_specs,
)
from erllama.testing.random_vocab import add_byte_level_vocabulary, add_word_piece_vocabulary, copy_vocabulary

logger = logging.getLogger(__name__)

FILE_TYPES = {
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "F16": LlamaFileType.MOSTLY_F16,
    "F32": LlamaFileType.ALL_F32,
}
CHUNK_ELEMENTS = 1 << 22  # 16 MB of float32: what is drawn and quantised at once
ENCODER_LAYERS, ENCODER_WIDTH, ENCODER_HEADS, ENCODER_CTX = 2, 64, 4, 512
LORA_TARGETS = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down", "ssm_in", "ssm_out")


def write_random_model(
    path: str | Path,
    shape: ModelShape,
    *,
    vocab: Path | None = None,
    added: Mapping[str, TokenType] = MappingProxyType({}),
    chat_template: str | None = None,
    file_type: str = "Q4_0",
    seed: int = 0,
    counts: bool = False,
) -> None:
    """Write a generative model. `vocab` is a GGUF whose tokenizer is copied, with
    `added` tokens and another `chat_template`; None makes a small synthetic one.

    Norms, biases and convolutions stay F32, as llama-quantize leaves them; so does the choice of
    Q8_0 for the embedding of a Q4_0 file (llama-quantize takes Q6_K where the width allows it, Q8_0
    otherwise).

    One that `counts` costs what a random one does, and follows each token with that of the next id: its
    layers change next to nothing, and its output is its embedding, moved by one. So a prompt can hold,
    or not hold, what the reply will be.
    """
    if counts:
        shape = replace(shape, tied=False)
    writer = _writer(path, shape.arch, f"random {shape.arch} seed {seed}")
    if shape.ranks:
        writer.add_chat_template([{"name": "rerank", "template": RERANK_TEMPLATE}])
    add_hyperparameters(writer, shape)
    if vocab is None:
        n_vocab = add_byte_level_vocabulary(writer)
    else:
        n_vocab = copy_vocabulary(writer, vocab, added=added, chat_template=chat_template)
    writer.add_vocab_size(n_vocab)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(2)
    specs = [_counting(spec) if counts else spec for spec in tensor_specs(shape, n_vocab)]
    _write(writer, [(spec, _tensor_type(spec, file_type)) for spec in specs], seed)


def write_random_encoder(path: str | Path, seed: int = 0, *, n_labels: int = 0) -> None:
    """Write a tiny BERT (F32, 512 positions) for tests: an embedding model with mean pooling, or with
    `n_labels` a cross encoder whose head gives so many scores.
    """
    writer = _writer(path, "bert", f"random bert seed {seed}")
    n_vocab = add_word_piece_vocabulary(writer)
    writer.add_context_length(ENCODER_CTX)
    writer.add_embedding_length(ENCODER_WIDTH)
    writer.add_block_count(ENCODER_LAYERS)
    writer.add_feed_forward_length(2 * ENCODER_WIDTH)
    writer.add_head_count(ENCODER_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.RANK if n_labels else PoolingType.MEAN)
    if n_labels:
        writer.add_classifier_output_labels([f"LABEL_{i}" for i in range(n_labels)])
    writer.add_file_type(LlamaFileType.ALL_F32)
    specs = _encoder_specs(n_vocab) + (_rank_head(n_labels) if n_labels else [])
    _write(writer, [(spec, GGMLQuantizationType.F32) for spec in specs], seed)


def write_random_lora(
    path: str | Path, base_model_path: str | Path, rank: int = 8, seed: int = 0, scale: float = 0.5
) -> None:
    """Write a LoRA adapter for the attention and feed-forward matrices of a model.

    `scale` is the size of the change relative to the weights that `random_shape` draws: at 0.5
    every logit moves visibly.
    """
    base = read_header(base_model_path)
    arch = base.get_string("general.architecture")
    if arch is None:
        raise base.error("has no general.architecture")
    specs = _lora_specs(base, rank)
    if not specs:
        raise base.error(f"has none of the tensors that an adapter could change: {', '.join(LORA_TARGETS)}")
    writer = _writer(path, arch, f"random lora seed {seed}", kind="adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", scale * rank)  # llama.cpp multiplies by alpha / rank
    _write(writer, [(spec, GGMLQuantizationType.F32) for spec in specs], seed)


def _writer(path: str | Path, arch: str, name: str, kind: str = "model") -> GGUFWriter:
    writer = GGUFWriter(os.fspath(path), arch)
    writer.add_type(kind)
    writer.add_name(name)
    return writer


def _dense(name: str, n_out: int, n_in: int) -> list[TensorSpec]:
    return [matrix(name, n_out, n_in), TensorSpec(f"{name}.bias", (n_out,), 0.02)]


def _rank_head(n_labels: int) -> list[TensorSpec]:
    return _dense("cls", ENCODER_WIDTH, ENCODER_WIDTH) + _dense("cls.output", n_labels, ENCODER_WIDTH)


def _encoder_specs(n_vocab: int) -> list[TensorSpec]:
    width = ENCODER_WIDTH

    def layer_norm(name: str) -> list[TensorSpec]:
        return [norm(name, width), TensorSpec(f"{name}.bias", (width,), 0.02)]

    specs = [
        matrix("token_embd", n_vocab, width),
        matrix("position_embd", ENCODER_CTX, width),
        matrix("token_types", 2, width),
    ]
    specs += layer_norm("token_embd_norm")
    for i in range(ENCODER_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            specs += _dense(f"blk.{i}.{name}", width, width)
        specs += layer_norm(f"blk.{i}.attn_output_norm")
        specs += _dense(f"blk.{i}.ffn_up", 2 * width, width) + _dense(f"blk.{i}.ffn_down", width, 2 * width)
        specs += layer_norm(f"blk.{i}.layer_output_norm")
    return specs


def _lora_specs(base: GgufHeader, rank: int) -> list[TensorSpec]:
    specs: list[TensorSpec] = []
    for info in base.tensors.values():
        parts = info.name.split(".")
        if len(parts) == 4 and parts[2] in LORA_TARGETS and parts[3] == "weight" and len(info.shape) == 2:
            n_in, n_out = info.shape
            specs.append(TensorSpec(f"{info.name}.lora_a", (rank, n_in), 1 / math.sqrt(n_in)))
            specs.append(TensorSpec(f"{info.name}.lora_b", (n_out, rank), 1 / math.sqrt(rank)))
    return specs


def _counting(spec: TensorSpec) -> TensorSpec:
    """The tensor of a model that counts."""
    if spec.name.endswith((".attn_output.weight", ".ffn_down.weight")):
        return replace(spec, spread=1e-3 * spec.spread)
    return replace(spec, moved_from="token_embd.weight") if spec.name == "output.weight" else spec


def _tensor_type(spec: TensorSpec, file_type: str) -> GGMLQuantizationType:
    if not spec.matrix:
        return GGMLQuantizationType.F32
    if file_type == "Q4_0" and spec.name in ("token_embd.weight", "output.weight"):
        file_type = "Q8_0"
    kind = GGMLQuantizationType[file_type]
    return kind if spec.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _write(writer: GGUFWriter, plan: Sequence[tuple[TensorSpec, GGMLQuantizationType]], seed: int) -> None:
    """Describe all tensors, then draw and write one after another; only one is ever in memory."""
    for spec, kind in plan:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(
            spec.name, spec.shape, np.dtype(np.float32), math.prod(spec.shape) // block * block_bytes, raw_dtype=kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(math.prod(spec.shape) for spec, _ in plan)
        done = 0
        for spec, kind in plan:
            writer.write_tensor_data(_draw(spec, kind, seed))
            done += math.prod(spec.shape)
            logger.info("wrote tensor=%s type=%s done_percent=%.1f", spec.name, kind.name, 100 * done / total)
    finally:
        writer.close()


def _draw(spec: TensorSpec, kind: GGMLQuantizationType, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([seed, zlib.crc32((spec.moved_from or spec.name).encode())])
    rows, width = math.prod(spec.shape[:-1]), spec.shape[-1]
    step = max(1, CHUNK_ELEMENTS // width)
    pieces = []
    for start in range(0, rows, step):
        values = rng.standard_normal((min(step, rows - start), width), dtype=np.float32)
        values *= np.float32(spec.spread)
        values += np.float32(spec.centre)
        pieces.append(quantize(values, kind))
    whole = np.concatenate(pieces)
    return np.roll(whole, 1, axis=0) if spec.moved_from else whole


def main(
    out: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "tiny-llama",
    vocab: Annotated[
        Path | None, typer.Option(help="A GGUF whose tokenizer is copied; without it a small synthetic one is made.")
    ] = None,
    file_type: Annotated[str, typer.Option("--type", help=f"One of {', '.join(FILE_TYPES)}.")] = "Q4_0",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    counts: Annotated[bool, typer.Option(help="Follow each token with that of the next id.")] = False,
) -> None:
    """Write a GGUF model with random weights."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    if shape not in SHAPES or file_type not in FILE_TYPES:
        raise typer.BadParameter(f"shape must be one of {', '.join(SHAPES)} and type one of {', '.join(FILE_TYPES)}")
    write_random_model(out, SHAPES[shape], vocab=vocab, file_type=file_type, seed=seed, counts=counts)


if __name__ == "__main__":
    typer.run(main)
