"""Prompts with a gap, of a vocabulary in a file; what llama-server made of the same is recorded."""

from dataclasses import replace

import pytest
from gguf import TokenType

from cache_store.format.keys import root_key
from deployments.ingress.prompts import PromptSource
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import NotSupported
from erllama.model import Model
from erllama.prompts.infill import Gap, Room
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

pytestmark = pytest.mark.model

FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
ROOM = Room.of(8192, 4)
PREFIX, SUFFIX = "def f(a):\n    ", "\n    return x\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("infill")
    shape = replace(SHAPES["tiny-llama"], n_ctx=8192)
    write_random_model(folder / "plain.gguf", shape)
    added = dict.fromkeys(FIM, TokenType.CONTROL)
    write_random_model(folder / "fim.gguf", shape, vocab=folder / "plain.gguf", added=added, file_type="F32")
    return str(folder / "fim.gguf")


def source(path: str, **more) -> PromptSource:
    return PromptSource(EngineConfig(path=path, **more), root=root_key("test"), book=TranscriptBook())


@pytest.mark.parametrize(
    ("settings", "gap", "recorded"),
    [
        (
            {}, Gap(PREFIX, SUFFIX, "x = ", [("u.py", "import <|im_end|>\n"), ("tmp", "y = 1\n")]),
            "<|repo_name|>myproject\n<|file_sep|>u.py\nimport <|im_end|>\n<|file_sep|>tmp\ny = 1\n<|file_sep|>filename\n"
            "<|fim_prefix|>def f(a):\n    x = <|fim_suffix|>\n    return x\n<|fim_middle|>",
        ),
        (
            {"spm_infill": True}, Gap(PREFIX, SUFFIX),
            "<|repo_name|>myproject\n<|file_sep|>filename\n"
            "<|fim_suffix|>\n    return x\n<|fim_prefix|>def f(a):\n    <|fim_middle|>",
        ),
    ],
)  # fmt: skip
def test_prompts_are_those_of_llama_server(path, settings, gap, recorded):
    prompts = source(path, **settings)
    try:
        prompt = prompts.infill_prompt(gap, ROOM)
        assert prompts.fills_gaps
        assert prompts.load().vocab.detokenize(prompt.tokens, special=True) == recorded
        im_end = prompts.tokenize("<|im_end|>", add_special=False)
        assert im_end[0] not in prompt.tokens, "a text around the gap has written a control token"
    finally:
        prompts.close()


def test_a_file_mark_ends_a_reply(path):
    prompts = source(path)
    try:
        marks = {prompts.tokenize(text, add_special=False)[0] for text in FIM[3:]}
    finally:
        prompts.close()
    with Model(path=path, n_ctx=256) as model:
        assert marks <= model._backend.eog_tokens


def test_a_vocabulary_without_the_tokens_fills_no_gap(path):
    prompts = source(path.replace("fim.gguf", "plain.gguf"))
    try:
        assert not prompts.fills_gaps
        with pytest.raises(NotSupported, match="fill in the middle"):
            prompts.infill_prompt(Gap("a", "b"))
    finally:
        prompts.close()
