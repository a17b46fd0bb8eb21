"""Vocabularies for random-weight models: two small synthetic ones, or the `tokenizer.*` metadata of
another GGUF, copied.

The synthetic ones are complete: every byte (or every ASCII character) has a token, so that any text
tokenises, and special tokens and a ChatML template make chat requests work. They are functions of
nothing, hence identical in every file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf import GGUFWriter, TokenType

from erllama.gguf.header import read_header

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_TEMPLATE = "tokenizer.chat_template"
N_MERGES = 320

# Frequent English words, the text that the merges are learnt from.
_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one had
by word but not what all were we when your can said there use an each which she do how their if will
up other about out many then them these so some her would make like him into time has look two more
write go see number no way could people my than first water been call who oil its now find long down
day did get come made may part over new sound take only little work know place year live me back
give most very after thing our just name good sentence man think say great where help through much
before line right too mean old any same tell boy follow came want show also around form three small
set put end does another well large must big even such because turn here why ask went men read need
land different home us move try kind hand picture again change off play spell air away animal house
point page letter mother answer found study still learn should world high every near add food
between own below country plant last school father keep tree never start city earth eye light
thought head under story saw left few while along might close something seem next hard open example
begin life always those both paper together got group often run important until children side feet
car mile night walk white sea began grow took river four carry state
"""
WORDS = _TEXT.split()


def _byte_characters() -> list[str]:
    """GPT-2's map from byte to printable character (`bytes_to_unicode` in openai/gpt-2
    encoder.py).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _learn_merges(n_merges: int) -> list[tuple[str, str]]:
    """Plain BPE over WORDS, each with its leading space; ties go to the smaller pair, so the result
    is always the same.
    """
    space = _byte_characters()[ord(" ")]
    words = [[space, *word] for word in WORDS] + [list(word) for word in WORDS]
    merges: list[tuple[str, str]] = []
    for _ in range(n_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_join(word, best) for word in words]
    return merges


def _join(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def add_byte_level_vocabulary(writer: GGUFWriter) -> int:
    """256 bytes, N_MERGES merges and three specials; returns the number of tokens."""
    merges = _learn_merges(N_MERGES)
    plain = [*_byte_characters(), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(plain), END_OF_TEXT, IM_START, IM_END]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 3) + [TokenType.CONTROL] * 3)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(IM_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML_TEMPLATE)
    return len(tokens)


def add_word_piece_vocabulary(writer: GGUFWriter) -> int:
    """BERT's scheme as llama.cpp stores it: a word start carries U+2581, a continuation is bare.
    Returns the number of tokens.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    starts = ["▁" + piece for piece in dict.fromkeys([*characters, *WORDS])]
    tokens = [*specials, *starts, *characters]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(specials) + [TokenType.NORMAL] * (len(tokens) - len(specials)))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_uint32("tokenizer.ggml.cls_token_id", 2)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    return len(tokens)


def copy_vocabulary(
    writer: GGUFWriter,
    source: Path,
    *,
    added: Mapping[str, TokenType] = MappingProxyType({}),
    chat_template: str | None = None,
) -> int:
    """Copy every `tokenizer.*` value of `source` (a vocabulary-only GGUF will do); returns the
    number of tokens.

    `added` tokens stand behind its own, `chat_template` in the place of its own: a family's models
    share a vocabulary but for those.
    """
    header = read_header(source)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise header.error("has no tokenizer.ggml.tokens to copy")
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": list(added),
        "tokenizer.ggml.token_type": list(added.values()),
        "tokenizer.ggml.scores": [0.0] * len(added),
    }
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.") and not (key == CHAT_TEMPLATE and chat_template is not None):
            data = value.data.tolist() if hasattr(value.data, "tolist") else value.data
            writer.add_key_value(key, [*data, *more[key]] if key in more else data, value.type, value.item_type)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    return len(tokens.data) + len(added)
