"""Writes a checkpoint as GGUF: `python -m demo_model.export --run DIR --out demo.gguf`.

The file is written aside and renamed, so a reader never sees half of it. Q and K rows are permuted
from the half-split rotary form of training to the interleaved one that llama.cpp uses for the llama
architecture.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from demo_model.model import DemoModel, ModelConfig
from demo_model.template import CHAT_TEMPLATE, END_OF_TEXT, IM_END
from demo_model.tokenizer import SPECIALS
from demo_model.torch_eval import load_checkpoint

# Trained up to 2048; rotary positions beyond that still work, with less recall (see MODEL_CARD.md).
CONTEXT_LENGTH = 4096
MAXIMUM_BYTES = 8 * 1024 * 1024
_QUANTIZATIONS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def interleaved(weight: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows (head, half, pair) -> (head, pair, half)."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(model: DemoModel) -> dict[str, NDArray[np.float32]]:
    config = model.config

    def array(parameter: Any) -> NDArray[np.float32]:
        return np.asarray(parameter.detach().numpy(), dtype=np.float32)

    named = {"token_embd.weight": array(model.embedding), "output_norm.weight": array(model.final_norm)}
    for index, layer in enumerate(model.layers):
        named |= {
            f"blk.{index}.attn_norm.weight": array(layer.attention_norm),
            f"blk.{index}.attn_q.weight": interleaved(array(layer.query), config.n_heads),
            f"blk.{index}.attn_k.weight": interleaved(array(layer.key), config.n_kv_heads),
            f"blk.{index}.attn_v.weight": array(layer.value),
            f"blk.{index}.attn_output.weight": array(layer.output),
            f"blk.{index}.ffn_norm.weight": array(layer.feed_forward_norm),
            f"blk.{index}.ffn_gate.weight": array(layer.gate),
            f"blk.{index}.ffn_up.weight": array(layer.up),
            f"blk.{index}.ffn_down.weight": array(layer.down),
        }
    return named


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, file_type: gguf.LlamaFileType) -> None:
    writer.add_name("erllama demo")
    writer.add_description("A tiny chat model trained from scratch on generated conversations")
    writer.add_license("mit")
    writer.add_file_type(file_type)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocabulary[END_OF_TEXT])
    writer.add_pad_token_id(vocabulary[END_OF_TEXT])
    writer.add_eos_token_id(vocabulary[IM_END])
    writer.add_eot_token_id(vocabulary[IM_END])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export(model: DemoModel, tokenizer: Tokenizer, out: Path, *, quantization: str) -> None:
    kind, file_type = _QUANTIZATIONS[quantization]
    partial = out.with_name(out.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_metadata(writer, model.config, file_type)
    _add_tokenizer(writer, tokenizer)
    for name, array in tensors(model).items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if partial.stat().st_size > MAXIMUM_BYTES:
        raise ValueError(f"{partial} has {partial.stat().st_size} bytes, more than {MAXIMUM_BYTES}")
    os.replace(partial, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory of demo_model.train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quantization", choices=sorted(_QUANTIZATIONS), default="f16")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.run / "tokenizer.json"))
    export(
        load_checkpoint(arguments.run / "checkpoint.pt"), tokenizer, arguments.out, quantization=arguments.quantization
    )


if __name__ == "__main__":
    main()
