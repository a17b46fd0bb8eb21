"""Makes the sequence of a request. Engine thread only."""

from __future__ import annotations

import secrets
from dataclasses import replace

from cache_store import ChainKey
from erllama.adapters import AdapterSet
from erllama.backend import Backend
from erllama.errors import ErllamaError
from erllama.reply import replay
from erllama.request import GenerationRequest
from erllama.sampling import TokenSampler
from erllama.sequence import Sequence
from erllama.text_stream import TextStream


def new_sequence(request: GenerationRequest, backend: Backend, adapters: AdapterSet, root: ChainKey, submitted_ns: int) -> Sequence:
    """A queued sequence, where an earlier run of `request` left it. Raises `InvalidParameter` for a grammar or resumed ids that fail."""
    params = request.sampling
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    grammar = None if request.grammar is None else backend.new_grammar(request.grammar)
    tokens = [*request.prompt_tokens, *request.resumed]
    sequence = Sequence(
        request=request,
        root=root,
        n_ctx=backend.n_ctx,
        adapters=adapters,
        sampler=TokenSampler(params, tokens, grammar, banned=backend.eog_tokens if request.ignore_eos else ()),
        text=TextStream(request.stop),
        tokens=tokens,
        submitted_ns=submitted_ns,
    )
    try:
        replay(sequence, backend.piece)
    except ErllamaError:
        sequence.sampler.close()
        raise
    return sequence
