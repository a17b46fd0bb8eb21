"""Real llama.cpp: a decode that takes too long is aborted and the model goes on in place; weights
that were unloaded come back.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import pytest

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.errors import ContextLost, DecodeAborted, EngineStopped, ModelLoadError
from erllama.events import Failed, Tokens
from erllama.testing.random_gguf import write_random_encoder, write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape
from tests.support.bounds import NO_WAIT_S

pytestmark = pytest.mark.model

BUDGET_S = 0.3
# 40 MB; 2048 tokens take one thread seconds, one token milliseconds
HEAVY = ModelShape("llama", 6, 768, 6, 2, 2048, 4096)
LONG = [5] * 2048
POLICY = CachePolicy(min_tokens=16, cold_min_tokens=16, restore_always=True, share_wait_s=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_random_model(folder / "heavy.gguf", HEAVY, file_type="Q8_0", seed=1)
    write_random_model(folder / "tiny.gguf", SHAPES["tiny-llama"], file_type="F16", seed=1)
    write_random_encoder(folder / "encoder.gguf", seed=1)
    write_random_lora(folder / "a.gguf", folder / "tiny.gguf", rank=4, seed=1, scale=1.0)
    return folder


@pytest.fixture
def heavy(folder: Path) -> Iterator[Model]:
    with Model(
        path=str(folder / "heavy.gguf"),
        n_ctx=2304,
        n_parallel=1,
        n_batch=2048,
        prefill_slice=2048,
        n_threads=1,
        decode_budget_s=BUDGET_S,
    ) as model:
        yield model


@pytest.fixture
def steady(heavy: Model) -> Model:
    """`heavy` with a budget of processor time: what others make the machine do is not counted, so that
    the short decodes between aborts stay within it.
    """
    heavy._loop._engine.watchdog._clock = time.process_time_ns
    return heavy


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may harm."""
    return Path(shutil.copy(folder / "tiny.gguf", tmp_path / "own.gguf"))


def small(model: Model, prompt: int = 7) -> tuple[int, ...]:
    return tuple(model.complete([prompt, 8, 9], response_tokens=6, temperature=0, ignore_eos=True).tokens)


# --- aborts ---------------------------------------------------------------------------------------


def test_a_decode_beyond_its_budget_is_aborted_and_the_model_answers_as_before(heavy: Model):
    expected = small(heavy)
    started = time.monotonic()
    with pytest.raises(DecodeAborted, match=r"longer than 0\.3 s"):
        heavy.complete(LONG, response_tokens=0)
    assert BUDGET_S <= time.monotonic() - started < BUDGET_S + NO_WAIT_S
    assert small(heavy) == expected
    assert heavy.stats().counts.decode_aborts == 1
    heavy.check_alive(60)


def test_a_request_that_waits_while_a_decode_is_aborted_is_served_in_the_new_context(steady: Model):
    expected = [small(steady, i) for i in range(4)]
    doomed = steady.infer(LONG, response_tokens=0)
    waiting = [steady.infer([i, 8, 9], response_tokens=6, temperature=0, ignore_eos=True) for i in range(4)]
    assert [tuple(stream.result().tokens) for stream in waiting] == expected
    with pytest.raises(DecodeAborted):
        doomed.result()


def test_twenty_aborts_leave_no_memory_behind(steady: Model):
    process, expected = psutil.Process(), small(steady)

    def abort() -> int:
        with pytest.raises(DecodeAborted):
            steady.complete(LONG, response_tokens=0)
        assert small(steady) == expected
        return int(process.memory_info().rss)

    # A leak grows with every abort. A step or two are the allocator's: in a process with a long past
    # it may need another arena.
    held = [abort() for _ in range(20)][4:]
    assert median(after - before for before, after in pairwise(held)) < 512 << 10, [n >> 20 for n in held]
    assert held[-1] - held[0] < 40 << 20, [n >> 20 for n in held]
    assert steady.stats().counts.decode_aborts == 20


