"""The rules for the tokenizer part of a GGUF that llama.cpp keeps to itself: it ignores what is
wrong, or dies without a word of why.

The rest is left to the probe (`erllama.gguf.probe`): which kinds of tokenizers there are, which
tokens they need, and whether every byte can be tokenised.
"""

from __future__ import annotations

from gguf.constants import GGUFValueType

from erllama.gguf.header import GgufHeader, until_nul

NO_TOKEN = 0xFFFFFFFF  # how a converter writes -1


def check_tokenizer(header: GgufHeader) -> int:
    """The number of tokens. Raises `ModelLoadError` when there are none, or their lists contradict
    each other.
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
