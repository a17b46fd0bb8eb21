"""What lets slices and threads adapt: with llama.cpp's CPU backend neither the lengths of a prompt's
slices nor the number of threads changes a bit of its KV, as long as slices end where `slice_end` says.

The limits of that are shown, too, so that a build of llama.cpp that moves them is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from erllama.backend.batch_plan import BatchPlan
from erllama.backend.slices import slice_end
from erllama.config import EngineConfig
from erllama.demo import demo_model_path
from erllama.llama.backend import LlamaBackend
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

pytestmark = pytest.mark.model

WEIGHTS, KV_TYPES = ("Q8_0", "Q4_0", "F16"), ("f16", "q8_0")
N_PROMPT = 620  # 9 tiles and 44 tokens; two passes of 512
LENGTHS = ((1,), (512,), (200, 64, 512))
N_THREADS = 2


class Computer:
    """A model with two sequences that computes what it is told."""

    def __init__(self, path: Path, type_kv: str, **settings: object) -> None:
        config = {"n_ctx": 768, "n_parallel": 2, "n_threads": N_THREADS, "type_k": type_kv, "type_v": type_kv}
        self.backend = LlamaBackend(EngineConfig(path=str(path), **{**config, **settings}))  # type: ignore[arg-type]
        self.tokens = [int(token) for token in np.random.default_rng(1).integers(40, 200, N_PROMPT + 8)]

    def slice(self, start: int, end: int, seq_id: int = 0) -> np.ndarray:
        """The logits after tokens from `start` to `end`, which are computed in one decode."""
        tokens = self.tokens[start:end]
        row = SimpleNamespace(seq_id=seq_id, tokens=tokens, start=start, n_tokens=len(tokens), n_logits=1)
        ((logits,),) = self.backend.decode(BatchPlan((row,), ()))  # type: ignore[arg-type]
        return logits.copy()

    def prompt(self, lengths: tuple[int, ...], unit: int, n_tokens: int = N_PROMPT) -> tuple[bytes, bytes]:
        """KV and last logits of a cold prompt in slices of those lengths, in turns."""
        self.backend.drop(0)
        at, turns, logits = 0, cycle(lengths), None
        while at < n_tokens:
            end = slice_end(at, n_tokens, next(turns), unit)
            at, logits = end, self.slice(at, end)
        assert logits is not None
        rows = self.backend.read_kv(0, n_tokens).rows(0, n_tokens)
        return b"".join(column.tobytes() for column in rows), logits.tobytes()

    def replies(self, n_threads: int, depth: int, seq_ids: tuple[int, ...]) -> list[bytes]:
        """Logits of the two tokens behind `depth` others, for those sequences at once."""
        self.backend.set_threads(1)
        for seq_id in (0, 1):
            self.backend.drop(seq_id)
            for start in range(0, depth, 512):
                self.slice(start, min(start + 512, depth), seq_id)
        self.backend.set_threads(n_threads)
        found = []
        for at in range(depth, depth + 2):
            one = [
                SimpleNamespace(seq_id=seq_id, tokens=[self.tokens[at]], start=at, n_tokens=1, n_logits=1)
                for seq_id in seq_ids
            ]
            found += [logits.tobytes() for (logits,) in self.backend.decode(BatchPlan(tuple(one), ()))]  # type: ignore[arg-type]
        return found


@pytest.fixture(scope="module")
def computers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Computer]]:
    folder = tmp_path_factory.mktemp("models")
    paths = {"Q8_0": demo_model_path()}
    for file_type in ("Q4_0", "F16"):
        paths[file_type] = folder / f"{file_type}.gguf"
        write_random_model(paths[file_type], SHAPES["tiny-qwen3"], file_type=file_type, seed=1)
    opened = {(weights, kv): Computer(paths[weights], kv) for weights, kv in product(WEIGHTS, KV_TYPES)}
    yield opened
    for computer in opened.values():
        computer.backend.close()


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_kv_and_logits_of_a_prompt_are_the_same_with_slices_of_any_lengths_and_any_threads(computers, weights, kv):
    computer = computers[weights, kv]
    unit = computer.backend.slice_unit
    assert unit == {"f16": 64, "q8_0": 16}[kv]
    expected = computer.prompt((256,), unit)
    for lengths, n_threads in zip(LENGTHS, cycle((N_THREADS, 1)), strict=False):
        computer.backend.set_threads(n_threads)
        assert computer.prompt(lengths, unit) == expected, (lengths, n_threads)


def test_with_an_f16_cache_fewer_rows_than_a_tile_are_computed_along_another_path(computers):
    computer = computers["Q8_0", "f16"]
    assert computer.prompt((32,), 32, 128) != computer.prompt((64,), 64, 128)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_number_of_threads_changes_no_bit_of_what_is_sampled(computers, weights, kv):
    computer = computers[weights, kv]
    for depth, seq_ids in [(100, (0,)), (300, (0, 1)), *([(300, (0,))] if kv == "q8_0" else [])]:
        assert computer.replies(1, depth, seq_ids) == computer.replies(N_THREADS, depth, seq_ids), (depth, seq_ids)


def test_but_of_a_lone_sequence_with_a_long_f16_cache_which_deterministic_keeps_from_it(computers):
    computer = computers["Q8_0", "f16"]
    assert computer.replies(1, 300, (0,)) != computer.replies(N_THREADS, 300, (0,))
    assert not computer.backend.adapts_threads  # a number was configured
    for kv, deterministic, adapts in (("f16", True, False), ("q8_0", True, True), ("f16", False, True)):
        other = Computer(demo_model_path(), kv, n_threads="auto", max_threads=2, deterministic=deterministic)
        assert (other.backend.adapts_threads, other.backend.n_threads) == (adapts, 2)
        assert (other.backend.slice_unit == 0) == deterministic
        other.backend.close()


def test_threads_hold_for_a_context_that_is_made_later(computers):
    computer = computers["Q8_0", "q8_0"]
    computer.backend.set_threads(1)
    expected = computer.prompt((256,), 16, 300)
    computer.backend.release_context()
    computer.backend.set_threads(N_THREADS)
    computer.backend.ensure_context()
    assert computer.prompt((256,), 16, 300) == expected


@pytest.mark.parametrize("shape", ["tiny-gemma3", "tiny-mamba", "tiny-jamba"])
def test_models_with_windows_and_recurrent_states_keep_slices_of_one_length(tmp_path, shape):
    write_random_model(tmp_path / "m.gguf", SHAPES[shape], file_type="F16", seed=1)
    computer = Computer(tmp_path / "m.gguf", "f16")
    assert computer.backend.slice_unit == 0
    computer.backend.close()
