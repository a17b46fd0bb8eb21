"""Whatever happens to a store beside a real engine, replies are those of an engine without one, and
nothing waits beyond its bound.

Sampled at temperature 1 with a fixed seed from a q8_0 KV cache, so that a wrong row shows in the
tokens and a right one never does.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import erllama.model
from cache_store import BlockId, CorruptBlock, Kind, Store, StoreConfig, StoreStats, TierConfig, open_tier
from cache_store.format.file import decode
from cache_store.testing import Fault, FaultyTier
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.events import Completion
from erllama.testing.random_gguf import write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES

pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parents[2]
POLICY = CachePolicy(
    min_tokens=32, cold_min_tokens=32, cold_step_tokens=256, restore_min_tokens=1, restore_always=True, logits_share=1e9
)
NO_CLAIMS = replace(POLICY, share_wait_s=0, read_timeout_s=0.3)
COMPUTE_S = 2.0  # twenty times what a prompt of a test takes on an idle core
SAMPLED = {
    "response_tokens": 12,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "seed": 5,
    "ignore_eos": True,
}

Cold = Callable[[Sequence[int]], tuple[int, ...]]


def prompt(seed: int, n_tokens: int = 600) -> list[int]:
    return random.Random(seed).choices(range(1000), k=n_tokens)


def config(*folders: Path, **settings: object) -> StoreConfig:
    return StoreConfig(tiers=tuple(TierConfig(str(folder)) for folder in folders), min_probe_tokens=1, **settings)


@contextmanager
def model(store: Store | StoreConfig | None, policy: CachePolicy = POLICY, **settings: object) -> Iterator[Model]:
    defaults: dict[str, object] = {
        "path": "demo",
        "n_ctx": 1024,
        "n_parallel": 4,
        "n_threads": 1,
        "type_k": "q8_0",
        "type_v": "q8_0",
    }
    with Model(store=store, policy=policy, **{**defaults, **settings}) as one:
        yield one


def ask(one: Model, tokens: Sequence[int]) -> Completion:
    return one.complete(tokens, **SAMPLED)


def stats(one: Model) -> StoreStats:
    found = one.store_stats()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def cold() -> Iterator[Cold]:
    """The reply to a prompt of an engine that has no store and an empty context."""
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    with model(None, n_parallel=1) as one:

        def reply(tokens: Sequence[int]) -> tuple[int, ...]:
            if tuple(tokens) not in known:
                one.evict()
                completion = ask(one, tokens)
                assert completion.stats.cached_tokens == 0
                known[tuple(tokens)] = completion.tokens
            return known[tuple(tokens)]

        yield reply


def objects_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.arrow") if not path.name.startswith("."))


def id_of(folder: Path, path: Path) -> BlockId:
    id = BlockId.parse(path.relative_to(folder).as_posix())
    assert id is not None, path
    return id


def decodes(folder: Path, path: Path) -> bool:
    try:
        decode(memoryview(path.read_bytes()), id_of(folder, path))
    except CorruptBlock:
        return False
    return True


# --- places that go away, fill up or refuse -------------------------------------------------------


def test_deleting_the_directories_under_it_costs_prefills_and_nothing_else(cold, tmp_path):
    folders = tmp_path / "fast", tmp_path / "slow"
    prompts = [prompt(seed) for seed in range(4)]
    with model(config(*folders)) as one:
        for _ in range(2):
            streams = [one.infer(tokens, **SAMPLED) for tokens in prompts]
            next(iter(streams[0]))  # its prompt has been saved, or is about to be
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)  # what is written meanwhile may survive
            assert [stream.result().tokens for stream in streams[1:]] == [cold(tokens) for tokens in prompts[1:]]
            one.evict()
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)  # not there if nothing was written since
                assert not folder.exists()
            replies = [ask(one, tokens) for tokens in prompts]
            assert [reply.tokens for reply in replies] == [cold(tokens) for tokens in prompts]
            assert [reply.stats.cached_tokens for reply in replies] == [0, 0, 0, 0]
            one.evict()
    with model(config(*folders)) as one:
        assert ask(one, prompts[0]).stats.cached_tokens > 0, "nothing was saved after the directories were gone"


@pytest.fixture
def ram_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "ram"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("file systems may not be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_file_system_full_of_our_own_objects_makes_room_for_new_ones(cold, ram_disk):
    prompts = [prompt(seed, 400) for seed in range(5)]  # 0.4 MB each
    with model(config(ram_disk)) as one:
        for tokens in [*prompts, *prompts]:
            assert ask(one, tokens).tokens == cold(tokens)
            one.evict()
        assert stats(one).evicted.get("no_space", 0) > 0
        assert stats(one).tiers[0].available
        assert ask(one, prompts[-1]).stats.cached_tokens >= 256


def test_a_file_system_full_of_other_files_drops_saves_and_serves(cold, ram_disk):
    filler = ram_disk / "filler"
    filler.write_bytes(bytes(900 << 10))
    with model(config(ram_disk)) as one:
        for tokens in [prompt(1), prompt(2), prompt(1)]:
            assert ask(one, tokens).tokens == cold(tokens)
            one.evict()
        assert stats(one).dropped.get("full", 0) > 0
        filler.unlink()
        ask(one, prompt(3))
        one.evict()
        assert ask(one, prompt(3)).stats.cached_tokens == 600, "room that came back is not used"


def test_a_read_only_file_system_is_read_and_not_written(cold, ram_disk):
    with model(config(ram_disk)) as one:
        ask(one, prompt(1))
    before = {path: path.read_bytes() for path in ram_disk.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", ram_disk], check=True)
    with model(config(ram_disk, retry_s=0.01)) as one:
        first, other = ask(one, prompt(1)), ask(one, prompt(2))
        one.evict()
        assert (first.tokens, first.stats.cached_tokens) == (cold(prompt(1)), 600)
        assert other.tokens == cold(prompt(2))
        assert sum(stats(one).dropped.values()) > 0
    assert {path: path.read_bytes() for path in ram_disk.rglob("*") if path.is_file()} == before


@contextmanager
def faulty_model(
    folder: Path, policy: CachePolicy = NO_CLAIMS, **settings: object
) -> Iterator[tuple[Model, FaultyTier]]:
    tiers: list[FaultyTier] = []

    def open_faulty(config: TierConfig) -> FaultyTier:
        tiers.append(FaultyTier(open_tier(config)))
        return tiers[-1]

    store = Store(config(folder, retry_s=0.01, **settings), open=open_faulty)
    try:
        assert store.wait_loaded(10)
        with model(store, policy) as one:
            yield one, tiers[0]
    finally:
        store.close(timeout_s=0.1)


FAULTS = [
    ("publish", Fault.NO_SPACE),
    ("publish", Fault.READ_ONLY),
    ("publish", Fault.FAIL),
    ("publish", Fault.TEAR),
    ("read", Fault.FAIL),
    ("read", Fault.TEAR),
    ("*", Fault.FAIL),
]


@pytest.mark.parametrize(("operation", "fault"), FAULTS)
def test_a_failing_tier_is_counted_and_never_seen_by_a_request(cold, tmp_path, operation, fault):
    with faulty_model(tmp_path) as (one, tier):
        ask(one, prompt(1))
        one.evict()
        tier.inject(operation, fault, times=None, n_bytes=3000)
        for tokens in [prompt(1), prompt(2), prompt(1), prompt(2)]:
            assert ask(one, tokens).tokens == cold(tokens)
            one.evict()
        found = stats(one)
        assert sum(found.dropped.values()) + sum(found.corrupt.values()) + found.tiers[0].errors > 0


# --- damage ---------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half])
def test_damaged_objects_are_counted_deleted_and_saved_again(cold, tmp_path, damage):
    prompts = [prompt(1), prompt(2, 300)]
    with model(config(tmp_path)) as one:
        for tokens in prompts:
            ask(one, tokens)
    written = objects_in(tmp_path)
    for path in written:
        damage(path)
    assert not any(decodes(tmp_path, path) for path in written)
    with model(config(tmp_path)) as one:
        replies = [ask(one, tokens) for tokens in prompts]
        assert [(reply.tokens, reply.stats.cached_tokens) for reply in replies] == [
            (cold(tokens), 0) for tokens in prompts
        ]
        for tokens in prompts * 4:  # a prefix ends at its first damaged object, so every round finds another one
            one.evict()
            assert ask(one, tokens).tokens == cold(tokens)
        assert 0 < sum(stats(one).corrupt.values()) <= len(written)
    with model(config(tmp_path)) as one:
        assert [ask(one, tokens).stats.cached_tokens for tokens in prompts] == [600, 300]
    left = [id_of(tmp_path, path) for path in written if not decodes(tmp_path, path)]
    assert {(id.kind, id.start) for id in left} <= {(Kind.ROWS, 600), (Kind.ROWS, 300)}, (
        "more than what was saved of the replies"
    )


def test_foreign_files_are_left_alone(cold, tmp_path):
    with model(config(tmp_path)) as one:
        ask(one, prompt(1))
    inside = objects_in(tmp_path)[0].parent
    foreign = {
        tmp_path / "README": b"mine",
        tmp_path / "x.arrow": b"",
        inside / "notes.arrow": b"mine",
        tmp_path / "index" / "a.txt": b"x",
    }
    for path, content in foreign.items():
        path.write_bytes(content)
        os.utime(path, (1, 1))
    store = StoreConfig(tiers=(TierConfig(str(tmp_path), max_bytes="400KB"),), min_probe_tokens=1)
    with model(store) as one:
        for seed in range(4):
            assert ask(one, prompt(seed)).tokens == cold(prompt(seed))
            one.evict()
        assert sum(stats(one).evicted.values()) > 0
    assert {path: path.read_bytes() for path in foreign} == foreign


# --- hanging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["read", "stat", "list", "publish", "*"])
def test_a_request_waits_for_a_hanging_tier_no_longer_than_its_read_timeout(cold, tmp_path, operation):
    with faulty_model(tmp_path) as (one, tier):
        ask(one, prompt(1))
        one.evict()
        expected = [cold(tokens) for tokens in (prompt(1), prompt(2))]
        tier.inject(operation, Fault.HANG, times=None)
        for tokens, reply in zip((prompt(1), prompt(2)), expected, strict=True):
            began = time.monotonic()
            assert ask(one, tokens).tokens == reply
            assert time.monotonic() - began < NO_CLAIMS.read_timeout_s + COMPUTE_S
        tier.heal()


def test_a_claim_that_cannot_be_written_holds_a_request_up_for_a_second(cold, tmp_path):
    """With the default patience for everything else: claims are hints, and nobody waits long for a
    hint.
    """
    expected = cold(prompt(1))
    with faulty_model(tmp_path, POLICY) as (one, tier):
        tier.inject("publish", Fault.HANG, times=None)
        began = time.monotonic()
        assert ask(one, prompt(1)).tokens == expected
        assert time.monotonic() - began < 1.0 + COMPUTE_S
        tier.heal()


@pytest.mark.parametrize("call", ["evict", "shutdown"])
def test_evict_and_shutdown_wait_for_a_hanging_tier_once(tmp_path, monkeypatch, call):
    """A full queue is waited for, then the writes; both within one bound."""
    bound_s = 1.2
    tiers: list[FaultyTier] = []

    def open_store(config: StoreConfig) -> Store:
        def open_faulty(tier: TierConfig) -> FaultyTier:
            tiers.append(FaultyTier(open_tier(tier)))
            return tiers[-1]

        return Store(config, open=open_faulty)

    monkeypatch.setattr(erllama.model, "Store", open_store)
    policy = replace(NO_CLAIMS, evict_save_timeout_s=bound_s)
    with model(config(tmp_path, queue_bytes=1 << 20), policy) as one:
        tiers[0].inject("publish", Fault.HANG, times=None)
        ask(one, prompt(1, 1000))  # more than the queue holds
        began = time.monotonic()
        one.evict() if call == "evict" else one.shutdown()
        took = time.monotonic() - began
        tiers[0].heal()
    assert bound_s * 0.9 <= took < bound_s * 1.9


# --- kill -9 --------------------------------------------------------------------------------------

WRITER = """
import random, sys
from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
policy = CachePolicy(min_tokens=32, cold_min_tokens=32, cold_step_tokens=256, restore_always=True, logits_share=1e9)
store = StoreConfig(tiers=(TierConfig(sys.argv[1]), TierConfig(sys.argv[2])), min_probe_tokens=1)
model = Model(path="demo", n_ctx=1024, n_parallel=4, n_threads=1, type_k="q8_0", type_v="q8_0", store=store, policy=policy)
for seed in range(1, 1000):
    model.complete(random.Random(seed).choices(range(1000), k=600), response_tokens=12, temperature=0.0, ignore_eos=True)
    print(seed, flush=True)
