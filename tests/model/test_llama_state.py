"""States of real llama.cpp sequences: what is read, cut, stored and put back is the same state, bit
for bit.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama.backend.batch_plan import BatchPlan
from erllama.config import EngineConfig
from erllama.demo import demo_model_path
from erllama.errors import DecodeFailed
from erllama.kv.layout import KvImage, KvKind
from erllama.kv.state_bytes import KvUnreadable
from erllama.llama.backend import LlamaBackend
from erllama.stats import AdapterInfo
from erllama.testing.random_gguf import write_random_encoder, write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape

pytestmark = pytest.mark.model

N_CTX, N_SEQ, SLICE = 1024, 3, 64
MODELS = {"attention": "tiny-qwen3", "window": "tiny-gemma3", "recurrent": "tiny-mamba", "hybrid": "tiny-jamba"}
WITH_CHECKPOINT = ("window", "recurrent", "hybrid")
Open = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, shape in MODELS.items():
        write_random_model(folder / f"{kind}.gguf", SHAPES[shape], file_type="F16", seed=1)
    return folder


@pytest.fixture(scope="module")
def open_backend(folder: Path) -> Iterator[Open]:
    """Opens a model by kind or path; the same arguments give the same backend, with empty
    sequences, unless `fresh`.
    """
    opened: dict[Any, LlamaBackend] = {}

    def open_(kind: str, type_kv: str = "f16", *, fresh: int = 0, **settings: Any) -> LlamaBackend:
        key = (kind, type_kv, fresh, tuple(settings.items()))
        if key not in opened:
            path = str(folder / f"{kind}.gguf") if kind in MODELS else kind
            config = {"n_ctx": N_CTX, "n_parallel": N_SEQ, "n_threads": 1, **settings}
            opened[key] = LlamaBackend(EngineConfig(path=path, type_k=type_kv, type_v=type_kv, **config))
        for seq_id in range(settings.get("n_parallel", N_SEQ)):
            opened[key].drop(seq_id)
        return opened[key]

    yield open_
    for backend in opened.values():
        backend.close()


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 200, n_tokens)]


def decode(backend: LlamaBackend, seq_id: int, tokens: list[int], start: int, adapters: Any = ()) -> np.ndarray:
    """Logits after `tokens`, computed in slices that end at multiples of SLICE, as the engine
    does.
    """
    at, end, logits = start, start + len(tokens), None
    while at < end:
        n = min(SLICE - at % SLICE, end - at)
        row = SimpleNamespace(
            seq_id=seq_id, tokens=tokens[at - start : at - start + n], start=at, n_tokens=n, n_logits=1
        )
        ((logits,),) = backend.decode(BatchPlan((row,), adapters))  # type: ignore[arg-type]
        at += n
    assert logits is not None
    return logits.copy()


def state_of(backend: LlamaBackend, seq_id: int) -> bytes:
    """All bytes that llama.cpp itself gives for the sequence."""
    n_bytes = llama_cpp.llama_state_seq_get_size(backend._ctx, seq_id)
    buffer = (ctypes.c_uint8 * n_bytes)()
    assert llama_cpp.llama_state_seq_get_data(backend._ctx, buffer, n_bytes, seq_id) == n_bytes
    return bytes(buffer)


def length(backend: LlamaBackend, seq_id: int) -> int:
    return int(llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(backend._ctx), seq_id)) + 1


def stored(backend: LlamaBackend, seq_id: int, n_tokens: int) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Copies of rows and checkpoint: what a block file would hold."""
    reading = backend.read_kv(seq_id, n_tokens)
    checkpoint = None if reading.checkpoint is None else reading.checkpoint.copy()
    return tuple(rows.copy() for rows in reading.rows(0, n_tokens)), checkpoint


