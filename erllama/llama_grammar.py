"""The last word on a grammar: llama.cpp's own parser.

`check_grammar` is what a request's `grammar` must pass before it is queued: our checks first (`grammar.check_gbnf`: llama.cpp aborts the
process on some inputs), then a sampler made and freed for the model's vocabulary. Any thread may call it: a vocabulary is read-only.

llama.cpp returns only NULL and prints the reason to stderr. Few reasons remain after our checks, so the message lists them all.
"""

from __future__ import annotations

from typing import Any

import llama_cpp

from erllama.errors import InvalidParameter
from erllama.grammar import JSON_OBJECT_GBNF, check_gbnf
from erllama.json_schema import schema_to_gbnf

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
