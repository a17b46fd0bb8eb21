"""Chain keys: equal prefixes have equal keys, everything else has different ones, and the bytes
never change.
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.format.keys import ChainKey, TokenChain, root_key

tokens_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)
block_sizes = st.integers(1, 9)
ROOT = root_key("namespace")


def last_key(tokens: list[int], size: int, root: ChainKey = ROOT) -> ChainKey:
    return TokenChain(root, tokens, size).key_at(len(tokens))


def all_keys(chain: TokenChain) -> list[ChainKey]:
    return [chain.key_at(n) for n in range(len(chain) + 1)]


def test_keys_never_change():
    # A change here loses every cache in the world: bump FORMAT_VERSION instead.
    assert root_key("") == "82102188ff515c971d73d561141bb20d7bbf16fd523b857ae8b9c993c7102e41"
    assert root_key("safe:abc", "tenant") == "c17b789664b235aa1e536a541f57917d8a9865ec8d6a99f8ba8b933613f4505f"
    root = root_key("golden")
    assert TokenChain(root, [1, 2, 3, 4, 5], 2).block_keys() == [
        "24b4665daab46ede5fe0691a1587d6286c3f63a842327eb5ec49cd7d9bf51767",
        "b99712c953e3b717a7724c205e9a130ebc6bb13df26d45e5b48b5b67e6c9a6f4",
    ]
    assert last_key([1, 2, 3, 4, 5], 2, root) == "9185220bfc0094f988427a18c0e7791544cff2aa98826fbb09b5732896bbe13b"
    assert last_key([0, 2**32 - 1], 256, root) == "872398282a36b2f6323d853c29a17f2635f21bb6afc3ca5a4033bfac2b91905f"


def test_keys_do_not_depend_on_the_process():
    code = "from cache_store.format.keys import *; print(TokenChain(root_key('n', 's'), [1, 2, 3], 2).key_at(3))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert run.stdout.strip() == last_key([1, 2, 3], 2, root_key("n", "s"))


@given(tokens_lists, tokens_lists, block_sizes)
def test_two_prompts_share_keys_exactly_as_far_as_they_share_blocks(a: list[int], b: list[int], size: int):
    shared = 0
    while (shared + 1) * size <= min(len(a), len(b)) and a[: (shared + 1) * size] == b[: (shared + 1) * size]:
        shared += 1
    keys_a, keys_b = TokenChain(ROOT, a, size).block_keys(), TokenChain(ROOT, b, size).block_keys()
    assert keys_a[:shared] == keys_b[:shared]
    assert not set(keys_a[shared:]) & set(keys_b)


@given(tokens_lists, block_sizes)
def test_there_is_one_key_per_full_block(tokens: list[int], size: int):
    assert len(TokenChain(ROOT, tokens, size).block_keys()) == len(tokens) // size


@given(tokens_lists, block_sizes, st.data())
def test_block_keys_are_those_of_the_blocks_that_end_in_a_range(tokens: list[int], size: int, data: st.DataObject):
    chain = TokenChain(ROOT, tokens, size)
    start, stop = data.draw(st.integers(0, len(tokens))), data.draw(st.integers(0, len(tokens) + 3))
    assert chain.block_keys(start, stop) == [
        chain.key_at(n) for n in range(1, len(tokens) + 1) if n % size == 0 and start < n <= stop
    ]


@given(tokens_lists, block_sizes)
def test_the_key_of_whole_blocks_is_the_last_block_key(tokens: list[int], size: int):
    whole = tokens[: len(tokens) // size * size]
    assert last_key(whole, size) == ([ROOT, *TokenChain(ROOT, whole, size).block_keys()])[-1]


@given(tokens_lists, tokens_lists, block_sizes)
def test_different_tokens_have_different_keys(a: list[int], b: list[int], size: int):
    assert (last_key(a, size) == last_key(b, size)) == (a == b)


def test_a_tail_that_grows_into_a_block_becomes_that_block():
    assert last_key([1, 2, 3, 4], 4) == TokenChain(ROOT, [1, 2, 3, 4, 5], 4).block_keys()[0]


def test_no_tokens_have_the_key_of_the_root():
    chain = TokenChain(ROOT, [])
    assert (chain.key_at(0), chain.block_keys(), chain.length_of(ROOT), len(chain)) == (ROOT, [], 0, 0)


@pytest.mark.parametrize("n", [-1, 4])
def test_a_prefix_that_there_is_not_has_no_key(n: int):
    with pytest.raises(IndexError, match=f"no prefix of {n} tokens in a chain of 3"):
        TokenChain(ROOT, [1, 2, 3, 4], 2).prefix(3).key_at(n)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_namespace_and_salt_are_told_apart(a: str, b: str, c: str, d: str):
    assert (root_key(a, b) == root_key(c, d)) == ((a, b) == (c, d))


def test_moving_a_character_from_the_namespace_to_the_salt_changes_the_key():
    assert root_key("ab", "c") != root_key("a", "bc")
    assert root_key("ab") != root_key("", "ab")


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_outside_u32_is_refused_and_never_wrapped(token: int):
    with pytest.raises(OverflowError):
        TokenChain(ROOT, [token])
    with pytest.raises(OverflowError):
        TokenChain(ROOT, [1]).extended([token])


@given(tokens_lists, block_sizes)
def test_keys_are_lower_case_hex_of_sha256(tokens: list[int], size: int):
    for key in all_keys(TokenChain(ROOT, tokens, size)):
        assert len(key) == 64
        assert set(key) <= set("0123456789abcdef")


@given(tokens_lists, block_sizes, st.data())
def test_a_key_tells_the_length_of_the_prefix_that_it_names(tokens: list[int], size: int, data: st.DataObject):
    n = data.draw(st.integers(0, len(tokens)))
    assert TokenChain(ROOT, tokens, size).length_of(last_key(tokens[:n], size)) == n


@given(tokens_lists, tokens_lists, block_sizes)
def test_a_key_of_other_tokens_names_no_prefix(a: list[int], b: list[int], size: int):
    assert TokenChain(ROOT, a, size).length_of(last_key(b, size)) == (len(b) if a[: len(b)] == b else 0)


@pytest.mark.parametrize("key", ["", "nonsense", "f" * 64, root_key("another model")])
def test_a_key_of_nothing_here_has_no_length(key: str):
    assert TokenChain(ROOT, [1, 2, 3], 2).length_of(key) == 0


def test_the_length_of_a_key_counts_under_its_root_only():
    assert TokenChain(root_key("another model"), [1, 2, 3], 2).length_of(last_key([1, 2], 2)) == 0


@given(tokens_lists, tokens_lists, tokens_lists, block_sizes, st.data())
def test_chains_that_share_keys_have_those_of_their_own_tokens(
    a: list[int], b: list[int], c: list[int], size: int, data: st.DataObject
):
    n = data.draw(st.integers(0, len(a)))
    whole = TokenChain(ROOT, a, size)
    for asked in data.draw(st.lists(st.integers(0, len(a)), max_size=3)):
        whole.key_at(asked)
    prefix = whole.prefix(n)
    for chain, tokens in (
        (prefix.extended(b), a[:n] + b),
        (prefix.extended(c), a[:n] + c),
        (prefix, a[:n]),
        (whole, a),
    ):
        assert chain.ids.tolist() == tokens
        assert all_keys(chain) == all_keys(TokenChain(ROOT, tokens, size))


def test_what_a_chain_knows_is_not_computed_again(monkeypatch: pytest.MonkeyPatch):
    chain = TokenChain(ROOT, range(1000))
    known = all_keys(chain)
    monkeypatch.setattr("cache_store.format.keys.hashlib.sha256", None)
    assert all_keys(chain) == all_keys(chain.prefix(1000)) == known
    assert all_keys(chain.prefix(700)) == known[:701]
    assert chain.extended([1, 2]).key_at(1000) == known[1000]


def test_the_ids_of_a_chain_change_for_nobody():
    given = np.arange(5, dtype=np.uint32)
    chain = TokenChain(ROOT, given)
    given[0] = 99
    assert chain.ids.tolist() == [0, 1, 2, 3, 4]
    for ids in (chain.ids, chain.prefix(3).ids, chain.extended([7]).ids):
        with pytest.raises(ValueError, match="read-only"):
            ids[0] = 1


def test_threads_that_share_a_chain_see_the_same_keys():
    chain, wanted = TokenChain(ROOT, range(3000), 7), all_keys(TokenChain(ROOT, range(3000), 7))
    found: list[list[ChainKey]] = []

    def ask(step: int) -> None:
        for n in range(0, 3001, step):
            chain.key_at(n)
            chain.prefix(n).extended([n]).key_at(n)
        found.append(all_keys(chain))

    threads = [threading.Thread(target=ask, args=(step,)) for step in (11, 13, 17, 501)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_a_chain_tells_what_it_is():
    assert repr(TokenChain(ROOT, [1, 2, 3])) == f"<TokenChain of 3 tokens under {ROOT[:8]}>"
