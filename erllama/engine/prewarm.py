"""Puts the stored prefixes that are worth most back into the context before anyone asks for them.
Any thread but the engine's.

Nothing is computed: what cannot be restored is given up. Nobody's KV is given up for it: only
sequence ids that hold nothing are filled. Least valuable first, so that later requests take the id
of the most valuable one last. Whatever goes wrong is logged and costs nothing else. `give_up` is
`time.monotonic()` in seconds.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from cache_store import ChainKey, Store, tenant_root
from erllama.cache.live import Ids
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop
from erllama.errors import ErllamaError
from erllama.request import GenerationRequest, Prompt
from erllama.stream import InferStream, seconds_until

log = logging.getLogger(__name__)

T = TypeVar("T")


def prewarm(
    loop: EngineLoop, store: Store, *, limit: int, n_ctx: int, give_up: float, salts: Iterable[str] = ("",)
) -> int:
    """Restore up to `limit` prefixes of requests of these `salts` into empty ids; how many of them are
    live in the end.
    """
    try:
        if not store.wait_loaded(seconds_until(give_up)):
            log.warning("nothing is warmed: the store's index was not loaded in time")
            return 0
        root, n_empty = _ask(loop, lambda engine: (engine.kv_root, engine.n_empty_ids), give_up)
        hot = _hottest(store, root, tuple(salts), limit, give_up)
        hot = [(tokens[:n_ctx], salt) for tokens, salt in hot]
        cold = _ask(loop, lambda engine: [one for one in hot if not engine.is_live(*one)], give_up)
        for tokens, salt in reversed(cold[:n_empty]):
            _restore(loop, tokens, salt, give_up)
        return _ask(loop, lambda engine: sum(engine.is_live(*one) for one in hot), give_up)
    except (ErllamaError, TimeoutError) as error:  # the engine stops, or is too busy to be asked
        log.warning("warming ended early: %r", error)
        return 0


def _hottest(store: Store, root: ChainKey, salts: Sequence[str], limit: int, give_up: float) -> list[tuple[Ids, str]]:
    """The best prefix of each salt, then the second of each, and so on: values of different roots do not
    compare.
    """
    of_salts = [store.hottest(tenant_root(root, salt), limit, seconds_until(give_up)) for salt in salts]
    turns = zip_longest(*([(tokens, salt) for tokens in found] for salt, found in zip(salts, of_salts, strict=True)))
    return [one for turn in turns for one in turn if one is not None][:limit]


def _restore(loop: EngineLoop, tokens: Ids, salt: str, give_up: float) -> None:
    request = GenerationRequest(
        f"prewarm-{uuid.uuid4().hex}", Prompt.of(tokens.tolist()), max_tokens=0, restore_only=True, salt=salt
    )
    stream = InferStream(request.request_id, loop.cancel)
    try:
        loop.submit(request, stream)
        stream.result(seconds_until(give_up))
    except (ErllamaError, TimeoutError) as error:
        log.warning("a stored prefix could not be warmed: tokens=%d error=%r", len(tokens), error)


def _ask(loop: EngineLoop, function: Callable[[Engine], T], give_up: float) -> T:
    return loop.call(function).result(seconds_until(give_up))
