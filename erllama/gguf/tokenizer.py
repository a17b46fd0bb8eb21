"""The rules for the tokenizer part of a GGUF: what llama.cpp's `llama-vocab.cpp` takes for granted and dies of.

These end the process and not only the load: two tokens with the same text, a byte token in a WordPiece vocabulary (assertions at load); a
BOS, EOS or separator that is to be added but is not in the vocabulary (an assertion at the first request); and text that no token can
stand for, because bytes or the unknown token are missing (`std::out_of_range` through the C interface at the first unlucky character:
anyone who may send a prompt may end it).
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf.constants import GGUFValueType, TokenType

from erllama.gguf.header import GgufHeader, GgufValue, until_nul

MERGE_TOKENIZERS = frozenset({"gpt2", "gemma4", "hybriddna", "whitespace"})
NO_TOKEN = 0xFFFFFFFF  # how a converter writes -1


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What llama.cpp assumes for a kind of tokenizer when the file does not say (`llama_vocab::impl::load`)."""

    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    unk: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    byte_tokens: bool = False  # every byte needs a token
    needs_unk: bool = False  # whatever has no token becomes this one


_DEFAULTS = {
    "llama": _Defaults(bos=1, eos=2, add_bos=True, byte_tokens=True),
    "bert": _Defaults(bos=101, sep=102, unk=100, add_bos=True, needs_unk=True),
    "gpt2": _Defaults(bos=11, eos=11),
    "hybriddna": _Defaults(bos=11, eos=11),
    "whitespace": _Defaults(bos=11, eos=11),
    "gemma4": _Defaults(add_bos=True),
    "t5": _Defaults(eos=1, unk=2, add_eos=True, needs_unk=True),
    "rwkv": _Defaults(byte_tokens=True),
    "plamo2": _Defaults(bos=1, eos=2, byte_tokens=True),
}
# Pre-tokenizers of the gpt2 kind which add a BOS unless the file says no.
_PRE_ADDS_BOS = frozenset(
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "chameleon"]
)
_PRE_WITHOUT_BOS = frozenset(["chatglm-bpe", "glm4", "glm5"])
_PRE_ADDS_SEP = frozenset(["jina-v1-en", "jina-v2-code", "roberta-bpe"])


def check_tokenizer(header: GgufHeader) -> int:
    """The number of tokens. Raises `ModelLoadError` when the vocabulary is missing, inconsistent or would kill llama.cpp."""
    model = header.get_string("tokenizer.ggml.model")
    if model is None:
        raise header.error("has no tokenizer (tokenizer.ggml.model is missing)")
    if model not in _DEFAULTS:
        raise header.error(f"has a tokenizer of kind {model!r}; supported are {', '.join(sorted(_DEFAULTS))}")
    tokens = _strings(header, "tokenizer.ggml.tokens")
    if not tokens:
        raise header.error("has no tokens (tokenizer.ggml.tokens is missing or empty)")
    _check_unique(header, tokens)
    _check_parallel(header, "tokenizer.ggml.scores", (GGUFValueType.FLOAT32, GGUFValueType.INT32), len(tokens))
    _check_parallel(header, "tokenizer.ggml.token_type", (GGUFValueType.INT32,), len(tokens))
    types = header.metadata.get("tokenizer.ggml.token_type")
    if model == "bert" and types is not None and (types.data[: len(tokens)] == TokenType.BYTE).any():
        raise header.error("has a byte token in a WordPiece vocabulary")
    if model in MERGE_TOKENIZERS:
        _check_merges(header)
    _check_special_ids(header, len(tokens))
    _check_added(header, model, len(tokens))
    if _DEFAULTS[model].byte_tokens:
        _check_byte_tokens(header, tokens)
    return len(tokens)


def _strings(header: GgufHeader, key: str) -> list[bytes] | None:
    """An array of strings, each cut at a NUL: two tokens that differ only behind one are the same token to llama.cpp."""
    value = header.metadata.get(key)
    if value is None:
        return None
    if value.item_type is not GGUFValueType.STRING:
        raise header.error(f"{key} is {_describe(value)}, expected an array of strings")
    return [until_nul(text) if b"\0" in text else text for text in value.data]


