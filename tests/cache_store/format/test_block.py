"""Names of stored objects: BlockId.name and BlockId.parse."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey

keys = st.binary(max_size=4).map(lambda seed: ChainKey(hashlib.sha256(seed).hexdigest()))
ids = st.builds(
    BlockId,
    root=keys,
    kind=st.sampled_from(Kind),
    parent=keys,
    key=keys,
    start=st.integers(0, 2**32 - 1),
    n_tokens=st.integers(0, 0xFFF),
)

ROOT, PARENT, KEY = "0" * 64, "ab" * 32, "cd" * 32
GOOD = f"{ROOT}/ab/{PARENT}-{KEY}-1a-10.v2.rows.arrow"
VERSION_1 = GOOD.replace(".v2", "")

FOREIGN = {
    "empty": "",
    "uppercase key": GOOD.replace(KEY, KEY.upper()),
    "uppercase number": GOOD.replace("-1a-", "-1A-"),
    "uppercase kind": GOOD.replace("rows", "ROWS"),
    "another shard": GOOD.replace("/ab/", "/cd/"),
    "no shard": GOOD.replace("/ab/", "/"),
    "no root": GOOD.removeprefix(f"{ROOT}/"),
    "traversal before": f"../{GOOD}",
    "traversal within": GOOD.replace("/ab/", "/ab/../ab/"),
    "absolute": f"/{GOOD}",
    "extra suffix": f"{GOOD}.gz",
    "temporary": f"{GOOD}.tmp-17",
    "hidden temporary": GOOD.replace("/ab/", "/ab/."),
    "newline at the end": f"{GOOD}\n",
    "short key": GOOD.replace(KEY, KEY[:-1]),
    "long key": GOOD.replace(KEY, f"{KEY}0"),
    "leading zero": GOOD.replace("-1a-", "-01a-"),
    "sign": GOOD.replace("-1a-", "-+1a-"),
    "start too long": GOOD.replace("-1a-", "-123456789-"),
    "count too long": GOOD.replace("-10.", "-1000."),
    "no count": GOOD.replace("-10.", "."),
    "version 1": VERSION_1,
    "version 1 with its number": GOOD.replace(".v2", ".v1"),
    "a newer version": GOOD.replace(".v2", ".v3"),
    "version with a zero": GOOD.replace(".v2", ".v02"),
    "no version": GOOD.replace(".v2", ".v"),
    "unknown kind": GOOD.replace("rows", "cols"),
    "digits of another script": GOOD.replace("-10.", "-\u0661\u0660."),
}


@given(ids)
def test_a_name_stands_for_exactly_one_id(id):
    assert BlockId.parse(id.name) == id


@given(ids)
def test_a_name_lies_below_its_parents_prefix(id):
    assert id.name.startswith(BlockId.children_prefix(id.root, id.parent))


@pytest.mark.parametrize("name", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_name_stands_for_nothing(name):
    assert BlockId.parse(GOOD) is not None
    assert name != GOOD
    assert BlockId.parse(name) is None


@given(ids, st.data())
def test_a_name_with_one_character_changed_stands_for_something_else_or_nothing(id, data):
    at = data.draw(st.integers(0, len(id.name) - 1))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != id.name[at]))
    changed = BlockId.parse(id.name[:at] + other + id.name[at + 1 :])
    assert changed != id
    assert changed is None or changed.name == id.name[:at] + other + id.name[at + 1 :]


def test_a_name_of_an_older_version_is_outdated():
    assert BlockId.is_outdated(VERSION_1)
    assert BlockId.is_outdated(VERSION_1.replace("rows", "end"))
    assert BlockId.is_outdated(GOOD.replace(".v2", ".v1"))
    assert not BlockId.is_outdated(VERSION_1.replace("/ab/", "/cd/"))


@pytest.mark.parametrize("name", [GOOD, *(name for kind, name in FOREIGN.items() if not kind.startswith("version 1"))])
def test_no_other_name_is_outdated(name):
    assert not BlockId.is_outdated(name)


@given(ids)
def test_a_name_of_this_version_is_not_outdated(id):
    assert not BlockId.is_outdated(id.name)
