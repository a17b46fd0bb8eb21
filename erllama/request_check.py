"""Whether a model can ever serve a request: what only the model knows, on top of what the request checks itself.

Any thread: reads only what never changes. llama.cpp refuses a whole batch, or ends the process, where these checks would have refused
one request.
"""

from __future__ import annotations

from collections.abc import Sequence

from erllama.backend import Backend
from erllama.errors import ContextOverflow, InvalidParameter, NotSupported
from erllama.request import GenerationRequest


def check_request(request: GenerationRequest, backend: Backend) -> None:
    """Raise a `RequestError` that names the field and the limit when the model of `backend` can never serve `request`."""
    if not backend.generates:
        raise NotSupported("this model only embeds; it cannot generate text", param="model")
    n_prompt, wanted = len(request.prompt_tokens), 0 if request.max_tokens == 0 else 1
    if n_prompt + wanted > backend.n_ctx:
        raise ContextOverflow(
            f"the prompt has {n_prompt} tokens and the context of this model holds {backend.n_ctx}, "
            f"of which {wanted} must stay free to generate",
            param="prompt",
        )
    check_token_ids(request.prompt_tokens, backend.n_vocab, "prompt")
    _check_resumed(request, backend)
    check_token_ids([token for token, _ in request.sampling.logit_bias], backend.n_vocab, "logit_bias")


def _check_resumed(request: GenerationRequest, backend: Backend) -> None:
    n_prompt, n_resumed = len(request.prompt_tokens), len(request.resumed)
    if n_prompt + n_resumed > backend.n_ctx:
        raise ContextOverflow(
            f"the prompt has {n_prompt} tokens and resumed {n_resumed}; the context of this model holds {backend.n_ctx}",
            param="resumed",
        )
    check_token_ids(request.resumed, backend.n_vocab, "resumed")
    if not backend.eog_tokens.isdisjoint(request.resumed):
        raise InvalidParameter("resumed holds a token that ends a reply; nothing can follow it", param="resumed")


def check_token_ids(tokens: Sequence[int], n_vocab: int, name: str) -> None:
    """Raise `InvalidParameter` unless every id is in 0 .. n_vocab - 1 (llama.cpp would refuse the whole batch)."""
    if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
        bad = next(token for token in tokens if not 0 <= token < n_vocab)
        raise InvalidParameter(f"{name} holds token id {bad}; the vocabulary has ids 0 to {n_vocab - 1}", param=name)