def image_of(
    backend: LlamaBackend, rows: tuple[np.ndarray, ...], checkpoint: np.ndarray | None, n_tokens: int, step: int = 100
) -> KvImage:
    """An image filled from its end, in blocks of `step` rows."""
    image, columns = backend.new_image(n_tokens), backend.kv_layout.columns
    if columns:
        for start in reversed(range(0, n_tokens, step)):
            image.put(start, columns, tuple(column[start : min(start + step, n_tokens)] for column in rows))
    if checkpoint is not None:
        image.put_checkpoint(checkpoint)
    return image


def put_back(
    backend: LlamaBackend, seq_id: int, rows: tuple[np.ndarray, ...], checkpoint: np.ndarray | None, n_tokens: int
) -> None:
    image = image_of(backend, rows, checkpoint, n_tokens)
    backend.restore(seq_id, image, n_tokens)
    image.close()


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_may_want_the_logits_after_several_of_its_tokens(open_backend: Open, kind: str):
    """Each is what a row that ends there gives, up to the kernels of another number of tokens or of
    rows.
    """
    backend, tokens = open_backend(kind), prompt(12)
    wide = SimpleNamespace(seq_id=0, tokens=tokens, start=0, n_tokens=12, n_logits=N_SEQ)
    ((*rows,),) = backend.decode(BatchPlan((wide,), ()))  # type: ignore[arg-type]
    rows = [row.copy() for row in rows]
    assert len(rows) == N_SEQ
    assert np.abs(rows[-1] - decode(backend, 1, tokens, 0)).max() < 1e-4
    for n, row in enumerate(rows, start=10):
        backend.drop(2)
        assert np.abs(decode(backend, 2, tokens[:n], 0) - row).max() < 0.05
        assert np.abs(row - rows[n - 11]).max() > 0.1, "rows of different tokens differ"
    most = backend.max_logits
    beyond = SimpleNamespace(seq_id=0, tokens=prompt(most + 1), start=12, n_tokens=most + 1, n_logits=most + 1)
    with pytest.raises(DecodeFailed, match=f"wants {most + 1} rows of logits, at most {most}"):
        backend.decode(BatchPlan((beyond,), ()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MODELS)
def test_the_kind_of_a_model_is_known_once_it_is_loaded(open_backend, kind):
    layout = open_backend(kind).kv_layout
    assert layout.kind is KvKind(kind)
    assert (
        layout.columns
        == {
            "attention": ("k0", "v0", "k1", "v1"),
            "window": ("k0", "v0"),
            "recurrent": (),
            "hybrid": ("k0", "v0", "k1", "v1"),
        }[kind]
    )
    assert layout.bytes_per_token == {"attention": 512, "window": 128, "recurrent": 0, "hybrid": 256}[kind]


def test_a_state_names_the_build_that_made_it(open_backend):
    assert open_backend("attention").state_version == f"llama-cpp-python {llama_cpp.__version__}, state 3"


@pytest.mark.parametrize("kind", MODELS)
def test_the_probe_at_load_leaves_no_trace_in_the_numbers(open_backend, kind):
    backend = open_backend(kind, fresh=1)
    tokens = prompt(SLICE)
    untouched = backend._make_context()
    assert (
        llama_cpp.llama_decode(
            untouched, llama_cpp.llama_batch_get_one((llama_cpp.llama_token * SLICE)(*tokens), SLICE)
        )
        == 0
    )
    expected = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(untouched, -1), shape=(backend.n_vocab,)).copy()
    llama_cpp.llama_free(untouched)
    assert np.array_equal(decode(backend, 0, tokens, 0), expected)


