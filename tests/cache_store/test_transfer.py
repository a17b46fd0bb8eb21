"""A prefix as one file: what comes out goes in again, and nothing else does."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import BadTransfer, Store, StoreConfig, StoreFull, TierConfig, TierError, TokenChain
from cache_store.testing import Fault
from cache_store.transfer import CHUNK_BYTES, EntryReader, ImportState
from tests.support.store_kit import FaultyTiers, end_block, opened, prompt, restore, rows_block, save, written

N = 700


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), retry_s=0.01)


def filled(store: Store) -> TokenChain:
    """A prefix in five objects: three blocks, the last one cut, with two ENDs."""
    root, tokens = store.root("model"), prompt(N)
    save(store, root, tokens, 512, end=True, checkpoint=True)
    save(store, root, tokens, 600)
    save(store, root, tokens, N, end=True)
    assert store.flush(10)
    return TokenChain(root, tokens)


@functools.cache
def exported(directory: str) -> bytes:
    with opened(StoreConfig(tiers=(TierConfig(directory),))) as store:
        return b"".join(store.transfer.export(filled(store).key_at(N)))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> bytes:
    return exported(str(tmp_path_factory.mktemp("source")))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_was_exported_is_imported_elsewhere(file, tmp_path, size, compression):
    tier = TierConfig(str(tmp_path / "tier"), compression=compression)
    with opened(StoreConfig(tiers=(tier,))) as store:
        chain = TokenChain(store.root("model"), prompt(N))
        report = store.transfer.import_file(chain.root, cut(file, size))
        assert (report.key, report.n_tokens, report.n_objects) == (chain.key_at(N), N, 6)
        assert restore(store, chain.root, prompt(N)).n_tokens == N
        assert restore(store, chain.root, prompt(N)[:512], need_end=True).n_tokens == 512
        assert b"".join(store.transfer.export(chain.key_at(N))) == file


def test_an_inner_prefix_is_exported_alone(config):
    with opened(config) as store:
        chain = filled(store)
        data = b"".join(store.transfer.export(chain.key_at(512)))
        state = ImportState.start(chain.root)
        for name, entry in EntryReader().feed(data):
            _, state = state.take(name, entry)
        assert (state.key, state.n_tokens, state.n_objects) == (chain.key_at(512), 512, 3)


def test_pieces_are_small_whatever_the_objects_are(config):
    with opened(config) as store:
        root, tokens = store.root("model"), prompt(256)
        wide = rows_block(root, tokens, 0, 256)
        wide = type(wide)(wide.id, wide.tokens, ("k0",), (np.zeros((256, 20_000), np.uint8),))
        assert store.save([wide]) == 1
        pieces = list(store.transfer.export(wide.id.key))
        assert max(map(len, pieces)) == CHUNK_BYTES
        assert sum(map(len, pieces)) > 5_000_000


def test_what_is_not_stored_is_exported_as_nothing(config):
    with opened(config) as store:
        assert list(store.transfer.export(filled(store).key_at(300))) == []


def test_what_is_lost_meanwhile_is_an_error_and_a_cut_file(config):
    tiers = FaultyTiers()
    with opened(config, open=tiers) as store:
        tiers.tiers[0].inject("read", Fault.FAIL, skip=3, times=None)
        pieces: list[bytes] = []
        with pytest.raises(TierError, match="cannot be read"):
            pieces.extend(store.transfer.export(filled(store).key_at(N)))
        with pytest.raises(BadTransfer, match="cut"):
            store.transfer.import_file(store.root("model"), pieces)


def test_an_exported_prefix_is_not_evicted_meanwhile(config):
    with opened(config) as store:
        chain = filled(store)
        pieces = store.transfer.export(chain.key_at(N))
        data = next(pieces)
        store.evict_bytes("disk", 1 << 30)
        data += b"".join(pieces)
        assert restore(store, chain.root, prompt(N)).n_tokens == N
        store.evict_bytes("disk", 1 << 30)
        assert restore(store, chain.root, prompt(N)).n_tokens == 0
        assert store.transfer.import_file(chain.root, [data]).n_tokens == N


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("namespace", "salt"), [("other model", ""), ("model", "another tenant")])
def test_a_file_of_another_model_or_tenant_is_refused_and_leaves_nothing(file, tmp_path, namespace, salt):
    with opened(StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), salt=salt)) as store:
        with pytest.raises(BadTransfer, match="another model, build of"):
            store.transfer.import_file(store.root(namespace), cut(file, 4096))
        assert store.stats().tiers[0].objects == store.stats().pending == 0


def test_a_cut_file_leaves_a_shorter_prefix_that_was_verified(file, config):
    with opened(config) as store:
        root = store.root("model")
        with pytest.raises(BadTransfer, match="cut"):
            store.transfer.import_file(root, [file[: len(file) // 2]])
        n = restore(store, root, prompt(N)).n_tokens
        assert 0 < n < N


def entries(file: bytes) -> list[tuple[str, bytes]]:
    return list(EntryReader().feed(file))


def rejected(root: str, some: list[tuple[str, bytes]]) -> str:
    state = ImportState.start(root)
    try:
        for name, data in some:
            _, state = state.take(name, data)
    except BadTransfer as error:
        return str(error)
    return ""


def test_objects_out_of_order_missing_or_of_another_chain_are_refused(file, config):
    with opened(config) as store:
        root = store.root("model")
        whole = entries(file)
        assert "does not go on" in rejected(root, whole[1:])
        assert "does not go on" in rejected(root, [*whole[:1], *whole[2:]])
        assert "does not go on" in rejected(root, [whole[0], whole[0]])
        assert "damaged: mislabelled" in rejected(root, [(whole[0][0], whole[1][1])])
        end = end_block(root, prompt(256, seed=2))
        assert "does not go on" in rejected(root, [whole[0], (end.id.name, b"")])


def test_an_object_that_its_tokens_do_not_name_is_refused(config):
    """Every digest is right, and the key is that of other tokens."""
    with opened(config) as store:
        root, tokens, others = store.root("model"), prompt(256), prompt(256, seed=2)
        forged = rows_block(root, tokens, 0, 256)
        forged = type(forged)(forged.id, others, forged.columns, forged.rows)
        store.save([forged])
        assert store.flush(10)
        with pytest.raises(BadTransfer, match="not named by its tokens"):
            store.transfer.import_file(root, store.transfer.export(forged.id.key))


@pytest.mark.parametrize("data", [b"", b"erllama", b"nonsense" * 100, b"erllama-prefix\0\0" + bytes(8)])
def test_what_is_no_such_file_is_refused(config, data):
    with opened(config) as store, pytest.raises(BadTransfer):
        store.transfer.import_file(store.root("model"), [data])


def test_a_length_that_no_object_has_is_refused_before_it_is_read(file):
    huge = bytearray(file[:64])
    huge[26:34] = b"\xff" * 8
    with pytest.raises(BadTransfer, match="bytes"):
        list(EntryReader().feed(bytes(huge)))


MUTATION = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 1 << 20), st.integers(1, 3000)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.integers(1, 300)),
)


def mutated(data: bytes, how: str, at: int, n: int) -> bytes:
    at %= len(data)
    match how:
        case "flip":
            return data[:at] + bytes([data[at] ^ n]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "drop":
            return data[:at] + data[at + n :]
    return data[:at] + bytes(n) + data[at:]


@settings(max_examples=300, deadline=None)
@given(MUTATION, st.integers(1, 9000))
def test_no_changed_file_is_taken_for_a_whole_one(file, mutation, size):
    """Whatever was taken before the change was noticed is the beginning of the true prefix."""
    bad = mutated(file, *mutation)
    true = entries(file)
    state, reader, taken = ImportState.start(true[0][0].split("/")[0]), EntryReader(), []

    def take_all() -> None:
        nonlocal state
        for name, data in (entry for chunk in cut(bad, size) for entry in reader.feed(chunk)):
            _, state = state.take(name, data)
            taken.append((name, data))
        reader.finish()

    with pytest.raises(BadTransfer):
        take_all()
    assert taken == true[: len(taken)]


# --- eviction of one prefix -----------------------------------------------------------------------


def test_an_evicted_prefix_is_gone_and_what_others_begin_with_stays(config, tmp_path):
    with opened(config) as store:
        root, base = store.root("model"), prompt(900)
        other = np.concatenate([base[:512], prompt(300, seed=2)])
        save(store, root, base, end=True)
        save(store, root, base[:512], end=True)
        written(store, other)
        before = store.stats().tiers[0].n_bytes
        freed = store.transfer.evict(TokenChain(root, base).key_at(900))
        assert freed == before - store.stats().tiers[0].n_bytes > 0
        assert restore(store, root, other).n_tokens == 812
        assert restore(store, root, base).n_tokens == 512
        assert store.has(end_block(root, base[:512]).id), "it belongs to the other one, too"
        assert store.transfer.evict(TokenChain(root, other).key_at(812)) > 0
        assert store.stats().tiers[0].objects == 0
        store.check_integrity()


def test_a_prefix_that_something_continues_stays(config):
    with opened(config) as store:
        chain = filled(store)
        assert store.transfer.evict(chain.key_at(512)) == 0
        assert restore(store, chain.root, prompt(N)).n_tokens == N


def test_both_cuts_of_a_block_go(config):
    with opened(config) as store:
        root, tokens = store.root("model"), prompt(512)
        written(store, tokens)
        store.save([rows_block(root, tokens, 256, 300), rows_block(root, tokens, 300, 512)])
        assert store.flush(10)
        store.transfer.evict(TokenChain(root, tokens).key_at(512))
        assert store.stats().tiers[0].objects == 0


def test_a_pinned_prefix_is_not_evicted_by_name(config):
    with opened(config) as store:
        chain = filled(store)
        store.pin(chain, ttl_s=60, name="mine")
        assert store.transfer.evict(chain.key_at(N)) == 0
        assert store.prefix(chain.key_at(N)).pins == ("mine",)
        store.unpin("mine")
        assert store.transfer.evict(chain.key_at(N)) > 0
        assert store.prefix(chain.key_at(N)) is None


def test_a_prefix_goes_from_all_tiers(tmp_path):
    tiers = tuple(TierConfig(str(tmp_path / name)) for name in ("fast", "slow"))
    with opened(StoreConfig(tiers=tiers)) as store:
        chain = filled(store)
        store.transfer.evict(chain.key_at(N))
        assert restore(store, chain.root, prompt(N)).n_tokens == 0


def test_a_full_store_ends_an_import(file, tmp_path):
    tiers = FaultyTiers()
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), queue_bytes=1 << 20, op_timeout_s=0.2)
    with opened(config, open=tiers) as store:
        tiers.tiers[0].inject("publish", Fault.HANG, times=None)
        blocks = [rows_block(store.root("x"), prompt(256, seed), 0, 256) for seed in range(200)]
        store.save(blocks)
        with pytest.raises(StoreFull, match="no more"):
            store.transfer.import_file(store.root("model"), [file])
        tiers.tiers[0].heal()


# --- listing --------------------------------------------------------------------------------------


def test_prefixes_are_listed_in_the_order_that_is_asked_for(config):
    with opened(config) as store:
        root = store.root("model")
        for seed, n in ((1, 300), (2, 900), (3, 600)):
            written(store, prompt(n, seed))
        for _ in range(2):
            restore(store, root, prompt(600, 3))
        restore(store, root, prompt(300, 1))
        orders = {order: [p.n_tokens for p in store.prefixes(root, 2, order)] for order in ("tokens", "bytes", "hits")}
        assert orders == {"tokens": [900, 600], "bytes": [900, 600], "hits": [600, 300]}
        (most,) = store.prefixes(root, 1, "hits")
        assert (most.hits, most.head) == (2, tuple(prompt(600, 3)[:48].tolist()))
        assert store.prefix(most.key) == most
        inner = store.prefix(TokenChain(root, prompt(600, 3)).key_at(512))
        assert (inner.n_tokens, inner.n_bytes < most.n_bytes) == (512, True)