def test_a_neighbour_of_an_aborted_prefill_goes_on_from_its_saved_kv_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path
):
    exact = {"type_k": "q8_0", "type_v": "q8_0"}  # one path whatever the slices
    settings = {
        "n_ctx": 2304,
        "n_parallel": 2,
        "n_batch": 2048,
        "prefill_slice": 2048,
        "n_threads": 1,
        "stream_interval_ms": 0,
        **exact,
    }
    greedy = {"ignore_eos": True, "temperature": 0}
    store, prompt = StoreConfig(tiers=(TierConfig(str(tmp_path / "kv")),)), [7, 8, 9] * 10
    with Model(path=str(folder / "heavy.gguf"), **settings) as model:
        whole = model.complete(prompt, response_tokens=300, **greedy).tokens
    with Model(
        path=str(folder / "heavy.gguf"), decode_budget_s=BUDGET_S, store=store, policy=POLICY, **settings
    ) as model:
        neighbour = model.infer(prompt, response_tokens=2000, **greedy)
        events = iter(neighbour)
        delivered: list[int] = []
        while len(delivered) < 50:
            event = next(events)
            assert isinstance(event, Tokens)
            delivered += event.ids
        with pytest.raises(DecodeAborted):
            model.complete(LONG, response_tokens=0)
        *more, end = events
        delivered += [token for event in more if isinstance(event, Tokens) for token in event.ids]
        assert isinstance(end, Failed)
        assert isinstance(end.error, ContextLost)
        assert len(delivered) < 290
        rest = model.complete([*prompt, *delivered], response_tokens=300 - len(delivered), **greedy)
        assert rest.stats.cached_tokens == len(prompt) + len(delivered) - 1
        assert [*delivered, *rest.tokens] == list(whole)


# --- weights --------------------------------------------------------------------------------------


def test_unloaded_weights_leave_the_memory_and_come_back_the_same(folder: Path):
    size = (folder / "heavy.gguf").stat().st_size
    with Model(path=str(folder / "heavy.gguf"), n_ctx=256, n_parallel=1, n_threads=1, use_mmap=False) as model:
        expected = small(model)
        for _ in range(3):
            assert model.memory().weights_private_bytes > 0.9 * size
            before = psutil.Process().memory_info().rss
            result = model.unload()
            assert result.weights_unloaded
            assert before - psutil.Process().memory_info().rss > 0.9 * size
            assert result.freed_bytes > 0.9 * size
            assert small(model) == expected


def test_mapped_weights_are_told_from_private_ones(folder: Path):
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=1, n_threads=1) as model:
        memory = model.memory()
        assert model._backend.weights_mapped
        assert 0 < memory.weights_bytes <= (folder / "tiny.gguf").stat().st_size
        assert (memory.kv_bytes, memory.on_gpu) == (256 * model._backend.kv_layout.bytes_per_token, False)
        model.unload()
        assert model.memory().weights_bytes == 0


def test_adapters_come_back_with_the_weights(folder: Path):
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=2, n_threads=1) as model:
        plain = small(model)
        handle = model.load_adapter(str(folder / "a.gguf"))
        adapted = small(model)
        assert adapted != plain
        model.unload()
        assert small(model) == adapted
        model.unload()
        model.unload_adapter(handle)
        assert small(model) == plain
        model.unload()
        assert model.load_adapter(str(folder / "a.gguf")) == handle
        assert model.memory().weights_loaded
        assert small(model) == adapted


def test_kv_comes_back_through_the_store_after_an_unload(folder: Path, tmp_path: Path):
    prompt = list(range(3, 203))
    store = StoreConfig(tiers=(TierConfig(str(tmp_path / "kv")),))
    exact = {"type_k": "q8_0", "type_v": "q8_0"}  # one path whatever the slices
    with Model(
        path=str(folder / "heavy.gguf"), n_ctx=512, n_parallel=2, n_threads=1, store=store, policy=POLICY, **exact
    ) as model:
        expected = model.complete(prompt, response_tokens=8, temperature=0, ignore_eos=True).tokens
        model.unload()
        again = model.complete(prompt, response_tokens=8, temperature=0, ignore_eos=True)
        assert again.stats.cached_tokens > 150
        assert again.tokens == expected


