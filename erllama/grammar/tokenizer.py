"""The tokens of a vocabulary as llguidance wants them: a trie of their bytes, built once per
vocabulary and shared by all its matchers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from llguidance import LLTokenizer

from erllama.grammar.constraint import RefusedText


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
        `RefusedText`.
        """
        try:
            token = int(reference[2:-2]) if reference.startswith("<[") else self.pieces.index(reference.encode())
        except ValueError:
            raise RefusedText(f"{reference} is not exactly one token of this model") from None
        if token >= len(self.pieces):
            raise RefusedText(f"{reference} is not in the vocabulary, which has ids 0 to {len(self.pieces) - 1}")
        return token


class AnyTable(TokenTable):
    """Stands for every vocabulary where none is at hand: the 256 bytes and an end. Any token may be
    referred to.
    """

    def __init__(self) -> None:
        super().__init__([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({256}), frozenset({256}))

    def token_id(self, reference: str) -> int:
        return 0


def build_tokenizer(table: TokenTable) -> LLTokenizer:
    """The trie: some 5 us per token, so 0.8 s for a vocabulary of 152 k. Read-only afterwards, any
    thread. It never tokenises, because grammars are compiled without forcing.
    """
    ends = sorted(table.eog) or [len(table.pieces)]  # llguidance needs one, if need be beyond the vocabulary
    wrapper = SimpleNamespace(
        is_tokenizer_wrapper=True,
        tokens=[*table.pieces] if table.eog else [*table.pieces, b"<end>"],
        special_token_ids=sorted({*table.special, *ends}),
        bos_token_id=None,
        eos_token_id=ends[0],
    )
    return LLTokenizer(wrapper, eos_token=ends)  # type: ignore[arg-type]  # it asks for attributes, not for the class
