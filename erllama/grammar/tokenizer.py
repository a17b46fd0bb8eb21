"""The tokens of a vocabulary as llguidance wants them: a trie of their bytes, built once per
vocabulary and shared by all its matchers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLTokenizer

from erllama.grammar.gbnf import MalformedGrammar


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The bytes of every token by id; `special` ids are control tokens, whose bytes are a name and
    never text. `eog` ids end a reply.
    """

    pieces: Sequence[bytes]
    special: frozenset[int]
    eog: frozenset[int]

    def token_id(self, reference: str) -> int:
        """The id that GBNF means by `<[id]>`, or by the text of a token in angle brackets. Raises
        `MalformedGrammar`.
        """
        try:
            token = int(reference[2:-2]) if reference.startswith("<[") else self.pieces.index(reference.encode())
        except ValueError:
            raise MalformedGrammar(f"{reference} is not exactly one token of this model") from None
        if token >= len(self.pieces):
            raise MalformedGrammar(f"{reference} is not in the vocabulary, which has ids 0 to {len(self.pieces) - 1}")
        return token


class AnyTable(TokenTable):
    """Stands for every vocabulary where none is at hand: the 256 bytes and an end. Any token may be
    referred to.
    """

    def __init__(self) -> None:
        super().__init__([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({256}), frozenset({256}))

    def token_id(self, reference: str) -> int:
        return 0


class _Pieces:
    """What `LLTokenizer` reads of a tokenizer; it never tokenises, because grammars are compiled
    without forcing.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        end = [] if table.eog else [b"<end>"]  # llguidance needs one; its id is beyond the vocabulary
        self.tokens = [*table.pieces, *end]
        self.eos_token_ids = sorted(table.eog) or [len(table.pieces)]
        self.eos_token_id = self.eos_token_ids[0]
        self.special_token_ids = sorted({*table.special, *self.eos_token_ids})

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("llguidance tokenises nothing without forcing")


def build_tokenizer(table: TokenTable) -> LLTokenizer:
    """The trie: some 5 us per token, so 0.8 s for a vocabulary of 152 k. Read-only afterwards, any
    thread.
    """
    pieces = _Pieces(table)
    return LLTokenizer(pieces, eos_token=pieces.eos_token_ids)  # type: ignore[arg-type]  # it asks for attributes, not for the class
