"""The pure parts of bench/turns.py. No model is loaded."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from harness import Figures
from stream_client import Reply
from turns import Turn, add_bytes, add_turns, kv_bytes_per_token, peer_turn, problem_of, stored_by_kind

from cache_store import BlockId, ChainKey, Kind

KEY = ChainKey("ab" * 32)


def turn(prompt: int, computed: int, cached: int, tier: str = "live", ms: float = 1.0) -> Turn:
    return Turn(prompt, computed, cached, ms, (1, 2, 3), tier)


@pytest.mark.parametrize(
    ("taken", "tier", "words"),
    [
        (turn(300, 0, 0, ""), "live", None),
        (turn(1100, 800, 799), "live", None),
        (turn(1100, 800, 799, "disk"), "disk", None),
        (turn(700, 400, 0, ""), "disk", None),
        (turn(700, 400, 0, ""), "live", "0 of 400 tokens reused"),
        (turn(1100, 800, 797), "live", "797 of 800 tokens reused"),
        (turn(1100, 800, 799, "live"), "disk", "from live, not from disk"),
    ],
)
def test_a_turn_must_reuse_all_but_what_cannot_be(taken: Turn, tier: str, words: str | None) -> None:
    problem = problem_of(taken, 2, tier)
    assert problem is None if words is None else words in str(problem)


def test_hits_count_per_turn_and_reuse_over_all_that_could_be_reused() -> None:
    figures = Figures()
    add_turns(figures, "live", [turn(300, 0, 0, ms=9.0), turn(800, 400, 300, ms=4.0), turn(1000, 600, 600, ms=2.0)])
    assert [figures.get(f"live.hit.t{n:02}") for n in (1, 2, 3)] == [0, 0.375, 0.6]
    assert figures.get("live.reuse") == 0.9
    assert figures.get("live.prefilled") == 300 + 500 + 400
    assert figures.get("live.ttft") == 3  # the first turn has nothing to reuse


def test_written_bytes_are_set_against_kv_bytes() -> None:
    figures = Figures()
    add_bytes(figures, "store.branch.", "branch", 2_000_000, 3_000_000)
    assert [(f.name, f.value) for f in figures.figures] == [("store.branch.kv", 2.0), ("store.branch.written", 3.0)]
    assert [(f.name, f.value) for f in figures.ratios] == [("store.ratio.branch", 1.5)]


def test_objects_are_told_apart_by_their_names_and_others_are_not_counted(tmp_path: Path) -> None:
    rows = BlockId(KEY, Kind.ROWS, KEY, KEY, 0, 256)
    end = BlockId(KEY, Kind.END, KEY, KEY, 256, 0)
    for name, size in ((rows.name, 100), (end.name, 7), ("index/x.parquet", 50), (f"{KEY}/ab/other.arrow", 50)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    assert stored_by_kind(tmp_path) == {Kind.ROWS: [100], Kind.END: [7], Kind.REPLAY: []}


def test_a_token_weighs_its_rows_of_all_columns(tmp_path: Path) -> None:
    schema = pa.schema([("payload", pa.binary(512))], {"erllama.block": '{"row_bytes":[96,32]}'})
    with pa.ipc.new_file(tmp_path / "x.rows.arrow", schema):
        pass
    assert kv_bytes_per_token(tmp_path) == 128


def test_the_time_to_the_peers_first_token_is_its_reply_without_the_generation() -> None:
    body = json.dumps({"tokens": [5, 6], "timings": {"prompt_n": 301, "cache_n": 99, "predicted_ms": 30.0}}).encode()
    taken = peer_turn(Reply(1_000_000, 51_000_000, 200, {}, body, ()), 100)
    assert taken == Turn(400, 100, 99, 20.0, (5, 6), "live")
    with pytest.raises(ValueError, match="HTTP 500"):
        peer_turn(Reply(0, 1, 500, {}, b"no", ()), 0)