def test_a_file_that_vanished_fails_the_request_and_serves_the_next_when_it_is_back(own: Path):
    with Model(path=str(own), n_ctx=256, n_parallel=1, n_threads=1) as model:
        expected, ids = small(model), model.tokenize("Hello there")
        model.unload()
        away = own.rename(own.with_name("away.gguf"))
        for _ in range(2):
            with pytest.raises(ModelLoadError, match=r"own\.gguf"):
                small(model)
        with pytest.raises(ModelLoadError):
            model.embed([5, 6])
        assert model.tokenize("Hello there") == ids
        away.rename(own)
        assert small(model) == expected


@pytest.mark.parametrize("how", ["touched", "replaced"])
def test_a_file_that_changed_is_refused(own: Path, folder: Path, how: str):
    with Model(path=str(own), n_ctx=256, n_parallel=1, n_threads=1) as model:
        model.unload()
        if how == "touched":
            os.utime(own, ns=(1, 1))
        else:
            stat = own.stat()
            own.rename(own.with_name("old.gguf"))  # keeps the inode in use
            shutil.copy(folder / "tiny.gguf", own)
            os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(ModelLoadError, match="replaced or changed"):
            small(model)


def test_weights_whose_file_is_gone_are_not_unloaded(own: Path):
    with Model(path=str(own), n_ctx=256, n_parallel=1, n_threads=1) as model:
        expected = small(model)
        own.unlink()
        assert not model.unload().weights_unloaded
        assert small(model) == expected


def test_weights_stay_while_the_file_of_an_adapter_is_gone(folder: Path, tmp_path: Path):
    adapter = Path(shutil.copy(folder / "a.gguf", tmp_path / "own.gguf"))
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=1, n_threads=1) as model:
        handle = model.load_adapter(str(adapter))
        adapted = small(model)
        adapter.unlink()
        assert not model.unload().weights_unloaded
        assert small(model) == adapted
        model.unload_adapter(handle)
        assert model.unload().weights_unloaded


def test_an_adapter_that_changed_fails_the_request_until_it_is_unloaded(folder: Path, tmp_path: Path):
    adapter = Path(shutil.copy(folder / "a.gguf", tmp_path / "own.gguf"))
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=1, n_threads=1) as model:
        plain = small(model)
        handle = model.load_adapter(str(adapter))
        model.unload()
        os.utime(adapter, ns=(1, 1))
        with pytest.raises(ModelLoadError, match=r"own\.gguf was replaced or changed"):
            small(model)
        assert not model.memory().weights_loaded
        model.unload_adapter(handle)
        assert small(model) == plain


def test_an_encoder_unloads_and_embeds_again(folder: Path):
    with Model(path=str(folder / "encoder.gguf")) as model:
        expected = model.embed([5, 6])
        assert model.unload().weights_unloaded
        assert model.embed([5, 6]) == expected


def test_tokenising_from_other_threads_goes_on_while_weights_come_and_go(folder: Path):
    text, stop, wrong = "The code of the blue box is 1234.", threading.Event(), []
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=1, n_threads=1) as model:
        expected = model.tokenize(text)

        def tokenise() -> None:
            while not stop.is_set():
                ids = model.tokenize(text)
                if ids != expected or model.detokenize(ids) != text:
                    wrong.append(ids)

        threads = [threading.Thread(target=tokenise) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert model.unload().weights_unloaded
            small(model)
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("unloaded_before", [False, True])
def test_a_shutdown_frees_nothing_while_someone_tokenises_and_later_calls_are_told(folder: Path, unloaded_before: bool):
    model = Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=1, n_threads=1)
    if unloaded_before:
        model.unload()
        small(model)
    vocab = model._backend.vocab
    stopping = threading.Thread(target=model.shutdown)
    with vocab._in_use():
        stopping.start()
        stopping.join(0.3)
        assert stopping.is_alive()
        assert model.memory().weights_bytes > 0
    stopping.join()
    for ask in (model.tokenize, vocab.tokenize):
        with pytest.raises(EngineStopped):
            ask("Hello there")


def test_a_grammar_is_followed_after_an_unload(folder: Path):
    with Model(path="demo", n_ctx=256, n_parallel=1, n_threads=1) as model:
        ask = {"grammar": 'root ::= ("yes" | "no") "!"', "response_tokens": 8, "temperature": 0}
        expected = model.complete("Is it?", **ask).text
        model.unload()
        assert model.complete("Is it?", **ask).text == expected
        assert expected in ("yes!", "no!")
