"""A request becomes a sequence: first the checks that only the model can make, then the sequence
itself.

Any thread may check: the checks read only what never changes. A grammar takes milliseconds, the
first of a model a second. llama.cpp refuses a whole batch, or ends the process, where the checks
would have refused one request. Only the engine thread makes sequences.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace

from cache_store import ChainKey, TokenChain, tenant_root
from erllama.backend.base import Backend
from erllama.engine.reply_events import fast_forward
from erllama.errors import ContextOverflow, ErllamaError, InvalidParameter, NotSupported
from erllama.request import GenerationRequest
from erllama.sequence.sampling import TokenSampler
from erllama.sequence.sequence import Sequence
from erllama.sequence.text_stream import TextStream
from erllama.stats import AdapterSet


def check_request(request: GenerationRequest, backend: Backend) -> None:
    """Raise a `RequestError`, with field and limit, when this model can never serve `request`."""
    if not backend.generates:
        raise NotSupported("this model embeds or ranks texts; it cannot generate any", param="model")
    n_prompt, wanted = len(request.prompt_tokens), 0 if request.max_tokens == 0 else 1
    if n_prompt + wanted > backend.n_ctx:
        raise ContextOverflow(
            f"the prompt has {n_prompt} tokens and the context of this model holds {backend.n_ctx}, "
            f"of which {wanted} must stay free to generate",
            param="prompt",
            n_prompt=n_prompt,
            n_most=backend.n_ctx - wanted,
        )
    check_token_ids(request.prompt_tokens, backend.n_vocab, "prompt")
    _check_resumed(request, backend)
    check_token_ids(request.prediction, backend.n_vocab, "prediction")
    check_token_ids([token for token, _ in request.sampling.logit_bias], backend.n_vocab, "logit_bias")
    constraint = request.constraint
    if constraint is not None:
        backend.grammars.check(constraint)


def _check_resumed(request: GenerationRequest, backend: Backend) -> None:
    n_prompt, n_resumed = len(request.prompt_tokens), len(request.resumed)
    if n_prompt + n_resumed > backend.n_ctx:
        raise ContextOverflow(
            f"the prompt has {n_prompt} tokens and resumed {n_resumed}; the context of this model holds "
            f"{backend.n_ctx}",
            param="resumed",
        )
    check_token_ids(request.resumed, backend.n_vocab, "resumed")
    if not backend.eog_tokens.isdisjoint(request.resumed):
        raise InvalidParameter("resumed holds a token that ends a reply; nothing can follow it", param="resumed")


def check_token_ids(tokens: Collection[int], n_vocab: int, name: str) -> None:
    """Raise `InvalidParameter` unless every id is in 0 .. n_vocab - 1."""
    if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
        bad = next(token for token in tokens if not 0 <= token < n_vocab)
        raise InvalidParameter(f"{name} holds token id {bad}; the vocabulary has ids 0 to {n_vocab - 1}", param=name)


def new_sequence(
    request: GenerationRequest, backend: Backend, adapters: AdapterSet, root: ChainKey, submitted_ns: int
) -> Sequence:
    """A queued sequence, where an earlier run of `request` left it. `root` is that of KV of no salt.
    Raises `InvalidParameter` for a grammar or resumed ids that fail.
    """
    params = request.sampling
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    constraint = request.constraint
    tokens = [*request.prompt_tokens, *request.resumed]
    matcher = None if constraint is None else backend.grammars.matcher(constraint)
    sampler = TokenSampler(
        params,
        tokens,
        matcher,
        banned=backend.eog_tokens if request.ignore_eos else (),
        keeps_drawn=request.post_sampling,
    )
    del matcher  # the sampler lets go of it, also where an error keeps this frame
    sequence = Sequence(
        request=request,
        given=TokenChain(tenant_root(root, request.salt), tokens),
        n_ctx=backend.n_ctx,
        adapters=adapters,
        sampler=sampler,
        text=TextStream(request.stop),
        tokens=tokens,
        submitted_ns=submitted_ns,
        shown={token: text.encode() for token, text in request.shown},
    )
    try:
        fast_forward(sequence, backend.piece)
    except ErllamaError:
        sequence.sampler.close()
        raise
    return sequence
