"""A GBNF grammar as llama.cpp runs it: asks about one token, masks a vocabulary, advances. Engine thread only.

llama.cpp keeps every derivation that is still possible, and an ambiguous grammar can double their number with each token: three rules can
cost 2 s for the 13th token and 20 s for the 14th. No inspection decides that beforehand, so the gate measures: a single question
that takes longer than `_MAX_SLOW_S` ends the sequence, before the next one could stall the engine for long.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np

from erllama.errors import InvalidParameter
from erllama.grammar.gbnf import JSON_OBJECT_GBNF, check_gbnf
from erllama.grammar.json_schema import schema_to_gbnf
from erllama.llama.library import captured_errors
from erllama.llama.vocab import LlamaVocab
from erllama.sequence.sampling import Logits

# struct llama_token_data { llama_token id; float logit; float p; }
_MAX_SLOW_S = 0.25  # asking about one token takes microseconds, masking 152 k of them 0.05 s

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@contextmanager
def _bounded() -> Iterator[None]:
    started = time.monotonic()
    yield
    elapsed_s = time.monotonic() - started
    if elapsed_s > _MAX_SLOW_S:
        raise InvalidParameter(f"the grammar is too ambiguous: one token took {elapsed_s:.1f} s, at most {_MAX_SLOW_S} s", param="grammar")


def _candidate_array(candidates: np.ndarray) -> llama_cpp.llama_token_data_array:
    data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(data=data, size=candidates.shape[0], selected=-1, sorted=False)


class LlamaGate:
    """The state of one derivation. See `GrammarGate` for the contract."""

    def __init__(self, vocab: LlamaVocab, gbnf: str) -> None:
        check_gbnf(gbnf)
        with captured_errors() as errors:
            self._sampler = llama_cpp.llama_sampler_init_grammar(vocab.pointer, gbnf.encode(), b"root")
        if not self._sampler:
            raise InvalidParameter(f"grammar does not parse: {'; '.join(errors) or 'llama.cpp gives no reason'}", param="grammar")
        self._one = np.zeros(1, dtype=_CANDIDATE)

    def allows(self, token: int) -> bool:
        self._one[0] = (token, 0.0, 0.0)
        with _bounded():
            llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(_candidate_array(self._one)))
        return bool(np.isfinite(self._one["logit"][0]))

    def mask(self, logits: Logits) -> None:
        everything = np.empty(logits.shape[0], dtype=_CANDIDATE)
        everything["id"] = np.arange(logits.shape[0], dtype=np.int32)
        everything["logit"] = logits
        everything["p"] = 0.0
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(_candidate_array(everything)))
        logits[everything["id"]] = everything["logit"]

    def accept(self, token: int) -> None:
        with _bounded():
            llama_cpp.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        if self._sampler:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None


__all__ = ["JSON_OBJECT_GBNF", "check_grammar", "schema_to_gbnf"]

_REFUSED = (
    "llama.cpp refuses the grammar: a <token> in it is not exactly one token of this model, a repeated item may be empty, or nested "
    "repetitions multiply to more than 2000 rules"
)


def check_grammar(gbnf: str, vocab: Any, *, param: str = "grammar") -> None:
    """Raise `InvalidParameter(param=param)` unless llama.cpp can sample with `gbnf`. `vocab` is a `llama_vocab` pointer."""
    check_gbnf(gbnf, param=param)
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    if not sampler:
        raise InvalidParameter(_REFUSED, param=param)
    llama_cpp.llama_sampler_free(sampler)
