"""Models whose state cannot be cut: restored where a checkpoint is, and nowhere else."""

from dataclasses import replace

import pytest

from cache_store import Block, Kind, Store
from erllama.events import CacheHitKind
from erllama.kv.layout import KvKind
from tests.support.flow_kit import CHECKPOINT_KINDS, POLICY, ask, problem, prompt, reply, rig_of

# --- states that cannot be cut --------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_checkpoint_of_a_prompt_serves_the_same_prompt(store: Store, kind: KvKind):
    first = rig_of(store, kind=kind)
    ask(first, "first", prompt(1000))
    rig = rig_of(store, kind=kind)
    stats = ask(rig, "second", prompt(1000)).stats
    assert (stats.cached_tokens, stats.cache_hit_kind) == (1000, CacheHitKind.EXACT)
    assert rig.backend.plans[0] == [(0, 1000, 1)]
    assert rig.ids("second") == first.ids("first")
    assert problem(rig) == ""


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_conversation_is_resumed_at_the_checkpoint_of_its_end(store: Store, kind: KvKind):
    first = rig_of(store, kind=kind)
    ask(first, "first", prompt(700), max_tokens=30)
    longer = [*prompt(700), *first.ids("first"), *prompt(50, 1)]
    rig = rig_of(store, kind=kind)
    assert ask(rig, "second", longer).stats.cached_tokens == 729
    assert rig.ids("second") == reply(longer)
    assert problem(rig) == ""


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
@pytest.mark.parametrize(("n_shared", "n_cached"), [(511, 0), (512, 512), (700, 512), (1024, 1024), (1100, 1024)])
def test_a_prompt_that_branches_off_is_restored_at_the_last_checkpoint_before(
    store: Store, kind: KvKind, n_shared: int, n_cached: int
):
    ask(rig_of(store, kind=kind), "first", prompt(1200))
    other = [*prompt(1200)[:n_shared], 256, *prompt(60, 1)]
    rig = rig_of(store, kind=kind)
    assert ask(rig, "second", other).stats.cached_tokens == n_cached
    assert rig.ids("second") == reply(other)
    assert problem(rig) == ""


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_prompt_that_ends_at_a_checkpoint_without_logits_is_restored_at_an_earlier_one(store: Store, kind: KvKind):
    first = rig_of(store, kind=kind)
    ask(first, "first", prompt(700), max_tokens=30)
    state = [*prompt(700), *first.ids("first")[:-1]]  # what the finish save stands for
    rig = rig_of(store, kind=kind)
    assert ask(rig, "second", state).stats.cached_tokens == 700
    assert rig.ids("second") == reply(state)
    assert problem(rig) == ""


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_checkpoint_is_stored_where_its_rows_end_and_nowhere_else(
    store: Store, kind: KvKind, monkeypatch: pytest.MonkeyPatch
):
    """Slices of 96 tokens end inside of blocks, where a prompt that goes on has no rows to go with
    a checkpoint.
    """
    stored: list[Block] = []
    save = store.save
    monkeypatch.setattr(
        store, "save", lambda blocks, *, wait_s=0.0: (stored.extend(blocks), save(blocks, wait_s=wait_s))[1]
    )
    ask(rig_of(store, kind=kind, prefill_slice=96), "it", prompt(1500))
    ends = {block.id.start for block in stored if block.id.kind is Kind.END}
    assert ends <= {block.id.start + block.id.n_tokens for block in stored if block.id.kind is Kind.ROWS}
    assert {1500, 1503} <= ends


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_continued_checkpoints_come_once_per_interval(store: Store, kind: KvKind):
    rig = rig_of(store, replace(POLICY, continued_interval=300), kind=kind)
    ask(rig, "it", prompt(300), max_tokens=1000)
    assert rig.engine.stats.cache.saves == {"cold": 1, "continued": 3, "finish": 1}


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_live_state_that_cannot_be_cut_is_gone_on_with_in_place_or_not_at_all(kind: KvKind):
    rig = rig_of(None, kind=kind)
    ask(rig, "first", prompt(300), max_tokens=5)
    longer = [*prompt(300), *rig.ids("first"), 1, 2, 3]
    assert ask(rig, "side", [*prompt(300)[:200], 1]).stats.cached_tokens == 0
    assert ask(rig, "on", longer).stats.cached_tokens == 304
    assert rig.ids("on") == reply(longer)


def test_an_opaque_state_is_served_and_left_alone(store: Store):
    rig = rig_of(None, kind=KvKind.OPAQUE)
    ask(rig, "first", prompt(300))
    assert rig.ids("first") == reply(prompt(300))
    rig.engine.evict()
    assert ask(rig, "second", prompt(300)).stats.cached_tokens == 0
