"""What is tokenised piece by piece, and remembered, is what llama.cpp makes of the whole."""

import random
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.chat.token_cache import MIN_CHARS, TokenCache
from erllama.chat.variants import TemplateVariants
from tests.support.llama_cpp_files import real_template, real_vocab

MODELS = [
    ("qwen2", "Qwen-Qwen3-0.6B"),
    ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct"),
    ("llama-spm", "mistralai-Mistral-Nemo-Instruct-2407"),
    ("phi-3", "microsoft-Phi-3.5-mini-instruct"),
    ("command-r", "CohereForAI-c4ai-command-r7b-12-2024-tool_use"),
    ("gemma-4", "google-gemma-4-31B-it"),
    ("deepseek-llm", "deepseek-ai-DeepSeek-V3.1"),
    ("qwen35", "Qwen3.5-4B"),
]
WORDS = ["hello", " the", "\n\n", "  x", "é😀", "<b>", "1234", "<|", "</s", " ", "def f(x):\n    return x"]


class CountingVocab:
    """One token per byte, and how many characters were tokenised."""

    n_chars = 0
    bos_text, eos_text, adds_bos = "", "", False
    chat_template = "{% for m in messages %}<|a|>{{ m.content }}{% endfor %}"
    named_templates: ClassVar[dict[str, str]] = {}

    def control_texts(self):
        return ("<|a|>",)

    cut_texts = control_texts

    def tokenize(self, text, *, add_special=True, parse_special=True):
        self.n_chars += len(text)
        return [*text.encode()]


@pytest.mark.parametrize(("vocab_name", "template_name"), MODELS)
def test_a_prompt_in_pieces_has_the_ids_of_the_whole(vocab_name, template_name):
    vocab, draw = real_vocab(vocab_name), random.Random(1)
    try:
        vocab.chat_template = real_template(template_name)
        template = TemplateVariants.of(vocab).default
        messages = [{"role": "system", "content": "Be brief."}]
        for turn in range(6):
            text = "".join(draw.choice(WORDS) for _ in range(40))
            messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
            conversation = template.conversation(messages)
            text = template.render_conversation(conversation)
            add_special = vocab.adds_bos and not (vocab.bos_text and text.startswith(vocab.bos_text))
            assert conversation.tokenize(vocab, text) == vocab.tokenize(text, add_special=add_special)
    finally:
        vocab.close()


def test_a_history_is_tokenised_once():
    asked = []

    def tokenize(text, add_special):
        asked.append(text)
        return [*text.encode()]

    cache = TokenCache(["<|a|>"])
    turns = [f"<|a|>{'turn ' * 8}{n}" for n in range(5)]
    for n in range(1, 6):
        assert bytes(cache.tokenize("".join(turns[:n]), tokenize, add_special=False)).decode() == "".join(turns[:n])
    assert asked == turns


def test_nobody_finds_what_was_tokenised_for_another_owner():
    """The first prompt of a tenant takes as long as if nobody had sent its messages before."""
    vocab = CountingVocab()
    template = TemplateVariants.of(vocab).default
    messages = [{"role": "user", "content": "a text that another tenant has sent, word for word"}]

    def n_tokenised(salt: str) -> int:
        before, own = vocab.n_chars, template.of_tenant(salt)
        conversation = own.conversation(messages)
        conversation.tokenize(vocab, own.render_conversation(conversation))
        return vocab.n_chars - before

    counts = {salt: (n_tokenised(salt), n_tokenised(salt)) for salt in ("", "a", "b")}
    assert len(set(counts.values())) == 1
    first, again = counts["b"]
    assert again < MIN_CHARS < first


def test_the_cache_is_bounded():
    cache = TokenCache(["|"], max_chars=100)
    for n in range(50):
        cache.tokenize(f"|{n:030}|{n + 1:030}", lambda text, add_special: [len(text)], add_special=False)
    assert len(cache._known) <= 3


@given(st.lists(st.sampled_from(["<s>", "</s>", "x" * MIN_CHARS, "a", " "]), max_size=12).map("".join), st.booleans())
def test_only_the_first_piece_gets_special_tokens(text, add_special):
    def tokenize(piece, first):
        return ([-1] if first else []) + [*piece.encode()]

    for _ in range(2):
        ids = TokenCache(["<s>", "</s>"]).tokenize(text, tokenize, add_special=add_special)
        assert ids == tokenize(text, add_special)
