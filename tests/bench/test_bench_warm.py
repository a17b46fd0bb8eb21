"""The pure parts of bench/warm.py and of what it shares with its neighbours. No server is
started.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import warm
from completions import completion_request
from harness import Figures, shown_command
from store_speed import copier, read_plain, root_in
from stream_client import Raw, parse_reply, parse_stream
from warm import Prompts, Shot, problem_of, summarise, tier_of_hit

from cache_store import Block, BlockId, ChainKey, Kind


def shot(
    case: str, cached: int, tier: str = "", *, n: int = 512, turn: int = 0, ms: float = 1.0, restore_ms: float = 0.0
) -> Shot:
    return Shot(case, n, turn, ms, cached, tier, restore_ms)


@pytest.mark.parametrize(
    "good",
    [
        shot("ours.cold", 0),
        shot("ours.cold", 1),
        shot("ours.live", 512, "live"),
        shot("ours.evicted", 512, "ram_file"),
        shot("ours.disk_first", 513, "disk"),
        shot("ours.s3", 512, "s3"),
        shot("peer.hit", 512),
        shot("peer.saved_first", 512),
    ],
    ids=lambda good: good.case,
)
def test_a_prefix_that_was_found_where_it_should_be_is_no_problem(good: Shot) -> None:
    assert problem_of(good) is None


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (shot("ours.cold", 512), "512 tokens were cached"),
        (shot("peer.cold", 512), "512 tokens were cached"),
        (shot("ours.disk", 511, "disk"), "511 tokens were cached"),
        (shot("ours.disk", 528, "disk"), "528 tokens were cached"),
        (shot("peer.hit", 0), "0 tokens were cached"),
        (shot("ours.disk", 512, "live"), "came from live, not from disk"),
        (shot("ours.ram", 512), "came from nowhere, not from ram_file"),
    ],
)
def test_a_figure_that_would_be_a_lie_is_a_problem(bad: Shot, words: str) -> None:
    assert words in str(problem_of(bad))


def test_the_tier_is_that_of_the_hit_which_was_counted_in_between() -> None:
    before = {"prefix:live": 3, "exact:disk": 1}
    assert tier_of_hit(before, before | {"prefix:disk": 1}) == "disk"
    assert tier_of_hit(before, before | {"prefix:live": 4}) == "live"
    assert tier_of_hit(before, before) == ""


def test_prefixes_are_the_same_in_every_session_and_suffixes_never() -> None:
    first, second = Prompts(1000, [512, 600], 2, session=0), Prompts(1000, [512, 600], 2, session=1)
    assert first.keys == [(512, 0), (600, 0), (512, 1), (600, 1)]
    assert first.longest == (600, 0)
    assert first.prefixes == second.prefixes
    prompts = [p.prompt((512, 1)) for p in (first, first, second)]
    assert all(prompt[:512] == first.prefixes[512, 1] for prompt in prompts)
    assert len({tuple(prompt[512:]) for prompt in prompts}) == 3
    assert {len(prompt) for prompt in prompts} == {512 + warm.SUFFIX}


@pytest.mark.parametrize(("step", "memory"), [(0, b"bbb..."), (1, b"aabbb.")])
def test_a_plain_read_takes_every_byte_of_every_file(tmp_path: Path, step: int, memory: bytes) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file, data in zip(files, (b"aa", b"bbb"), strict=True):
        file.write_bytes(data)
    image = np.frombuffer(bytearray(b"......"), dtype=np.uint8)
    assert read_plain(files, image, step) > 0
    assert bytes(image) == memory


def test_a_restore_copies_the_rows_that_are_used_one_behind_the_other() -> None:
    key = ChainKey("ab" * 32)
    image = np.zeros(14, dtype=np.uint8)
    consume = copier(image)
    for start, n_use in ((0, 2), (2, 1)):
        rows = tuple(np.full((2, width), 10 * start + width, dtype=np.uint8) for width in (1, 3))
        id = BlockId(key, Kind.ROWS, key, key, start, 2)
        consume(Block(id, np.zeros(2, dtype=np.uint32), ("k0", "v0"), rows), n_use)
    assert image.tolist() == [1, 1, *[3] * 6, 21, 23, 23, 23, 0, 0]


def test_the_root_is_the_directory_that_is_named_like_one(tmp_path: Path) -> None:
    for name in ("index", "ab" * 32, "claims"):
        (tmp_path / name).mkdir()
    assert root_in(tmp_path) == "ab" * 32
    (tmp_path / ("cd" * 32)).mkdir()
    with pytest.raises(ValueError, match="too many"):
        root_in(tmp_path)


def test_the_ratios_are_of_medians_and_a_restore_call_counts_apart() -> None:
    figures = Figures()
    shots = [shot("ours.cold", 0, ms=ms, turn=turn) for turn, ms in enumerate((1000.0, 3000.0, 2000.0))]
    shots += [
        shot("ours.disk", 512, "disk", ms=20.0),
        shot("peer.hit", 514, ms=10.0),
        shot("peer.hit", 512, ms=10.0, turn=1),
    ]
    shots += [shot("peer.saved", 512, ms=5.0, restore_ms=35.0)]
    summarise(figures, shots, [512])
    assert figures.get("ours.ttft.cold_512") == 2000
    assert figures.get("ours.ttft.cold_512.spread") == 1
    assert figures.get("peer.cached.hit_512") == 512
    assert figures.get("peer.restore_512") == 35
    assert figures.get("peer.ttft.saved_incl_512") == 40
    ratios = {figure.name: figure.value for figure in figures.ratios}
    assert ratios == {"ratio.cold/disk_512": 100, "ratio.disk/peer.hit_512": 2, "ratio.disk/peer.saved_incl_512": 0.5}


def test_results_name_files_but_not_where_they_lay() -> None:
    argv = [
        "/some/where/bench/warm.py",
        "--model",
        "/some/where/m.gguf",
        "--json=/some/where/o.json",
        "--set",
        "a=b",
        "--no-s3",
    ]
    assert shown_command(argv) == "warm.py --model m.gguf --json=o.json --set a=b --no-s3"


def test_both_servers_get_the_same_body_which_lets_them_reuse_prefixes() -> None:
    body = json.loads(completion_request("m", [1, 2], 3).partition(b"\r\n\r\n")[2])
    assert body["prompt"] == [1, 2]
    assert body["cache_prompt"] is True
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"prompt_tokens_details": {"cached_tokens": 2}}, 2), ({}, 0), ({"prompt_tokens_details": None}, 0)],
)
def test_cached_tokens_are_those_of_the_usage(details: dict[str, object], cached: int) -> None:
    events = [
        {"choices": [{"text": "a", "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1} | details},
    ]
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert parse_stream(parse_reply(Raw(0, [(1, head + body)]))).cached_tokens == cached