def _describe(value: GgufValue) -> str:
    return f"of type {value.type.name}" if value.item_type is None else f"an array of {value.item_type.name}"


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


def _check_parallel(header: GgufHeader, key: str, kinds: tuple[GGUFValueType, ...], n_tokens: int) -> None:
    value = header.metadata.get(key)
    if value is None:
        return
    if value.item_type not in kinds:
        raise header.error(f"{key} is {_describe(value)}, expected an array of {kinds[0].name}")
    if len(value.data) < n_tokens:
        raise header.error(f"{key} has {len(value.data)} entries for {n_tokens} tokens")


def _check_merges(header: GgufHeader) -> None:
    merges = _strings(header, "tokenizer.ggml.merges")
    if merges is None:
        if header.get_string("tokenizer.ggml.pre") == "kimi-k2":
            return
        raise header.error("has a byte-pair tokenizer without tokenizer.ggml.merges")
    for i, merge in enumerate(merges):
        if b" " not in merge[1:-1]:
            raise header.error(f"merge {i} is {merge!r}, expected two pieces with a space between them")


def _check_special_ids(header: GgufHeader, n_tokens: int) -> None:
    for key in header.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            token = header.get_int(key)
            if token is not None and token not in (-1, NO_TOKEN) and not 0 <= token < n_tokens:
                raise header.error(f"{key} is {token}, but the vocabulary has {n_tokens} tokens")


def _check_added(header: GgufHeader, model: str, n_tokens: int) -> None:
    """Tokens that are added to every prompt must exist. A WordPiece tokenizer adds both of its own whatever the flags say."""
    defaults = _DEFAULTS[model]
    pre = header.get_string("tokenizer.ggml.pre") or ""
    always = model == "bert"
    gemma4 = model == "gemma4" or pre in ("gemma4", "granite-embed-multi-311m")
    adds_bos = _flag(header, "add_bos_token", defaults.add_bos or (model == "gpt2" and pre in _PRE_ADDS_BOS)) or gemma4
    adds_eos = _flag(header, "add_eos_token", defaults.add_eos)
    adds_sep = _flag(header, "add_sep_token", model == "gpt2" and pre in _PRE_ADDS_SEP)
    default_bos = None if pre in _PRE_WITHOUT_BOS else defaults.bos
    if adds_bos or always:
        _require(header, "bos", default_bos, n_tokens)
    if adds_eos:
        _require(header, "eos", defaults.eos, n_tokens)
    if adds_sep or always:
        _require(header, "seperator", defaults.sep, n_tokens)
    if defaults.needs_unk:
        _require(header, "unknown", defaults.unk, n_tokens)


def _flag(header: GgufHeader, name: str, default: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if value.type is not GGUFValueType.BOOL:
        raise header.error(f"tokenizer.ggml.{name} is {_describe(value)}, expected BOOL")
    return bool(value.data)


def _require(header: GgufHeader, name: str, default: int | None, n_tokens: int) -> None:
    token = header.get_int(f"tokenizer.ggml.{name}_token_id")
    if token in (None, -1, NO_TOKEN):
        token = default
    if token is None or token >= n_tokens:
        raise header.error(f"needs a token which its vocabulary of {n_tokens} lacks: tokenizer.ggml.{name}_token_id is missing")


def _check_byte_tokens(header: GgufHeader, tokens: list[bytes]) -> None:
    """Each byte needs the token <0xXX> (rwkv: an escape), or itself as a token, as the last resort for text that has no other."""
    known = set(tokens)
    missing = [byte for byte in range(256) if known.isdisjoint(_spellings(byte))]
    if missing:
        raise header.error(f"has no token for {len(missing)} of the 256 bytes, as 0x{missing[0]:02X}: some text would abort llama.cpp")


def _spellings(byte: int) -> set[bytes]:
    escape = chr(byte).encode("unicode_escape")
    return {b"<0x%02X>" % byte, bytes([byte]), b"\\x%02x" % byte, escape, b"\\" + bytes([byte])}
