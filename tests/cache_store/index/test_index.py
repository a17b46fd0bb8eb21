"""The index: the longest prefix to the token, and evictions that never leave a gap, against a
model that tries everything.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain, root_key
from cache_store.index import crowd, eviction, hot_tokens, radix
from cache_store.index.columns import IndexRow, StoredObject
from cache_store.index.index import Index
from cache_store.index.walk import MAX_UNKNOWN, Hop, Path

ROOT = root_key("namespace")
OTHER_ROOT = root_key("namespace", "tenant")
HOUR = 3600.0

Tokens = tuple[int, ...]


class Clock:
    def __init__(self, now_s: float = 1.7e9) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@cache
def key_of(tokens: Tokens, root: ChainKey = ROOT) -> ChainKey:
    return TokenChain(root, tokens).key_at(len(tokens))


def array(tokens: Tokens | list[int]) -> np.ndarray:
    return np.array(tokens, np.uint32)


def rows(tokens: Tokens, start: int, root: ChainKey = ROOT) -> BlockId:
    """The ROWS object of tokens[start:]."""
    return BlockId(root, Kind.ROWS, key_of(tokens[:start], root), key_of(tokens, root), start, len(tokens) - start)


def end(tokens: Tokens, root: ChainKey = ROOT) -> BlockId:
    return BlockId(root, Kind.END, key_of(tokens, root), key_of(tokens, root), len(tokens))


def replay(tokens: Tokens, digest: str) -> BlockId:
    return BlockId(ROOT, Kind.REPLAY, key_of(tokens), ChainKey(digest * 64))


def cuts_of(n_tokens: int, more: tuple[int, ...] = ()) -> list[int]:
    return sorted({0, n_tokens, *range(0, n_tokens, BLOCK_TOKENS), *(cut for cut in more if cut < n_tokens)})


def chain(tokens: Tokens, *more_cuts: int) -> list[BlockId]:
    """What a save of `tokens` writes, cut at blocks and at `more_cuts`."""
    cuts = cuts_of(len(tokens), more_cuts)
    return [rows(tokens[:stop], start) for start, stop in pairwise(cuts)]


def tokens_of(id: BlockId, tokens: Tokens) -> np.ndarray:
    return array(tokens[id.start : id.start + id.n_tokens])


def add_chain(
    index: Index, tokens: Tokens, *more_cuts: int, tier: int = 0, known: bool = True, n_bytes: int = 10
) -> list[BlockId]:
    ids = chain(tokens, *more_cuts)
    for id in ids:
        index.add(id, tier, n_bytes, tokens_of(id, tokens) if known else None)
    index.check_integrity()
    return ids


def some_tokens(n: int, seed: int = 0) -> Tokens:
    rng = random.Random(seed)
    return tuple(rng.randrange(1 << 32) for _ in range(n))


def victims(index: Index, tier_index: int, n_bytes: int) -> list[BlockId]:
    return [victim.id for victim in index.victims(tier_index, n_bytes)]


def facts(path: Path) -> tuple[object, ...]:
    return path.hops, path.n_tokens, path.ends, path.unknown


def make_index(n_tiers: int = 1) -> Index:
    return Index(n_tiers, Clock())


# Prefixes


def test_an_empty_index_knows_no_prefix():
    index = make_index()
    assert facts(index.longest_prefix(TokenChain(ROOT, [1, 2, 3]))) == ((), 0, (), ())
    assert index.longest_prefix(TokenChain(ROOT, [1, 2, 3]).prefix(3)).n_whole == 0
    assert repr(index) == "<Index 0 objects, bytes by tier: 0; 0 pinned>"
    index.check_integrity()


def test_a_stored_conversation_is_found_whole():
    index, tokens = make_index(), some_tokens(700)
    ids = add_chain(index, tokens)
    index.add(end(tokens), 0, 5)
    path = index.longest_prefix(TokenChain(ROOT, tokens))
    assert facts(path) == (tuple(Hop(id, id.n_tokens) for id in ids), 700, (end(tokens),), ())
    assert repr(path) == "<Path of 700 tokens, 700 in whole objects, 1 ends>"
    assert facts(index.longest_prefix(TokenChain(ROOT, (*tokens, 7)))) == facts(path)


@pytest.mark.parametrize("n_shared", [1, 100, 255, 256, 257, 511, 512, 600, 699])
def test_a_prefix_is_cut_at_the_token(n_shared: int):
    index, tokens = make_index(), some_tokens(700)
    add_chain(index, tokens)
    other = (*tokens[:n_shared], tokens[n_shared] ^ 1, *tokens[n_shared + 1 :])
    for prompt in (other, tokens[:n_shared]):
        path = index.longest_prefix(TokenChain(ROOT, prompt))
        assert path.n_tokens == sum(hop.n_use for hop in path.hops) == n_shared
        assert all(hop.n_use == hop.id.n_tokens for hop in path.hops[:-1])


def test_whole_edges_match_without_known_tokens_and_parts_do_not():
    index, tokens = make_index(), some_tokens(700)
    ids = add_chain(index, tokens, known=False)
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 700
    assert index.longest_prefix(TokenChain(ROOT, tokens[:699])).n_tokens == 512
    index.learn(ids[2], tokens_of(ids[2], tokens))
    index.check_integrity()
    assert index.longest_prefix(TokenChain(ROOT, tokens[:699])).n_tokens == 699


def test_unknown_objects_that_might_help_are_named():
    index, tokens = make_index(), some_tokens(700)
    ids = add_chain(index, tokens, known=False)
    assert index.longest_prefix(TokenChain(ROOT, tokens)).unknown == ()
    assert index.longest_prefix(TokenChain(ROOT, (*tokens, 1))).unknown == ()
    assert index.longest_prefix(TokenChain(ROOT, tokens[:513])).unknown == (ids[2],)
    assert index.longest_prefix(TokenChain(ROOT, tokens[:512])).unknown == ()
    assert index.longest_prefix(TokenChain(ROOT, (*tokens[:300], 1, 2))).unknown == (ids[1],)
    index.learn(ids[1], tokens_of(ids[1], tokens))
    assert index.longest_prefix(TokenChain(ROOT, (*tokens[:300], 1, 2))).unknown == ()


def test_no_more_unknown_objects_than_asked_for():
    index = make_index()
    for token in range(20):
        add_chain(index, (token, 1, 2), known=False)
    assert len(index.longest_prefix(TokenChain(ROOT, [5])).unknown) == MAX_UNKNOWN


def test_an_object_of_another_root_is_not_found():
    index, tokens = make_index(), some_tokens(300)
    add_chain(index, tokens)
    assert index.longest_prefix(TokenChain(OTHER_ROOT, tokens)).n_tokens == 0


def test_two_ways_through_a_block_meet_at_its_end():
    index, tokens = make_index(), some_tokens(600)
    add_chain(index, tokens[:256], 100, 200)
    whole = add_chain(index, tokens)
    path = index.longest_prefix(TokenChain(ROOT, tokens))
    assert [hop.id for hop in path.hops] == whole, "the way with the fewest reads"
    index.remove(whole[0], 0)
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 600
    assert len(index.longest_prefix(TokenChain(ROOT, tokens)).hops) == 5


def test_a_longer_way_that_is_seen_first_is_given_up_for_a_shorter_one():
    index, tokens = make_index(), some_tokens(256)
    add_chain(index, tokens, 50, 70)
    short = add_chain(index, tokens, 100)
    assert [hop.id for hop in index.longest_prefix(TokenChain(ROOT, tokens)).hops] == short


def test_a_whole_object_is_preferred_to_a_part_of_another():
    index = make_index()
    (short,) = add_chain(index, (1, 2))
    add_chain(index, (1, 2, 3))
    assert index.longest_prefix(TokenChain(ROOT, (1, 2))).hops == (Hop(short, 2),)
    assert index.longest_prefix(TokenChain(ROOT, (1, 2, 4))).hops == (Hop(short, 2),)


def test_an_object_that_crosses_a_block_is_on_no_path():
    index, tokens = make_index(), some_tokens(300)
    index.add(rows(tokens, 0), 0, 10, array(tokens))
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 0
    assert victims(index, 0, 1) == [rows(tokens, 0)]


def test_ends_of_every_way_are_listed_in_order():
    index, tokens = make_index(), some_tokens(600)
    add_chain(index, tokens, 100)
    add_chain(index, tokens)
    index.add(end(()), 0, 1)
    index.add(end(tokens), 0, 1)
    index.add(end(tokens[:100]), 0, 1)
    index.add(end((*tokens[:50], 0)), 0, 1)
    assert index.longest_prefix(TokenChain(ROOT, tokens)).ends == (end(()), end(tokens[:100]), end(tokens))
    assert index.longest_prefix(TokenChain(ROOT, tokens[:599])).ends == (end(()), end(tokens[:100]))


def test_a_save_continues_from_the_last_whole_node():
    index, tokens = make_index(), some_tokens(600)
    add_chain(index, tokens, 100)
    assert [
        index.longest_prefix(TokenChain(ROOT, tokens).prefix(upto)).n_whole
        for upto in (0, 99, 100, 255, 256, 599, 600, 900)
    ] == [
        0,
        0,
        100,
        100,
        256,
        512,
        600,
        600,
    ]


def test_a_missing_object_ends_the_prefix():
    index, tokens = make_index(), some_tokens(700)
    ids = add_chain(index, tokens)
    index.remove(ids[1], 0)
    index.check_integrity()
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 256
    index.add(ids[1], 0, 10)
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 700


def test_names_that_contradict_each_other_do_not_confuse():
    index, tokens = make_index(), some_tokens(300)
    ids = add_chain(index, tokens)
    liars = [
        replace(ids[1], start=0),  # a true key at a false length
        BlockId(ROOT, Kind.ROWS, ids[1].key, ids[0].parent, 300, 44),  # back to the root
        BlockId(ROOT, Kind.ROWS, ids[0].parent, ids[0].parent, 0, 0),  # from a node to itself
        replace(ids[0], n_tokens=257),
        BlockId(ROOT, Kind.END, ids[0].parent, ids[0].key, 256),
        BlockId(ROOT, Kind.ROWS, ids[0].parent, ids[0].key, 2**32 - 1, 1),
    ]
    for liar in liars:
        index.add(liar, 0, 10)
        index.check_integrity()
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 300
    assert set(victims(index, 0, 10_000)) == {*ids, *liars}, "nothing is immortal"
    for liar in liars:
        index.remove(liar, 0)
    index.check_integrity()
    assert len(index) == 2


def test_false_tokens_are_replaced_by_those_that_were_read():
    index, tokens = make_index(), some_tokens(200)
    (id,) = add_chain(index, tokens)
    index.learn(id, array(tokens[::-1]))
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 0
    index.learn(id, array(tokens))
    assert index.longest_prefix(TokenChain(ROOT, tokens)).n_tokens == 200
    index.check_integrity()


def test_a_node_with_ten_thousand_children_is_not_scanned(monkeypatch: pytest.MonkeyPatch):
    index, system = make_index(), some_tokens(300)
    add_chain(index, system)
    generator = np.random.default_rng(0)
    suffixes = [tuple(int(token) for token in row) for row in generator.integers(0, 3, (10_000, 100))]
    for suffix in suffixes:
        id = BlockId(ROOT, Kind.ROWS, key_of(system), key_of((*system, *suffix)), 300, 100)
        index.add(id, 0, 1, array(suffix))
    index.check_integrity()
    compared, n_common = [], hot_tokens.n_common
    monkeypatch.setattr(hot_tokens, "n_common", lambda a, b: compared.append(1) or n_common(a, b))
    for trial in range(20):
        prompt = tuple(int(token) for token in generator.integers(0, 3, 100)) if trial % 2 else suffixes[trial * 17]
        shared = max(
            next((i for i, (a, b) in enumerate(zip(prompt, suffix, strict=True)) if a != b), 100) for suffix in suffixes
        )
        assert index.longest_prefix(TokenChain(ROOT, (*system, *prompt))).n_tokens == 300 + shared
    assert len(compared) < 20 * 30


# Tokens of which only the hot ones are kept


def a_crowd(token_bytes: int, n: int = 60) -> tuple[Index, Tokens, list[Tokens]]:
    """An index of conversations that go on from one system prompt."""
    index, system = Index(1, Clock(), token_bytes), some_tokens(300)
    add_chain(index, system)
    replies = [(*some_tokens(20, seed=seed % 7), *some_tokens(180, seed=100 + seed)) for seed in range(n)]
    for reply in replies:
        index.add(rows((*system, *reply), 300), 0, 10, array(reply))
    index.check_integrity()
    return index, system, replies


def after_reading(index: Index, prompt: Tokens, contents: dict[BlockId, Tokens], at_most: int) -> Path:
    """The path once the heads of the objects that it names have been read, as a lookup does."""
    read: set[BlockId] = set()
    path = index.longest_prefix(TokenChain(ROOT, prompt))
    while wanted := [id for id in path.unknown if id not in read][: at_most - len(read)]:
        for id in wanted:
            index.learn(id, array(contents[id]))
        read.update(wanted)
        path = index.longest_prefix(TokenChain(ROOT, prompt))
    return path


@pytest.mark.parametrize("token_bytes", [0, 10_000, 1 << 20])
@pytest.mark.parametrize("n_shared", [1, 15, 16, 19, 20, 21, 150, 199, 200])
def test_a_prefix_is_cut_at_the_token_though_tokens_had_to_go(token_bytes: int, n_shared: int):
    index, system, replies = a_crowd(token_bytes)
    contents = {rows((*system, *reply), 300): reply for reply in replies}
    for reply in replies[::11]:
        prompt = (*system, *reply[:n_shared], 5)
        path = after_reading(index, prompt, contents, at_most=60) if token_bytes else None
        found = index.longest_prefix(TokenChain(ROOT, prompt)) if path is None else path
        whole = 300 + (200 if n_shared == 200 else 0)
        assert found.n_tokens == (300 + n_shared if token_bytes else whole)
        index.check_integrity()


def test_of_a_crowd_only_those_are_read_that_begin_like_the_prompt():
    index, system, replies = a_crowd(token_bytes=5000)
    alike = {rows((*system, *reply), 300) for reply in replies[3::7]}
    unknown = index.longest_prefix(TokenChain(ROOT, (*system, *replies[3][:150]))).unknown
    assert 0 < len(unknown) <= 9
    assert set(unknown) <= alike
    assert index.longest_prefix(TokenChain(ROOT, (*system, *some_tokens(50, seed=9)))).unknown == ()


def test_tokens_stay_within_their_bound_and_those_used_last_stay():
    index, _, _ = a_crowd(token_bytes=12_000)
    ids = [id for row in index.rows(0) if (id := row.id).start == 300]
    assert index._graph.tokens.n_bytes <= 12_000
    kept = [id for id in ids if index.tokens_of(id) is not None]
    assert 5 < len(kept) < 15
    index.touch(kept[:1])
    index.learn(next(id for id in ids if id not in kept), array(some_tokens(200)))
    assert index.tokens_of(kept[0]) is not None
    assert sum(index.tokens_of(id) is not None for id in kept) == len(kept) - 1


def test_a_crowd_that_goes_leaves_nothing():
    index, system, replies = a_crowd(1 << 20)
    for reply in random.Random(1).sample(replies, len(replies)):
        index.remove(rows((*system, *reply), 300), 0)
        index.check_integrity()
    assert index.longest_prefix(TokenChain(ROOT, (*system, *replies[0]))).n_tokens == 300
    assert len(index) == 2


def test_a_tier_may_hold_objects_of_many_gigabytes():
    index, (id,) = make_index(2), chain(some_tokens(20))
    sizes = [(1 << 32) - 3, (1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 48) - 2, 7]
    for tier in (0, 1):
        for n_bytes in sizes:
            index.add(id, tier, n_bytes)
            assert (index.bytes_in(tier), index.sizes([id], tier)) == (n_bytes, {id: n_bytes})
            index.check_integrity()
    index.add(id, 0, 1 << 40)
    index.remove(id, 0)
    assert (index.bytes_in(0), index.stored([id])) == (0, [StoredObject(id, (1,), 7)])


# Tiers, sizes


def test_an_object_is_forgotten_when_no_tier_holds_it():
    index, tokens = make_index(3), some_tokens(200)
    (id,) = chain(tokens)
    index.add(id, 2, 50)
    index.add(id, 0, 70, array(tokens))
    index.add(id, 0, 60)
    assert (index.tiers_of(id), index.stored([id]), len(index)) == ((0, 2), [StoredObject(id, (0, 2), 60)], 1)
    assert [index.bytes_in(tier) for tier in range(3)] == [60, 0, 50]
    assert [index.bytes_in(tier) for tier in range(3)] == [60, 0, 50]
    index.remove(id, 0)
    index.remove(id, 0)
    index.remove(id, 1)
    assert index.has(id)
    index.check_integrity()
    index.remove(id, 2)
    assert (index.has(id), index.tiers_of(id), index.stored([id]), len(index)) == (False, (), [], 0)
    assert [index.bytes_in(tier) for tier in range(3)] == [0, 0, 0]
    index.check_integrity()


@pytest.mark.parametrize(("tier", "n_bytes", "hits"), [(-1, 1, 0), (2, 1, 0), (0, -1, 0), (0, 1 << 48, 0), (0, 1, -1)])
def test_what_is_out_of_range_is_refused(tier: int, n_bytes: int, hits: int):
    index = make_index(2)
    with pytest.raises(ValueError, match="out of range"):
        index.load([IndexRow(end(()), n_bytes, None, hits, 0.0)], tier)
    assert len(index) == 0


def test_tokens_of_another_length_are_refused_and_change_nothing():
    index, tokens = make_index(), some_tokens(20)
    (id,) = chain(tokens)
    with pytest.raises(ValueError, match="19 tokens for an object of 20"):
        index.add(id, 0, 1, array(tokens[:19]))
    assert len(index) == 0
    index.add(id, 0, 1)
    with pytest.raises(ValueError, match="21 tokens"):
        index.learn(id, array((*tokens, 1)))
    index.check_integrity()


def test_what_is_not_known_may_be_touched_removed_and_learned():
    index, tokens = make_index(), some_tokens(20)
    (id,) = chain(tokens)
    index.touch([id])
    index.remove(id, 0)
    index.learn(id, array(tokens))
    assert (len(index), index.has(id)) == (0, False)


def test_what_a_listing_does_not_name_is_forgotten_but_for_what_came_meanwhile():
    index = make_index(2)
    ids = add_chain(index, some_tokens(256 * 5))
    index.add(ids[0], 1, 10)
    with index.listing(0) as is_there:
        is_there(ids[1], 10)
        is_there(ids[3], 77)
        index.remove(ids[4], 0)
        index.add(end((1,)), 0, 5)  # in the place of the one that has just gone
        index.add(end((2,)), 0, 5)
        is_there(end((3,)), 5)
    index.check_integrity()
    assert index.sizes([*ids, end((1,)), end((2,)), end((3,))], 0) == {
        ids[1]: 10,
        ids[3]: 77,
        end((1,)): 5,
        end((2,)): 5,
        end((3,)): 5,
    }
    assert index.tiers_of(ids[0]) == (1,)


def test_a_listing_that_fails_forgets_nothing():
    index = make_index()
    ids = add_chain(index, some_tokens(600))

    def fails_midway() -> None:
        with index.listing(0) as is_there:
            is_there(ids[0], 10)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fails_midway()
    assert len(index) == 3
    with index.listing(0):
        pass
    assert len(index) == 0
    index.check_integrity()


# Eviction


def test_the_least_worthy_goes_first_and_tails_before_what_they_hang_on():
    clock = Clock()
    index = Index(1, clock)
    old = add_chain(index, some_tokens(600, 1))
    clock.now_s += HOUR
    young = add_chain(index, some_tokens(600, 2))
    assert victims(index, 0, 10 * 6) == [*old[::-1], *young[::-1]]
    index.touch(old)
    assert victims(index, 0, 10 * 6) == [*young[::-1], *old[::-1]]


def test_recency_outweighs_hits_after_enough_half_lives():
    clock = Clock()
    index = Index(1, clock)
    (popular,), (fresh,) = chain(some_tokens(10, 1)), chain(some_tokens(10, 2))
    index.add(popular, 0, 10)
    for _ in range(7):
        index.touch([popular])
    clock.now_s += 17 * HOUR
    index.add(fresh, 0, 10)
    assert victims(index, 0, 1) == [fresh], "8 hits, 17 hours ago: more than one hit now"
    index.remove(fresh, 0)
    clock.now_s += 2 * HOUR
    index.add(fresh, 0, 10)
    assert victims(index, 0, 1) == [popular]


def test_victims_are_enough_and_not_one_more():
    index = make_index()
    add_chain(index, some_tokens(256 * 10))
    assert [len(victims(index, 0, n_bytes)) for n_bytes in (0, -5, 1, 10, 11, 99, 100, 1000)] == [
        0,
        0,
        1,
        1,
        2,
        10,
        10,
        10,
    ]


def test_victims_are_proposed_until_they_are_removed():
    index = make_index()
    ids = add_chain(index, some_tokens(600))
    assert victims(index, 0, 20) == victims(index, 0, 20) == ids[:0:-1]
    index.check_integrity()
    index.remove(ids[2], 0)
    assert victims(index, 0, 20) == ids[1::-1]


def test_a_chain_is_evicted_per_tier():
    index = make_index(2)
    ids = add_chain(index, some_tokens(600))
    index.add(ids[0], 1, 10)
    assert victims(index, 1, 10) == [ids[0]], "nothing hangs on it in that tier"
    assert victims(index, 0, 10) == [ids[2]]


def test_an_end_keeps_its_chain_and_a_replay_does_not():
    index, tokens = make_index(), some_tokens(200)
    (id,) = add_chain(index, tokens)
    index.add(replay(tokens, "a"), 0, 10)
    index.touch([replay(tokens, "a")])
    assert victims(index, 0, 1) == [id]
    index.add(end(tokens), 0, 10)
    index.touch([end(tokens)])
    assert victims(index, 0, 21) == [replay(tokens, "a"), end(tokens), id]


def test_one_of_two_ways_may_go_and_then_the_other_stays():
    index, tokens = make_index(), some_tokens(300)
    cut = add_chain(index, tokens[:256], 100)
    whole = add_chain(index, tokens)
    index.touch(whole)
    index.pin([whole[1]])
    assert victims(index, 0, 1000) == [cut[1], cut[0]]
    for _ in range(3):
        index.touch(cut)
    assert victims(index, 0, 1000) == [whole[0]]
    index.remove(cut[0], 0)
    assert victims(index, 0, 1000) == [cut[1]], "it leads nowhere now"


def test_ways_through_other_tiers_do_not_count():
    index, tokens = make_index(2), some_tokens(300)
    cut = add_chain(index, tokens[:256], 100, tier=1)
    whole = add_chain(index, tokens)
    index.pin([whole[1]])
    assert victims(index, 0, 1000) == []
    index.add(cut[1], 0, 10)
    index.touch([cut[1]])
    assert victims(index, 0, 1000) == [cut[1]], (
        "its own beginning is in the other tier, so it is the one that leads nowhere"
    )
    index.add(cut[0], 0, 10)
    for _ in range(2):
        index.touch(cut)
    assert victims(index, 0, 10) == [whole[0]]


def test_an_object_of_another_tier_is_no_other_way():
    index, tokens = make_index(2), some_tokens(300)
    cut = add_chain(index, tokens, 100)
    index.add(rows(tokens[:256], 0), 1, 10)
    index.pin([cut[2]])
    assert victims(index, 0, 1000) == []


def test_an_edge_may_go_as_soon_as_there_is_another_way():
    index, tokens = make_index(), some_tokens(300)
    whole = add_chain(index, tokens)
    index.pin([whole[1]])
    assert victims(index, 0, 1000) == []
    index.touch(add_chain(index, tokens[:256], 100))
    assert victims(index, 0, 1) == [whole[0]]


def test_pinned_objects_and_what_they_hang_on_stay():
    index = make_index()
    ids = add_chain(index, some_tokens(256 * 4))
    index.pin(ids[:2])
    index.pin(ids[:1])
    assert victims(index, 0, 1000) == [ids[3], ids[2]]
    index.unpin(ids[:2])
    assert victims(index, 0, 1000) == [ids[3], ids[2], ids[1]]
    index.unpin(ids[:1])
    assert victims(index, 0, 1000) == ids[::-1]
    index.check_integrity()


def test_what_the_caller_refuses_and_what_that_hangs_on_stays():
    index = make_index()
    ids = add_chain(index, some_tokens(256 * 4))
    asked: list[StoredObject] = []

    def refuses_the_second(victim: StoredObject) -> bool:
        asked.append(victim)
        return victim.id != ids[1]

    assert [victim.id for victim in index.victims(0, 1000, refuses_the_second)] == [ids[3], ids[2]]
    assert asked == [StoredObject(id, (0,), 10) for id in (ids[3], ids[2], ids[1])]
    assert victims(index, 0, 1000) == ids[::-1], "it was refused once, not for ever"


def test_giving_back_too_much_raises_and_changes_nothing():
    index = make_index()
    first, second = add_chain(index, some_tokens(300))
    index.pin([first])
    for ids in ([first, first], [first, second]):
        with pytest.raises(ValueError, match="more often than taken"):
            index.unpin(ids)
    assert victims(index, 0, 100) == [second]


def test_a_pin_may_precede_the_object_and_outlive_it():
    index = make_index()
    (id,) = chain(some_tokens(200))
    index.pin([id])
    index.add(id, 0, 10)
    assert victims(index, 0, 1) == []
    index.remove(id, 0)
    index.add(id, 0, 10)
    assert victims(index, 0, 1) == []
    index.unpin([id])
    assert victims(index, 0, 1) == [id]


@given(st.lists(st.sampled_from([-1e10, -1e6, -HOUR, 0.0, HOUR, 1e6, 1e10, float("nan"), float("inf")]), max_size=12))
def test_no_jump_of_the_clock_changes_the_order_of_use(jumps: list[float]):
    clock = Clock()
    index = Index(1, clock)
    ids = [end((token,)) for token in range(len(jumps) + 1)]
    index.add(ids[0], 0, 1)
    now_s = clock.now_s
    for id, jump in zip(ids[1:], jumps, strict=True):
        now_s = now_s + jump if abs(jump) < 1e12 else now_s
        clock.now_s = now_s if abs(jump) < 1e12 else jump
        index.add(id, 0, 1)
        index.check_integrity()
    assert victims(index, 0, len(ids)) == ids


def test_what_was_used_while_the_clock_was_ahead_is_not_immortal():
    clock = Clock()
    index = Index(1, clock)
    clock.now_s += 1e9
    index.add(end((1,)), 0, 1)
    clock.now_s -= 1e9
    index.add(end((2,)), 0, 1)
    index.load([IndexRow(end((3,)), 1, None, 0, 1e18)], 0)
    clock.now_s += 7 * HOUR
    index.add(end((4,)), 0, 1)
    index.touch([end((2,))])
    assert victims(index, 0, 3) == [end((1,)), end((3,)), end((4,))]


def test_hits_that_are_told_count():
    index = make_index()
    for token, (hits, age_s) in enumerate([(0, 0.0), (100, 60 * HOUR), (3, 6 * HOUR), (0, 1.0)]):
        index.load([IndexRow(end((token,)), 1, None, hits, 1.7e9 - age_s)], 0)
    assert victims(index, 0, 4) == [end((1,)), end((3,)), end((0,)), end((2,))]
    index.load([IndexRow(end((1,)), 1, None, 100, 1.7e9), IndexRow(end((2,)), 1, None, 0, 0.0)], 0)
    assert victims(index, 0, 4) == [end((3,)), end((0,)), end((2,)), end((1,))], "the best that was told stays"


def test_the_queue_does_not_grow_with_use():
    index = make_index()
    (id,) = chain(some_tokens(200))
    for _ in range(5000):
        index.add(id, 0, 10)
        index.pin([id])
        index.touch([id])
        index.unpin([id])
        index.remove(id, 0)
    assert len(index._queues[0]) < 2100
    index.check_integrity()


# Against the model


class Model:
    """Every object with all tokens up to its end; everything is found by trying all."""

    def __init__(self, n_tiers: int) -> None:
        self.tokens: dict[BlockId, Tokens] = {}
        self.known: set[BlockId] = set()
        self.tiers: list[dict[BlockId, int]] = [{} for _ in range(n_tiers)]

    def holds(self, id: BlockId) -> bool:
        return any(id in tier for tier in self.tiers)

    def edges(self, ids: set[BlockId] | dict[BlockId, int]) -> list[BlockId]:
        return [id for id in ids if id.kind is Kind.ROWS]

    def everything(self) -> set[BlockId]:
        return {id for tier in self.tiers for id in tier}

    def reached(self, prompt: Tokens) -> set[int]:
        edges = [id for id in self.edges(self.everything()) if prompt[: id.start + id.n_tokens] == self.tokens[id]]
        lengths = {0}
        for id in sorted(edges, key=lambda id: id.start):
            if id.start in lengths:
                lengths.add(id.start + id.n_tokens)
        return lengths

    def fewest(self, prompt: Tokens) -> dict[int, int]:
        """The least number of edges to every length that is reached."""
        counts = {0: 0}
        for id in sorted(self.edges(self.everything()), key=lambda id: id.start + id.n_tokens):
            if id.start in counts and prompt[: id.start + id.n_tokens] == self.tokens[id]:
                n = counts[id.start] + 1
                counts[id.start + id.n_tokens] = min(n, counts.get(id.start + id.n_tokens, n))
        return counts

    def longest(self, prompt: Tokens) -> int:
        reached = self.reached(prompt)
        best = max(reached)
        for id in self.edges(self.everything()):
            if id in self.known and id.start in reached and prompt[: id.start] == self.tokens[id][: id.start]:
                pairs = enumerate(zip(prompt, self.tokens[id], strict=False))
                best = max(best, next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(self.tokens[id]))))
        return best

    def ends(self, prompt: Tokens) -> list[int]:
        reached = self.reached(prompt)
        ends = [id for id in self.everything() if id.kind is Kind.END]
        return sorted(id.start for id in ends if id.start in reached and prompt[: id.start] == self.tokens[id])


def reachable(ids: set[BlockId]) -> set[BlockId]:
    """The edges and ENDs that a tier with `ids` can lead to from the root."""
    keys, found = {ROOT}, set()
    for id in sorted(ids, key=lambda id: (id.start, id.kind is Kind.END, id.n_tokens)):
        if id.kind is not Kind.REPLAY and id.parent in keys:
            found.add(id)
            keys.add(id.key)
    return found


LENGTHS = st.sampled_from([1, 2, 40, 130, 255, 256, 300])
PROMPTS = st.lists(st.tuples(st.integers(0, 1), LENGTHS), min_size=1, max_size=4).map(
    lambda runs: tuple(t for t, n in runs for _ in range(n))
)
CUTS = st.lists(st.sampled_from([1, 2, 39, 40, 42, 130, 200, 257, 300, 511, 512, 600]), max_size=3).map(tuple)
N_TIERS = 2
TIERS = st.integers(0, N_TIERS - 1)


class IndexAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.index, self.model = Index(N_TIERS, self.clock), Model(N_TIERS)
        self.spared: set[BlockId] = set()
        self.pins: Counter[BlockId] = Counter()

    def put(self, id: BlockId, tokens: Tokens, tier: int, n_bytes: int, known: bool) -> None:
        self.index.add(id, tier, n_bytes, tokens_of(id, tokens) if known and id.kind is Kind.ROWS else None)
        self.model.tokens[id] = tokens
        self.model.tiers[tier][id] = n_bytes
        if known:
            self.model.known.add(id)

    def drop(self, id: BlockId, tier: int) -> None:
        self.index.remove(id, tier)
        self.model.tiers[tier].pop(id, None)
        if not self.model.holds(id):
            self.model.known.discard(id)

    def pick(self, data: st.DataObject) -> BlockId:
        return data.draw(st.sampled_from(sorted(self.model.tokens, key=lambda id: id.name)))

    @rule(tokens=PROMPTS, cuts=CUTS, tier=TIERS, n_bytes=st.integers(0, 9), known=st.booleans(), with_end=st.booleans())
    def save(self, tokens: Tokens, cuts: tuple[int, ...], tier: int, n_bytes: int, known: bool, with_end: bool) -> None:
        for id in chain(tokens, *cuts):
            self.put(id, tokens[: id.start + id.n_tokens], tier, n_bytes, known)
        if with_end:
            self.put(end(tokens), tokens, tier, n_bytes, False)

    @rule(tokens=PROMPTS, tier=TIERS, digest=st.sampled_from("ab"))
    def save_replay(self, tokens: Tokens, tier: int, digest: str) -> None:
        self.put(replay(tokens, digest), tokens, tier, 1, False)

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data(), tier=TIERS, known=st.booleans())
    def copy_one(self, data: st.DataObject, tier: int, known: bool) -> None:
        id = self.pick(data)
        self.put(id, self.model.tokens[id], tier, 3, known)

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data(), tier=TIERS)
    def lose_one(self, data: st.DataObject, tier: int) -> None:
        self.drop(self.pick(data), tier)

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data())
    def read_one(self, data: st.DataObject) -> None:
        id = self.pick(data)
        self.index.learn(id, tokens_of(id, self.model.tokens[id]))
        if self.model.holds(id):
            self.model.known.add(id)

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data(), pinned=st.booleans())
    def hold(self, data: st.DataObject, pinned: bool) -> None:
        id = self.pick(data)
        if pinned:
            self.index.pin([id])
            self.pins[id] += 1
        else:
            self.spared.add(id)

    @rule(pinned=st.booleans())
    def let_go(self, pinned: bool) -> None:
        if pinned:
            self.index.unpin(list(self.pins.elements()))
            self.pins.clear()
        else:
            self.spared.clear()

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data(), jump=st.sampled_from([0.0, 1.0, HOUR, -HOUR, 1e8, -1e8]))
    def use(self, data: st.DataObject, jump: float) -> None:
        self.clock.now_s += jump
        self.index.touch([self.pick(data)])

    @rule(prompt=PROMPTS)
    def look_up(self, prompt: Tokens) -> None:
        path = self.index.longest_prefix(TokenChain(ROOT, prompt))
        assert path.n_tokens == self.model.longest(prompt)
        assert [id.start for id in path.ends] == self.model.ends(prompt)
        assert len(path.hops_to(path.n_whole)) == self.model.fewest(prompt)[path.n_whole]
        assert self.index.longest_prefix(TokenChain(ROOT, prompt)).n_whole == max(self.model.reached(prompt))
        self.check_hops(prompt, path)
        if path.n_tokens < len(prompt):
            self.check_that_learning_makes_it_whole(prompt)

    def check_hops(self, prompt: Tokens, path: Path) -> None:
        n, key = 0, ROOT
        for i, hop in enumerate(path.hops):
            assert (hop.id.start, hop.id.parent) == (n, key)
            assert 0 < hop.n_use <= hop.id.n_tokens
            assert hop.n_use == hop.id.n_tokens or i == len(path.hops) - 1
            n, key = n + hop.n_use, hop.id.key
            assert self.model.tokens[hop.id][:n] == prompt[:n]
        assert n == path.n_tokens
        if n in self.model.reached(prompt):
            assert all(hop.n_use == hop.id.n_tokens for hop in path.hops)
            assert len(path.hops) == self.model.fewest(prompt)[n]

    def check_that_learning_makes_it_whole(self, prompt: Tokens) -> None:
        """What `unknown` leaves out would not have helped."""
        while unknown := self.index.longest_prefix(TokenChain(ROOT, prompt)).unknown:
            for id in unknown:
                assert id not in self.model.known
                self.index.learn(id, tokens_of(id, self.model.tokens[id]))
                self.model.known.add(id)
        n_tokens = self.index.longest_prefix(TokenChain(ROOT, prompt)).n_tokens
        known, self.model.known = self.model.known, self.model.everything()
        assert n_tokens == self.model.longest(prompt)
        self.model.known = known

    @rule(tier=TIERS, n_bytes=st.sampled_from([1, 5, 20, 10_000]), remove=st.booleans())
    def evict(self, tier: int, n_bytes: int, remove: bool) -> None:
        here = self.model.tiers[tier]
        victims = [
            victim.id for victim in self.index.victims(tier, n_bytes, lambda victim: victim.id not in self.spared)
        ]
        assert len(set(victims)) == len(victims)
        left = set(here)
        for victim in victims:
            assert victim not in self.spared
            assert not self.pins[victim]
            before = reachable(left)
            left.remove(victim)
            assert reachable(left) == before - {victim}, "a gap"
        freed = [here[victim] for victim in victims]
        assert sum(freed[:-1]) < n_bytes
        assert sum(freed) >= n_bytes or self.all_must_stay(left)
        for victim in victims if remove else ():
            self.drop(victim, tier)

    def all_must_stay(self, left: set[BlockId]) -> bool:
        """Whether each of `left` is held, or something hangs on it that would not be reached
        without it.
        """
        found = reachable(left)
        for id in left:
            if id in self.spared or self.pins[id]:
                continue
            if id.kind is not Kind.ROWS or not any(
                other.parent == id.key for other in left if other.kind is not Kind.REPLAY
            ):
                return False
            if id in found and reachable(left - {id}) == found - {id}:
                return False
        return True

    @invariant()
    def agrees(self) -> None:
        self.index.check_integrity()
        assert len(self.index) == len(self.model.everything())
        for tier, here in enumerate(self.model.tiers):
            assert self.index.bytes_in(tier) == sum(here.values())
            assert all(tier in self.index.tiers_of(id) for id in here)


SHORT = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(tuple)
SHORT_SAVES = st.lists(st.tuples(SHORT, st.sets(st.integers(1, 6)).map(tuple), st.booleans()), max_size=12)


@given(SHORT_SAVES, st.lists(SHORT, min_size=1, max_size=5))
@settings(max_examples=300)
def test_many_short_edges_of_few_tokens_give_what_trying_all_gives(
    saves: list[tuple[Tokens, tuple[int, ...], bool]], prompts: list[Tokens]
):
    machine = IndexAgainstModel()
    machine.start()
    for tokens, cuts, known in saves:
        machine.save(tokens, cuts, 0, 1, known, known)
    for prompt in prompts:
        machine.look_up(prompt)
    machine.agrees()


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_same_where_every_node_is_crowded_and_few_objects_are_queued(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(radix, "_MOST_LISTED", 1)
    monkeypatch.setattr(crowd, "_MIN_RECENT", 2)
    monkeypatch.setattr(eviction, "_MIN_QUEUED", 2)
    monkeypatch.setattr(eviction, "_SCANNED", 5)
    run_state_machine_as_test(
        IndexAgainstModel, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )


@given(st.randoms(use_true_random=False), st.integers(1, 200))
@settings(max_examples=30)
def test_evicting_everything_step_by_step_takes_the_lowest_leaf_each_time(rng: random.Random, batch: int):
    clock = Clock()
    index, scores, left = Index(1, clock), dict[BlockId, float](), set[BlockId]()
    for seed in range(6):
        shared = some_tokens(rng.choice([256, 512, 300]), rng.randrange(2))
        for id in chain((*shared, *some_tokens(rng.randrange(1, 600), 10 + seed)), len(shared)):
            clock.now_s += rng.randrange(1, 3600)
            index.add(id, 0, 1)
            scores.setdefault(id, clock.now_s)  # one hit each, so the order of scores is the order of times
            left.add(id)
    while left:
        found = victims(index, 0, batch)
        assert len(found) == min(batch, len(left))
        for victim in found:
            leaves = [id for id in left if not any(other.parent == id.key for other in left)]
            assert victim == min(leaves, key=scores.__getitem__)
            index.remove(victim, 0)
            left.remove(victim)
        index.check_integrity()
    assert len(index) == 0


def test_a_number_that_a_row_of_a_crowd_had_and_an_end_has_now_is_no_row():
    index = Index(1, lambda: 0.0)
    root, parent = f"{1:064x}", f"{2:064x}"
    index.add(BlockId(root, Kind.ROWS, root, parent, 0, 100), 0, 10)
    crowd = [BlockId(root, Kind.ROWS, parent, f"{100 + i:064x}", 100, 50) for i in range(40)]
    for id in crowd:
        index.add(id, 0, 10)
    index.remove(crowd[3], 0)
    index.add(BlockId(root, Kind.END, parent, parent, 100, 0), 0, 10)
    index.check_integrity()
    assert index.remove(crowd[4], 0)
    index.check_integrity()