"""


def test_a_killed_process_leaves_whole_objects_that_the_next_one_restores_from(cold, tmp_path):
    folders = tmp_path / "fast", tmp_path / "slow"
    rng = random.Random(1)
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, *folders], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"1\n"
        time.sleep(rng.uniform(0, 0.3))  # the moment of the kill is what the test draws
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for folder in folders:
            assert [path for path in objects_in(folder) if not decodes(folder, path)] == []
    with model(config(*folders)) as one:
        replies = [ask(one, prompt(seed)) for seed in range(1, 5)]
    assert [reply.tokens for reply in replies] == [cold(prompt(seed)) for seed in range(1, 5)]
    assert replies[0].stats.cached_tokens >= 256


# --- sharing --------------------------------------------------------------------------------------


def test_two_models_on_the_same_directories_answer_many_threads_as_one_without_a_store(cold, tmp_path):
    shared = [prompt(1, 300), prompt(2, 500)]
    prompts = [[*shared[i % 2][: 200 + 50 * (i % 3)], *prompt(100 + i, 60 + 40 * (i % 5))] for i in range(16)]
    expected = [cold(tokens) for tokens in prompts]
    replies: dict[tuple[int, int], tuple[int, ...]] = {}

    def work(models: list[Model], thread: int) -> None:
        order = random.Random(thread).sample(range(len(prompts)), len(prompts))
        for n, i in enumerate(order):
            replies[thread, i] = ask(models[(thread + n) % 2], prompts[i]).tokens
            if n % 6 == 5:
                models[(thread + n) % 2].evict()

    with ExitStack() as stack:
        models = [
            stack.enter_context(model(config(tmp_path / "fast", tmp_path / "slow"), n_parallel=3)) for _ in range(2)
        ]
        threads = [threading.Thread(target=work, args=(models, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(sum(one.stats().cache.hits.values()) for one in models) > 0
    assert replies == {(thread, i): expected[i] for thread in range(4) for i in range(len(prompts))}


def test_a_tiny_budget_is_kept_under_many_prompts(cold, tmp_path):
    store = StoreConfig(tiers=(TierConfig(str(tmp_path), max_bytes="300KB"),), min_probe_tokens=1)
    with model(store) as one:
        for seed in range(12):
            tokens = prompt(seed, 100 + 50 * (seed % 6))
            assert ask(one, tokens).tokens == cold(tokens)
            one.evict()
            assert sum(path.stat().st_size for path in objects_in(tmp_path)) <= 300_000
        assert stats(one).evicted.get("budget", 0) > 0
        short = prompt(99, 150)
        assert ask(one, short).tokens == cold(short)
        one.evict()
        again = ask(one, short)
        assert (again.tokens, again.stats.cached_tokens) == (cold(short), 150)


@pytest.mark.parametrize("other", [{"salt": "b"}, {"type_k": "q4_0"}, {"type_v": "q4_0"}, {"rope_freq_scale": 0.5}])
def test_another_salt_or_other_kv_is_never_restored(tmp_path, other):
    salt, settings = other.get("salt", "a"), {name: value for name, value in other.items() if name != "salt"}
    with model(config(tmp_path, salt="a")) as one:
        first = ask(one, prompt(1))
    with model(config(tmp_path, salt=salt), **settings) as one:
        assert ask(one, prompt(1)).stats.cached_tokens == 0
    with model(config(tmp_path, salt="a")) as one:
        again = ask(one, prompt(1))
    assert (again.tokens, again.stats.cached_tokens) == (first.tokens, 600)


def test_adapters_and_their_scales_never_share(tmp_path):
    path, lora = str(tmp_path / "tiny.gguf"), str(tmp_path / "lora.gguf")
    write_random_model(path, SHAPES["tiny-llama"], vocab=None, file_type="Q8_0", seed=1)
    write_random_lora(lora, path, rank=4, seed=1, scale=1.0)
    tokens = [token % 250 for token in prompt(1)]
    # its heads are too small for q8_0
    with model(config(tmp_path / "kv"), path=path, type_k="f16", type_v="f16") as one:

        def reply(cached: int) -> tuple[int, ...]:
            completion = ask(one, tokens)
            assert completion.stats.cached_tokens == cached
            one.evict()
            return completion.tokens

        plain = reply(cached=0)
        handle = one.load_adapter(lora)
        full = reply(cached=0)
        one.set_adapter_scale(handle, 0.5)
        half = reply(cached=0)
        assert len({plain, full, half}) == 3
        assert reply(cached=600) == half
        one.set_adapter_scale(handle, 1.0)
        assert reply(cached=600) == full
        one.unload_adapter(handle)
        assert reply(cached=600) == plain


def test_an_adapter_may_be_unloaded_while_there_is_no_context(tmp_path):
    """The context that it was active in is gone: llama.cpp must not be asked to take it out of
    there.
    """
    path, lora = str(tmp_path / "tiny.gguf"), str(tmp_path / "lora.gguf")
    write_random_model(path, SHAPES["tiny-llama"], vocab=None, file_type="Q8_0", seed=1)
    write_random_lora(lora, path, rank=4, seed=1, scale=1.0)
    with model(None, path=path, type_k="f16", type_v="f16") as one:
        plain = ask(one, [1, 2, 3]).tokens
        handle = one.load_adapter(lora)
        assert ask(one, [1, 2, 3]).tokens != plain
        one.evict()
        assert not one.stats().has_context
        one.unload_adapter(handle)
        assert ask(one, [1, 2, 3]).tokens == plain