@pytest.mark.parametrize("type_kv", ["f16", "q8_0", "q4_0"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_state_cut_anywhere_and_put_back_is_the_state_that_llama_cpp_would_have_cut(open_backend, type_kv, data):
    backend = open_backend("attention", type_kv)
    n_tokens = data.draw(st.integers(1, 300))
    n_kept = data.draw(st.integers(1, n_tokens))
    seq_id = data.draw(st.integers(0, N_SEQ - 1))
    decode(backend, seq_id, prompt(n_tokens, seed=n_tokens), 0)
    rows, checkpoint = stored(backend, seq_id, n_tokens)
    assert checkpoint is None
    image = image_of(backend, rows, None, n_tokens, step=data.draw(st.integers(1, n_tokens)))
    assert backend.cut(seq_id, n_kept)
    expected = state_of(backend, seq_id)
    cut_rows, _ = stored(backend, seq_id, n_kept)
    assert all(np.array_equal(mine[:n_kept], theirs) for mine, theirs in zip(rows, cut_rows, strict=True))
    backend.drop(seq_id)
    backend.restore(seq_id, image, n_kept)
    image.close()
    assert state_of(backend, seq_id) == expected


@pytest.mark.parametrize("type_kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["attention", "demo"])
def test_after_a_restore_the_logits_are_those_of_the_uninterrupted_run(open_backend, kind, type_kv):
    path = str(demo_model_path()) if kind == "demo" else kind
    backend = open_backend(path, type_kv)
    tokens = prompt(400)
    decode(backend, 0, tokens[:300], 0)
    rows, checkpoint = stored(backend, 0, 300)
    expected = decode(backend, 0, tokens[300:], 300)
    for seq_id, target in ((1, backend), (0, open_backend(path, type_kv, fresh=1))):
        put_back(target, seq_id, rows, checkpoint, 300)
        assert np.array_equal(decode(target, seq_id, tokens[300:], 300), expected)


@pytest.mark.parametrize("n_tokens", [10, 64, 500])
@pytest.mark.parametrize("kind", WITH_CHECKPOINT)
def test_rows_and_checkpoint_continue_in_another_context_with_other_sequences(open_backend, kind, n_tokens):
    backend, other = open_backend(kind), open_backend(kind, n_parallel=2, n_ctx=512 + 256)
    tokens = prompt(n_tokens + 60)
    decode(backend, 2, tokens[:n_tokens], 0)
    rows, checkpoint = stored(backend, 2, n_tokens)
    assert checkpoint is not None
    assert np.array_equal(backend.read_checkpoint(2), checkpoint)
    expected = decode(backend, 2, tokens[n_tokens:], n_tokens)
    put_back(other, 1, rows, checkpoint, n_tokens)
    assert np.array_equal(stored(other, 1, n_tokens)[1], checkpoint)
    found = decode(other, 1, tokens[n_tokens:], n_tokens)
    if kind == "window":  # its cells are elsewhere in the ring: another order of summation
        assert found.argmax() == expected.argmax()
        assert np.abs(found - expected).max() < 2e-3
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", WITH_CHECKPOINT)
def test_a_checkpoint_of_an_earlier_position_goes_with_the_rows_up_to_there(open_backend, kind):
    backend = open_backend(kind)
    tokens = prompt(330)
    decode(backend, 0, tokens[:200], 0)
    checkpoint = backend.read_checkpoint(0).copy()
    expected = decode(backend, 0, tokens[200:], 200)
    rows, _ = stored(backend, 0, 330)
    image = image_of(backend, rows, checkpoint, 330)
    with pytest.raises(DecodeFailed, match="after 200 tokens"):
        backend.restore(1, image, 330)
    assert length(backend, 1) == 0
    backend.restore(1, image, 200)
    image.close()
    assert np.abs(decode(backend, 1, tokens[200:], 200) - expected).max() < (2e-3 if kind == "window" else 1e-9)


def test_a_prefix_is_copied_exactly_and_the_source_is_untouched(open_backend):
    backend = open_backend("attention")
    tokens = prompt(260)
    decode(backend, 0, tokens[:200], 0)
    before, (rows, _) = state_of(backend, 0), stored(backend, 0, 200)
    for n_tokens in (200, 77, 1):
        assert backend.copy_prefix(0, 2, n_tokens)
        copied, _ = stored(backend, 2, n_tokens)
        assert all(np.array_equal(mine[:n_tokens], theirs) for mine, theirs in zip(rows, copied, strict=True))
        backend.drop(2)
    assert state_of(backend, 0) == before
    assert backend.copy_prefix(0, 2, 200)
    assert np.array_equal(decode(backend, 2, tokens[200:], 200), decode(backend, 0, tokens[200:], 200))


@pytest.mark.parametrize("kind", WITH_CHECKPOINT)
def test_a_state_that_cannot_be_cut_is_copied_whole_or_not_at_all(open_backend, kind):
    backend = open_backend(kind)
    tokens = prompt(210)
    decode(backend, 0, tokens[:200], 0)
    before = state_of(backend, 0)
    assert not backend.copy_prefix(0, 1, 199)
    assert not backend.cut(0, 199)
    assert length(backend, 1) == 0
    assert state_of(backend, 0) == before
    assert backend.cut(0, 200)
    assert backend.copy_prefix(0, 1, 200)
    assert state_of(backend, 0) == before
    there, here = (decode(backend, seq_id, tokens[200:], 200) for seq_id in (1, 0))
    assert np.abs(there - here).max() < (2e-3 if kind == "window" else 1e-9)
    assert backend.cut(1, 0)
    assert length(backend, 1) == 0


@pytest.mark.parametrize("kind", MODELS)
def test_two_sequences_are_exchanged_exactly(open_backend, kind):
    backend = open_backend(kind)
    tokens = {0: prompt(130, seed=1), 2: prompt(90, seed=2)}
    for seq_id, mine in tokens.items():
        decode(backend, seq_id, mine, 0)
    before = {seq_id: stored(backend, seq_id, len(mine)) for seq_id, mine in tokens.items()}
    expected = {seq_id: decode(backend, seq_id, [7], len(mine)) for seq_id, mine in tokens.items()}
    for seq_id, mine in tokens.items():
        backend.drop(seq_id)
        put_back(backend, seq_id, *before[seq_id], len(mine))
    backend.swap(0, 2)
    for there, here in ((0, 2), (2, 0)):
        rows, checkpoint = stored(backend, there, len(tokens[here]))
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(rows, before[here][0], strict=True))
        assert checkpoint is None or np.array_equal(checkpoint, before[here][1])
        logits = decode(backend, there, [7], len(tokens[here]))
        assert np.abs(logits - expected[here]).max() < (2e-3 if kind == "window" else 1e-9)
    backend.swap(0, 1)  # with an empty one
    assert [length(backend, seq_id) for seq_id in range(3)] == [0, 91, 131]


@pytest.mark.parametrize("kind", MODELS)
def test_after_any_series_of_operations_every_sequence_is_as_if_computed_afresh(open_backend, kind):
    backend, afresh = open_backend(kind), open_backend(kind, fresh=1)
    rng = np.random.default_rng(5)
    held: list[list[int]] = [[] for _ in range(N_SEQ)]
    for _ in range(60):
        a, b = (int(i) for i in rng.permutation(N_SEQ)[:2])
        match rng.choice(["decode", "decode", "cut", "copy", "swap", "restore", "drop"]):
            case "decode" if len(held[a]) < 600:
                tokens = prompt(int(rng.integers(1, 90)), seed=int(rng.integers(1000)))
                decode(backend, a, tokens, len(held[a]))
                held[a] += tokens
            case "cut" if backend.cut(a, n := int(rng.integers(len(held[a]) + 1))):
                del held[a][n:]
            case "copy" if not held[b] and backend.copy_prefix(
                a, b, n := int(rng.choice([len(held[a]), len(held[a]) // 2]))
            ):
                held[b] = held[a][:n]
            case "swap":
                backend.swap(a, b)
                held[a], held[b] = held[b], held[a]
            case "restore" if held[a]:
                saved = stored(backend, a, len(held[a]))
                backend.drop(b)
                put_back(backend, b, *saved, len(held[a]))
                held[b] = list(held[a])
            case "drop":
                backend.drop(a)
                held[a] = []
        assert [length(backend, seq_id) for seq_id in range(N_SEQ)] == [len(tokens) for tokens in held]
    assert sum(map(bool, held)) >= 2
    for seq_id, tokens in enumerate(held):
        afresh.drop(0)
        found, expected = decode(backend, seq_id, [9], len(tokens)), decode(afresh, 0, [*tokens, 9], 0)
        assert np.abs(found - expected).max() < 0.01  # prompts in other slices; logits have a spread of 1
        if tokens:
            other = decode(afresh, 1, [*tokens[:-1], tokens[-1] + 1, 9], 0)
            assert np.abs(found - other).max() > 0.02  # one other token shows
            afresh.drop(1)


def test_a_reading_of_another_length_than_expected_is_refused(open_backend):
    for kind in MODELS:
        backend = open_backend(kind)
        decode(backend, 0, prompt(20), 0)
        for n_tokens in (19, 21):
            with pytest.raises(KvUnreadable, match="positions"):
                backend.read_kv(0, n_tokens)
        with pytest.raises(KvUnreadable):
            backend.read_kv(1, 20)
        assert backend.read_kv(0, 20).n_tokens == 20


def test_without_flash_attention_the_state_is_opaque_yet_sequences_are_exchanged(open_backend):
    backend = open_backend("attention", flash_attn=False)
    assert backend.kv_layout.kind is KvKind.OPAQUE
    assert "transposed_v" in backend.kv_layout.problem
    decode(backend, 0, prompt(20), 0)
    for call in (lambda: backend.read_kv(0, 20), lambda: backend.read_checkpoint(0), lambda: backend.new_image(20)):
        with pytest.raises(KvUnreadable, match="transposed_v"):
            call()
    before = state_of(backend, 0)
    assert not backend.cut(0, 10)
    backend.swap(1, 0)
    backend.swap(0, 1)
    assert state_of(backend, 0) == before


def test_an_incomplete_or_foreign_image_leaves_the_sequence_empty(open_backend):
    backend = open_backend("hybrid")
    decode(backend, 0, prompt(50), 0)
    rows, checkpoint = stored(backend, 0, 50)
    foreign = open_backend("recurrent")
    decode(foreign, 0, prompt(50), 0)
    with pytest.raises(ValueError, match="not a checkpoint of this model"):
        image_of(backend, rows, foreign.read_checkpoint(0), 50)
    image = backend.new_image(50)
    image.put_checkpoint(checkpoint)
    image.put(1, backend.kv_layout.columns, tuple(column[1:] for column in rows))
    with pytest.raises(DecodeFailed, match="rows are missing from position 0"):
        backend.restore(1, image, 50)
    with pytest.raises(DecodeFailed, match="does not fit"):
        backend.restore(1, backend.new_image(N_CTX + 1), N_CTX + 1)
    assert length(backend, 1) == 0
    image.put(0, backend.kv_layout.columns, tuple(column[:1] for column in rows))
    backend.restore(1, image, 50)
    assert length(backend, 1) == 50


def test_a_state_that_comes_out_at_another_length_is_not_left_there(open_backend):
    backend = open_backend("attention")
    decode(backend, 0, prompt(20), 0)
    state = np.frombuffer(bytearray(state_of(backend, 0)), dtype=np.uint8)
    with pytest.raises(DecodeFailed, match="has 20 of 21 tokens"):
        backend._write(1, state, 21)
    assert length(backend, 1) == 0


# Headers of a checkpoint are changed, or its length. What the codec lets through goes to llama.cpp:
# the process must live to print.
FUZZ = """
import sys
import numpy as np
from types import SimpleNamespace
from erllama.config import EngineConfig
from erllama.errors import DecodeFailed
from erllama.llama.backend import LlamaBackend
backend = LlamaBackend(EngineConfig(path=sys.argv[1], n_ctx=256, n_parallel=2, n_threads=1))
row = SimpleNamespace(seq_id=0, tokens=[5] * 40, start=0, n_tokens=40, n_logits=1)
backend.decode(SimpleNamespace(rows=(row,), adapters=(), n_tokens=40))
reading = backend.read_kv(0, 40)
rows, good = tuple(r.copy() for r in reading.rows(0, 40)), reading.checkpoint.copy()
rng = np.random.default_rng(0)
counts = dict(refused=0, taken=0, unchanged=0)
for i in range(600):
    bad = good.copy()
    if i % 3 == 0:
        bad[i // 3 % 32] ^= np.uint8(1 << rng.integers(8))
    elif i % 3 == 1:
        bad[4 * (i // 3 % 8) : 4 * (i // 3 % 8) + 4] = np.array([rng.choice([0, 1, 2, 39, 2**31, 2**32 - 1])], "<u4").view(np.uint8)
    else:
        bad = np.concatenate([bad, bad])[: rng.integers(2 * len(bad))]
    counts["unchanged"] += np.array_equal(bad, good)
    image = backend.new_image(40)
    if rows:
        image.put(0, backend.kv_layout.columns, rows)
    try:
        image.put_checkpoint(bad)
        backend.restore(1, image, 40)
        counts["taken"] += 1
    except (ValueError, DecodeFailed):
        counts["refused"] += 1
    image.close()
    backend.drop(1)
row.start = 40
backend.decode(SimpleNamespace(rows=(row,), adapters=(), n_tokens=40))
backend.close()
print(*counts.values())
"""


@pytest.mark.parametrize("kind", WITH_CHECKPOINT)
def test_no_malformed_checkpoint_ends_the_process(folder, kind):
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(folder / f"{kind}.gguf")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    refused, taken, unchanged = map(int, done.stdout.split())
    assert refused > 500
    assert taken == unchanged


def test_releasing_the_context_returns_its_memory_and_a_new_one_continues_exactly(tmp_path):
    shape = ModelShape("llama", 8, 256, 4, 4, 64, 65536)  # 8 KB of KV per token, hardly any weights
    write_random_model(tmp_path / "m.gguf", shape, file_type="Q8_0", seed=1)
    write_random_lora(tmp_path / "a.gguf", tmp_path / "m.gguf")
    kv_bytes = 4 * 12288 * 8192
    backend = LlamaBackend(EngineConfig(path=str(tmp_path / "m.gguf"), n_ctx=12288, n_parallel=4, n_threads=1))
    try:
        backend.load_adapter("a", str(tmp_path / "a.gguf"))
        adapters = (AdapterInfo("a", "", "a", 1.0),)
        tokens = prompt(128)
        decode(backend, 3, tokens[:100], 0, adapters)
        rows, checkpoint = stored(backend, 3, 100)
        expected = decode(backend, 3, tokens[100:], 100, adapters)
        image = image_of(backend, rows, checkpoint, 100)
        spare = backend.new_image(12288)  # its buffer stays with the backend when it is closed
        spare.put(
            0, backend.kv_layout.columns, tuple(np.zeros((12288, len(column[0])), dtype=np.uint8) for column in rows)
        )
        spare.close()
        resident = psutil.Process().memory_info().rss
        assert kv_bytes <= backend.release_context() < 2 * kv_bytes
        assert resident - psutil.Process().memory_info().rss > 0.9 * (kv_bytes + kv_bytes / 4)
        assert backend.release_context() == 0
        assert not backend.has_context
        backend.drop(3)
        with pytest.raises(AssertionError, match="without a context"):
            decode(backend, 3, [5], 0)
        assert backend.ensure_context()
        assert not backend.ensure_context()
        backend.restore(3, image, 100)
        image.close()
        assert np.array_equal(decode(backend, 3, tokens[100:], 100, adapters), expected)
    finally:
        backend.close()


def test_an_encoder_has_no_context_to_release(tmp_path):
    write_random_encoder(tmp_path / "e.gguf")
    backend = LlamaBackend(EngineConfig(path=str(tmp_path / "e.gguf")))
    assert backend.kv_layout.kind is KvKind.OPAQUE
    before = backend.embed([[5, 6]])[0]
    backend.release_context()
    assert not backend.ensure_context()
    assert np.array_equal(backend.embed([[5, 6]])[0], before)
    backend.close()
