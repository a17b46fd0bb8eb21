"""Holds a sequence to a constraint: asks about one token, masks a vocabulary, advances.

A `GrammarCompiler` belongs to a vocabulary. `check` compiles a constraint, from any thread, before
the request is queued; `matcher` then gives a sequence its own copy in microseconds on the engine
thread. llguidance's limits bound what a compilation and a step may cost; a step that would exceed
them ends its sequence.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from erllama.grammar.constraint import Constraint
from erllama.grammar.finite import NumberTokens, NumberWatch
from erllama.grammar.lark import compile_lark, complete_lark
from erllama.grammar.tokenizer import TokenTable, build_tokenizer

_MAX_COMPILED = 64  # agents send the same schemas with every turn
_MAX_REASON_CHARS = 300
# of the Lark text, which is ours
_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?|^error: ")
# A step costs some 20k items or 14k units of fuel per millisecond, so that none holds the engine
# for more than 15 ms.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=300_000, max_items_in_row=2000,
    max_lexer_states=50_000,
    max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip


class ConstraintMatcher:
    """The state of one reply under a constraint: a `GrammarMatcher`. Raises `InvalidParameter`
    where llguidance meets a limit. `n_vocab` is the tokenizer's.
    """

    def __init__(
        self, state: LLMatcher, constraint: Constraint, eog: frozenset[int], n_vocab: int, numbers: NumberTokens,
        begun: bytes = b"",
    ) -> None:  # fmt: skip
        self._state = state
        self._constraint = constraint
        self._eog = eog
        self._ends = sorted(eog)
        self._numbers = numbers
        self._watch = NumberWatch(numbers, self._follows, begun) if constraint.has_schema else None
        self._bits = np.zeros((n_vocab + 31) // 32 * 4, dtype=np.uint8)  # llguidance writes whole words

    @property
    def param(self) -> str:
        return self._constraint.param

    def allows(self, token: int) -> bool:
        if token in self._eog:
            return self._state.is_accepting() and not self._failed()
        follows = self._follows(token) or self._failed()
        return follows and not (self._watch and self._watch.forbids(token))

    def _follows(self, token: int) -> bool:
        return self._state.validate_tokens([token]) == 1

    def allowed(self, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens may come next. Shape (n_vocab,)."""
        self._state.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._failed()
        allowed = np.unpackbits(self._bits, count=n_vocab, bitorder="little").view(np.bool_)
        allowed[[token for token in self._watch.forbidden() if token < n_vocab] if self._watch else []] = False
        allowed[self._ends] = self._state.is_accepting()  # "any token but this one" (`!<[7]>`) means none of these
        return allowed

    def accept(self, token: int) -> None:
        if token in self._eog:
            return
        if not self._state.consume_token(token):
            self._failed()
        if self._watch:
            self._watch.accept(token)

    def n_allowed(self, tokens: Sequence[int]) -> int:
        text = tokens[: next((i for i, token in enumerate(tokens) if token in self._eog), len(tokens))]
        return self._state.validate_tokens([*text]) if text else 0

    def forced(self) -> bytes:
        # of a copy: with this state llguidance would ask for a tokenizer, which it has not got
        return self._state.deep_copy().compute_ff_bytes()

    def _failed(self) -> bool:
        """False; raises when llguidance has given up."""
        if self._state.is_error():
            raise self._constraint.refusal(_reason(self._state.get_error()))
        return False

    def copy(self) -> ConstraintMatcher:
        """Another one in the same state."""
        begun = self._watch.begun if self._watch else b""
        return ConstraintMatcher(
            self._state.deep_copy(), self._constraint, self._eog, self._bits.size * 8, self._numbers, begun
        )


class GrammarCompiler:
    """Compiles constraints for one vocabulary. Thread-safe; the table is read on first use. One
    thread uses all of its matchers.
    """

    def __init__(self, read_table: Callable[[], TokenTable]) -> None:
        self._read_table = read_table
        self._building = threading.Lock()
        self._table: TokenTable | None = None
        self._tokenizer: LLTokenizer | None = None
        self._numbers = NumberTokens(())
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Constraint, ConstraintMatcher] = OrderedDict()

    def prepare(self) -> None:
        """Build the table now. Idempotent."""
        self._built()

    def check(self, constraint: Constraint) -> None:
        """Raise `InvalidParameter`, which names the constraint's field, unless it can be followed.
        Milliseconds after `prepare`.
        """
        self._get(constraint)

    def matcher(self, constraint: Constraint) -> ConstraintMatcher:
        """A matcher at the start of a reply. Microseconds after `check`; raises what that
        raises.
        """
        return self._get(constraint).copy()

    def _get(self, constraint: Constraint) -> ConstraintMatcher:
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is not None:
                self._compiled.move_to_end(constraint)
                return compiled
        compiled = self._compile(constraint)
        with self._lock:
            self._compiled[constraint] = compiled
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, constraint: Constraint) -> ConstraintMatcher:
        tokenizer, table = self._built()
        lark = complete_lark(constraint, table.token_id)
        state = compile_lark(lark, tokenizer, _LIMITS)
        if state.is_error():
            raise constraint.refusal(_reason(state.get_error()))
        compiled = ConstraintMatcher(state, constraint, table.eog, tokenizer.vocab_size, self._numbers)
        if not compiled.allowed(tokenizer.vocab_size).any():
            raise constraint.refusal("no text fits it")
        return compiled

    def _built(self) -> tuple[LLTokenizer, TokenTable]:
        with self._building:
            if self._tokenizer is None or self._table is None:
                self._table = self._read_table()
                self._tokenizer = build_tokenizer(self._table)
                self._numbers = NumberTokens(self._table.pieces)
            return self._tokenizer, self._table


def _reason(error: str) -> str:
    """What llguidance says, in one line, without its quotes of a grammar that the caller has never
    seen.
    """
    if error.startswith("NoExtension"):
        return "no text fits it"
    if "initial_lexer_fuel" in error:
        return "its regular expressions are too complex"
    lines = error.strip().splitlines()
    says = next(
        (line.strip() for line in lines if line.strip().startswith("error: ")),
        lines[0] if lines else "llguidance gives no reason",
    )
    says = _PLACE.sub("", says)
    return says if len(says) <= _MAX_REASON_CHARS else says[:_MAX_REASON_CHARS] + "..."
