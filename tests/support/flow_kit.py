"""What the stories of the KV cache share: engines on the stub with a real store in a directory, and
what they answer without one.

The stub asserts that every row which is put back is that of its token. Reads run at once on the
engine's thread unless a test holds them.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache_store import Store, StoreConfig, StoreStats, TierConfig
from cache_store.testing import FaultyTier
from erllama.cache.policy import CachePolicy
from erllama.events import Done
from erllama.kv.layout import KvKind
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import Rig, make_rig, request

WAIT_S = 20  # far above what any wait of a test takes
N_CTX = 2048
SAMPLED = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHECKPOINT_KINDS = [KvKind.RECURRENT, KvKind.WINDOW, KvKind.HYBRID]
POLICY = CachePolicy(
    min_tokens=16,
    cold_min_tokens=16,
    cold_step_tokens=512,
    checkpoint_interval=512,
    continued_interval=10_000,
    logits_share=0,
    restore_always=True,
    share_wait_s=0,
)
LOGITS = replace(POLICY, logits_share=1e9)


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=n_tokens)


def rig_of(
    store: Store | None,
    policy: CachePolicy = POLICY,
    *,
    kind: KvKind = KvKind.ATTENTION,
    n_parallel: int = 4,
    **more: object,
) -> Rig:
    backend = StubBackend(
        N_CTX, n_parallel, reply_tokens=0, kind=kind, **{k: more.pop(k) for k in list(more) if k == "fail_tokens"}
    )
    return make_rig(
        backend,
        store=store,
        policy=policy,
        **{"n_ctx": N_CTX, "n_parallel": n_parallel, "n_batch": 512, "prefill_slice": 256, **more},
    )


def ask(rig: Rig, name: str, tokens: list[int], **params: object) -> Done:
    """Serve one request to its end."""
    rig.submit(request(name, tokens, **{"max_tokens": 4, **params}))
    rig.run()
    assert all(image.closed for image in rig.backend.images)
    return rig.done(name)


def reply(tokens: list[int], **params: object) -> list[int]:
    """What an engine without any cache answers."""
    rig = rig_of(None)
    ask(rig, "it", tokens, **params)
    return rig.ids("it")


def problem(rig: Rig) -> str:
    return rig.engine.stats.cache.last_problem


def open_store(path: Path, **settings: object) -> Store:
    store = Store(StoreConfig(tiers=(TierConfig(str(path)),), **settings))
    assert store.wait_loaded(WAIT_S)
    return store


def flushed(store: Store) -> StoreStats:
    assert store.flush(WAIT_S)
    return store.stats()


def lookups_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that each lookup found."""
    found: list[int] = []
    lookup = store.lookup

    def spy(*args: object, **more: object) -> object:
        plan = lookup(*args, **more)
        found.append(plan.n_tokens)
        return plan

    monkeypatch.setattr(store, "lookup", spy)
    return found


@dataclass
class Faulty:
    store: Store
    tier: FaultyTier
