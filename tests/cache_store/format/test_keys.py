"""Chain keys: equal prefixes have equal keys, everything else has different ones, and the bytes never change."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.format.keys import chain_keys, length_of_key, root_key, tail_key

tokens_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)
block_sizes = st.integers(1, 9)
ROOT = root_key("namespace")


def test_keys_never_change():
    # A change here loses every cache in the world: bump FORMAT_VERSION instead.
    assert root_key("") == "0645345c90daea1828b0e3841ea7754160088359018e961e878efc4cc8319cbc"
    assert root_key("safe:abc", "tenant") == "328fcc07a614373eaf9a60c988c16f53b89f0b839f2e703bbffc507676f2901d"
    root = root_key("golden")
    assert chain_keys(root, [1, 2, 3, 4, 5], 2) == [
        "23c64a9a5239efb99d5d1f069faf5f50a7f52932382b1febfd52227eb9dcee94",
        "f6319599d623a3175bb96467a30a9a91a7ea0cdf5db05555cbcd13f47da3e73c",
    ]
    assert tail_key(root, [1, 2, 3, 4, 5], 2) == "2d9f5be422fbcbe7625af3cd97a2e22fe0b1f52a5a736721e29f70bc925238e4"
    assert tail_key(root, [0, 2**32 - 1], 256) == "1f8f655cda9d74863f63917673a7b539a2977a3185258d967ab2f70ddaecb067"


def test_keys_do_not_depend_on_the_process():
    code = "from cache_store.format.keys import *; print(tail_key(root_key('n', 's'), [1, 2, 3], 2))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert run.stdout.strip() == tail_key(root_key("n", "s"), [1, 2, 3], 2)


@given(tokens_lists, tokens_lists, block_sizes)
def test_two_prompts_share_keys_exactly_as_far_as_they_share_blocks(a: list[int], b: list[int], size: int):
    shared = 0
    while (shared + 1) * size <= min(len(a), len(b)) and a[: (shared + 1) * size] == b[: (shared + 1) * size]:
        shared += 1
    keys_a, keys_b = chain_keys(ROOT, a, size), chain_keys(ROOT, b, size)
    assert keys_a[:shared] == keys_b[:shared]
    assert not set(keys_a[shared:]) & set(keys_b)


@given(tokens_lists, block_sizes)
def test_there_is_one_key_per_full_block(tokens: list[int], size: int):
    assert len(chain_keys(ROOT, tokens, size)) == len(tokens) // size


@given(tokens_lists, block_sizes)
def test_the_tail_key_of_whole_blocks_is_the_last_block_key(tokens: list[int], size: int):
    whole = tokens[: len(tokens) // size * size]
    assert tail_key(ROOT, whole, size) == ([ROOT, *chain_keys(ROOT, whole, size)])[-1]


@given(tokens_lists, tokens_lists, block_sizes)
def test_different_tokens_have_different_tail_keys(a: list[int], b: list[int], size: int):
    assert (tail_key(ROOT, a, size) == tail_key(ROOT, b, size)) == (a == b)


def test_a_tail_that_grows_into_a_block_becomes_that_block():
    assert tail_key(ROOT, [1, 2, 3, 4], 4) == chain_keys(ROOT, [1, 2, 3, 4, 5], 4)[0]


def test_no_tokens_have_the_key_of_the_root():
    assert tail_key(ROOT, [], 256) == ROOT
    assert chain_keys(ROOT, [], 256) == []


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_namespace_and_salt_are_told_apart(a: str, b: str, c: str, d: str):
    assert (root_key(a, b) == root_key(c, d)) == ((a, b) == (c, d))


def test_moving_a_character_from_the_namespace_to_the_salt_changes_the_key():
    assert root_key("ab", "c") != root_key("a", "bc")
    assert root_key("ab") != root_key("", "ab")


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_outside_u32_is_refused_and_never_wrapped(token: int):
    with pytest.raises(OverflowError):
        chain_keys(ROOT, [token], 1)
    with pytest.raises(OverflowError):
        tail_key(ROOT, [token], 256)


@given(tokens_lists, block_sizes)
def test_keys_are_lower_case_hex_of_sha256(tokens: list[int], size: int):
    for key in [*chain_keys(ROOT, tokens, size), tail_key(ROOT, tokens, size), ROOT]:
        assert len(key) == 64
        assert set(key) <= set("0123456789abcdef")


@given(tokens_lists, block_sizes, st.data())
def test_a_key_tells_the_length_of_the_prefix_that_it_names(tokens: list[int], size: int, data: st.DataObject):
    n = data.draw(st.integers(0, len(tokens)))
    assert length_of_key(ROOT, tokens, size, tail_key(ROOT, tokens[:n], size)) == n


@given(tokens_lists, tokens_lists, block_sizes)
def test_a_key_of_other_tokens_names_no_prefix(a: list[int], b: list[int], size: int):
    assert length_of_key(ROOT, a, size, tail_key(ROOT, b, size)) == (len(b) if a[: len(b)] == b else 0)


@pytest.mark.parametrize("key", ["", "nonsense", "f" * 64, root_key("another model")])
def test_a_key_of_nothing_here_has_no_length(key: str):
    assert length_of_key(ROOT, [1, 2, 3], 2, key) == 0


def test_the_length_of_a_key_counts_under_its_root_only():
    assert length_of_key(root_key("another model"), [1, 2, 3], 2, tail_key(ROOT, [1, 2], 2)) == 0
