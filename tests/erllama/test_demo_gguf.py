"""The packaged file: its metadata is what the model card promises."""

import pytest

from demo_model.template import CHAT_TEMPLATE
from erllama import demo
from erllama.gguf.header import read_header


@pytest.fixture(scope="module")
def header():
    return read_header(demo.demo_model_path())


def test_it_is_small_enough_for_git():
    assert demo.demo_model_path().stat().st_size <= 8 * 1024 * 1024


def test_it_is_a_llama_named_erllama_demo_under_mit(header):
    assert header.get_string("general.architecture") == "llama"
    assert header.get_string("general.name") == "erllama demo"
    assert header.get_string("general.license") == "mit"


def test_its_context_is_4096(header):
    assert header.get_int("llama.context_length") == 4096


def test_it_has_between_two_and_six_million_parameters(header):
    assert 2_000_000 <= sum(tensor.n_elements for tensor in header.tensors.values()) <= 6_000_000


def test_its_template_is_the_one_training_rendered(header):
    assert header.get_string("tokenizer.chat_template") == CHAT_TEMPLATE


def test_it_ends_a_turn_with_im_end(header):
    tokens = [bytes(token).decode() for token in header.metadata["tokenizer.ggml.tokens"].data]
    assert len(tokens) == 1280
    assert tokens[-3:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokens[header.get_int("tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert tokens[header.get_int("tokenizer.ggml.eot_token_id")] == "<|im_end|>"
    assert header.metadata["tokenizer.ggml.add_bos_token"].data is False


def test_a_missing_file_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="not part of this installation"):
        demo.demo_model_path()
