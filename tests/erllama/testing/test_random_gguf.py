"""Random-weight files are reproducible, well formed, and llama.cpp runs them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from gguf import TokenType
from typer.testing import CliRunner

from erllama.errors import ModelLoadError
from erllama.gguf.check import check_adapter, inspect_gguf
from erllama.gguf.header import read_header
from erllama.llama.vocab import LlamaVocab
from erllama.testing.random_gguf import main, write_random_encoder, write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape

TINY = [name for name in SHAPES if name.startswith("tiny")]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("file_type", ["Q4_0", "F32"])
def test_every_tiny_shape_inspects_clean(tmp_path, name, file_type):
    path = tmp_path / "m.gguf"
    write_random_model(path, SHAPES[name], file_type=file_type)
    info = inspect_gguf(path)
    assert (info.architecture, info.n_layer, info.file_type) == (SHAPES[name].arch, SHAPES[name].n_layer, file_type)
    assert info.chat_template


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    contents = []
    for i, seed in enumerate([1, 1, 2]):
        path = tmp_path / f"{i}.gguf"
        write_random_model(path, SHAPES["tiny-llama"], seed=seed)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_bits_per_weight_follow_the_type(tmp_path):
    shape = replace(SHAPES["tiny-llama"], n_embd=256, n_ff=1024)
    bits = {}
    for file_type in ("Q4_0", "Q8_0", "F16", "F32"):
        path = tmp_path / f"{file_type}.gguf"
        write_random_model(path, shape, file_type=file_type)
        bits[file_type] = inspect_gguf(path).bits_per_weight
    assert bits == {
        "Q4_0": pytest.approx(4.8, abs=0.2),
        "Q8_0": pytest.approx(8.5, abs=0.1),
        "F16": pytest.approx(16, abs=0.1),
        "F32": 32,
    }


def test_the_vocabulary_of_another_file_is_copied(tmp_path):
    source, path = tmp_path / "source.gguf", tmp_path / "m.gguf"
    write_random_model(source, SHAPES["tiny-llama"])
    write_random_model(path, SHAPES["tiny-qwen2"], vocab=source)
    ours, theirs = read_header(path).metadata, read_header(source).metadata
    tokenizer = [key for key in theirs if key.startswith("tokenizer.")]
    assert [key for key in ours if key.startswith("tokenizer.")] == tokenizer
    for key in tokenizer:
        assert (ours[key].type, ours[key].item_type) == (theirs[key].type, theirs[key].item_type)
        assert np.array_equal(ours[key].data, theirs[key].data)


def test_a_copied_vocabulary_takes_more_tokens_and_another_template(tmp_path):
    source, path = tmp_path / "source.gguf", tmp_path / "m.gguf"
    write_random_model(source, SHAPES["tiny-llama"])
    added = {"<call>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED}
    write_random_model(path, SHAPES["tiny-llama"], vocab=source, added=added, chat_template="xTemplatex")
    assert inspect_gguf(path).chat_template == "xTemplatex"
    lent, vocab = LlamaVocab.load(str(source)), LlamaVocab.load(str(path))
    n = lent.n_vocab
    assert vocab.tokenize("<call><tool>", add_special=False) == [n, n + 1]
    assert [vocab.piece(n), vocab.piece(n + 1)] == [b"", b"<tool>"]
    assert vocab.tokenize("A word.") == lent.tokenize("A word.")
    lent.close()
    vocab.close()


def test_a_file_without_a_vocabulary_cannot_lend_one(tmp_path):
    source = tmp_path / "source.gguf"
    write_random_model(tmp_path / "base.gguf", SHAPES["tiny-llama"])
    write_random_lora(source, tmp_path / "base.gguf")
    with pytest.raises(ModelLoadError, match=r"has no tokenizer.ggml.tokens"):
        write_random_model(tmp_path / "m.gguf", SHAPES["tiny-llama"], vocab=source)


def test_a_hybrid_shape_alternates_recurrent_and_attention_layers(tmp_path):
    write_random_model(tmp_path / "m.gguf", SHAPES["tiny-jamba"])
    header = read_header(tmp_path / "m.gguf")
    mixers = [
        next(name for name in ("ssm_in", "attn_q") if f"blk.{i}.{name}.weight" in header.tensors) for i in range(4)
    ]
    assert mixers == ["ssm_in", "attn_q"] * 2
    assert list(header.metadata["jamba.attention.head_count_kv"].data) == [0, 1, 0, 1]


def test_an_encoder_inspects_clean(tmp_path):
    write_random_encoder(tmp_path / "e.gguf", seed=3)
    assert inspect_gguf(tmp_path / "e.gguf").architecture == "bert"


@pytest.mark.parametrize("name", TINY)
def test_an_adapter_fits_its_base_model(tmp_path, name):
    base, path = tmp_path / "m.gguf", tmp_path / "a.gguf"
    write_random_model(base, SHAPES[name])
    write_random_lora(path, base, rank=4, seed=1, scale=0.5)
    check_adapter(path, inspect_gguf(base))


def test_an_impossible_shape_is_refused():
    with pytest.raises(ValueError, match="do not divide"):
        ModelShape("llama", 2, 64, 4, 3, 128, 2048)
    with pytest.raises(ValueError, match="arch 'gpt9'"):
        ModelShape("gpt9", 2, 64, 4, 4, 128, 2048)


def test_the_command_line_writes_a_model(tmp_path):
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(
        app, ["--shape", "tiny-qwen3", "--type", "Q8_0", "--seed", "5", str(tmp_path / "m.gguf")]
    )
    assert result.exit_code == 0
    assert inspect_gguf(tmp_path / "m.gguf").architecture == "qwen3"
    assert CliRunner().invoke(app, ["--shape", "huge", str(tmp_path / "n.gguf")]).exit_code == 2


# Prints the greedy tokens of one prompt without and with an adapter, or the norm of an embedding.
RUNNER = """
import sys, ctypes
import numpy as np, llama_cpp
silent = llama_cpp.llama_log_callback(lambda *arguments: None)
llama_cpp.llama_log_set(silent, None)
path, adapter = sys.argv[1:3]
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
vocab = llama_cpp.llama_model_get_vocab(model)
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch, params.embeddings = 128, 1, 1, adapter == "embed"
text, tokens = b"Hello there, the world", (llama_cpp.llama_token * 64)()
n = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, 64, True, True)
loras = [] if adapter in ("embed", "none") else [llama_cpp.llama_adapter_lora_init(model, adapter.encode())]
for lora in [None, *loras]:
    context = llama_cpp.llama_init_from_model(model, params)
    if lora is not None:
        llama_cpp.llama_set_adapters_lora(context, (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
    batch, out = llama_cpp.llama_batch_get_one(tokens, n), []
    for _ in range(24):
        assert llama_cpp.llama_decode(context, batch) == 0
        if adapter == "embed":
            out = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), shape=(64,))
            print(float(np.linalg.norm(out)))
            break
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(llama_cpp.llama_vocab_n_tokens(vocab),))
        assert np.isfinite(logits).all()
        out.append(int(logits.argmax()))
        one = (llama_cpp.llama_token * 1)(out[-1])
        batch = llama_cpp.llama_batch_get_one(one, 1)
    else:
        print(*out)
"""


def run_llama_cpp(path, adapter):
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(path), str(adapter)], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.model
@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_runs_it_and_an_adapter_changes_the_text(tmp_path, name):
    base, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    write_random_model(base, SHAPES[name], file_type="Q8_0", seed=1)
    write_random_lora(adapter, base)
    plain, adapted = run_llama_cpp(base, adapter)
    assert plain != adapted
    if name != "tiny-mamba":  # a small recurrent model repeats itself
        assert len(set(plain.split())) > 8


@pytest.mark.model
def test_llama_cpp_embeds_with_the_encoder(tmp_path):
    write_random_encoder(tmp_path / "e.gguf")
    (norm,) = run_llama_cpp(tmp_path / "e.gguf", "embed")
    assert float(norm) > 1
