"""Models whose state cannot be cut by token: sliding window (gemma3), recurrent (mamba), layers of
both kinds (jamba).

Never silently wrong, never silently computed again: after a release, a restart and with a longer
prompt, replies are those of a cold run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

pytestmark = pytest.mark.model

KINDS = {"tiny-gemma3": "window", "tiny-mamba": "recurrent", "tiny-jamba": "hybrid", "tiny-qwen3": "attention"}
POLICY = CachePolicy(
    min_tokens=32,
    cold_min_tokens=32,
    cold_step_tokens=256,
    checkpoint_interval=512,
    restore_min_tokens=1,
    restore_always=True,
)
PROMPT = [7 + i * 13 % 200 for i in range(900)]
MORE = [11 + i * 17 % 200 for i in range(40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for shape in KINDS:
        write_random_model(
            folder / f"{shape}.gguf",
            SHAPES[shape],
            vocab=None,
            file_type="Q8_0" if shape == "tiny-qwen3" else "F16",
            seed=1,
        )
    return folder


@contextmanager
def model(path: Path, store: Path | None) -> Iterator[Model]:
    tiers = None if store is None else StoreConfig(tiers=(TierConfig(str(store)),))
    with Model(
        path=str(path), n_ctx=2048, n_parallel=2, n_threads=1, type_k="q8_0", type_v="q8_0", store=tiers, policy=POLICY
    ) as one:
        yield one


def ask(one: Model, tokens: list[int]):
    return one.complete(tokens, response_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("shape", KINDS)
def test_a_restart_restores_every_kind_of_model(models, tmp_path, shape):
    path = models / f"{shape}.gguf"
    with model(path, None) as one:
        info = one.model_info()
        assert (info.kv_kind, info.kv_problem, info.tier) == (KINDS[shape], "", "none")
        first = ask(one, PROMPT)
        longer = [*PROMPT, *first.tokens, *MORE]
    with model(path, None) as one:
        cold = ask(one, longer)
        assert cold.stats.cached_tokens == 0
    with model(path, tmp_path) as one:
        assert one.model_info().tier == "disk"
        assert ask(one, PROMPT).tokens == first.tokens
        one.evict()
        again = ask(one, PROMPT)
        # the stored logits: nothing is computed
        assert (again.tokens, again.stats.cached_tokens) == (first.tokens, len(PROMPT))
    with model(path, tmp_path) as one:
        restored = ask(one, longer)
    assert restored.tokens == cold.tokens
    assert restored.stats.cached_tokens >= len(PROMPT) + 11  # the checkpoint of the finish save: all but the last token
    assert restored.stats.cache_tier == "disk"


@pytest.mark.parametrize("shape", ["tiny-gemma3", "tiny-mamba", "tiny-jamba"])
def test_a_prompt_that_branches_off_goes_back_to_the_last_checkpoint_before(models, tmp_path, shape):
    path = models / f"{shape}.gguf"
    branch = [*PROMPT[:700], *MORE]
    with model(path, None) as one:
        cold = ask(one, branch)
    with model(path, tmp_path) as one:
        ask(one, PROMPT)
        live = ask(one, branch)
        one.evict()
    with model(path, tmp_path) as one:
        restored = ask(one, branch[: len(branch)])
    assert live.tokens == restored.tokens == cold.tokens
    assert restored.stats.cached_tokens >= 512  # checkpoint_interval
