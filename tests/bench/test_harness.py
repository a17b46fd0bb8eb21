"""The pure parts of bench/: percentiles, figures, HTTP and event-stream parsing. No server is
started.
"""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import harness
import stream_client
from harness import Figure, Figures, PromptMaker, format_value, int_list, median, percentile, setting, spread
from stream_client import Raw, Stream, chunk_spans, encode_request, parse_reply, parse_stream, split_events, steady_rate


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def piece(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish}])


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def stream(*text_ns: int, sent_ns: int = 0, tokens: int | None = None) -> Stream:
    return Stream(sent_ns, text_ns[-1], text_ns, "x" * len(text_ns), 1, len(text_ns) if tokens is None else tokens)


def test_a_percentile_lies_between_its_neighbours() -> None:
    values = [40.0, 10.0, 20.0, 30.0]
    assert [percentile(values, p) for p in (0, 50, 100)] == [10, 25, 40]
    assert percentile([7.0], 99) == 7
    assert math.isnan(percentile([], 50))


def test_a_median_ignores_what_could_not_be_measured() -> None:
    assert median([3.0, math.nan, 1.0, 2.0]) == 2
    assert math.isnan(median([math.nan]))
    assert spread([8.0, 10.0, 12.0]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12, "12"),
        (1234567.0, "1235000"),
        (9.9999, "10.00"),
        (95.04, "95.04"),
        (0.0002481, "0.0002481"),
        (math.nan, "nan"),
    ],
)
def test_a_value_prints_without_an_exponent(value: float, text: str) -> None:
    assert format_value(value) == text


def test_a_figure_is_a_line_of_three_columns() -> None:
    assert Figure("ours.decode.s4", 73.4, "tok/s").line().split(" ") == ["ours.decode.s4", "73.40", "tok/s"]


def test_ratios_come_last_on_paper_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures()
    figures.add("a", 2.0, "ms")
    figures.add_ratio("ratio", 3.0, 2.0)
    figures.add("b", math.nan, "ms")
    figures.report(tmp_path / "new" / "figures.json")
    assert capsys.readouterr().out == "a 2.000 ms\nb nan ms\nratio 1.500 x\n"
    document = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert [(row["name"], row["value"]) for row in document["figures"]] == [("a", 2.0), ("b", None), ("ratio", 1.5)]
    assert {"command", "date", "cpu", "load_before", "load_after"} <= document.keys()


def test_a_ratio_of_something_not_measured_is_left_out() -> None:
    figures = Figures()
    figures.add_ratio("r", None, 2.0)
    figures.add_ratio("r", 2.0, 0.0)
    figures.add_ratio("r", 2.0, math.nan)
    assert figures.ratios == []


def test_prompts_repeat_for_a_seed_and_never_within_one() -> None:
    first, second = PromptMaker(1000, seed=1), PromptMaker(1000, seed=1)
    prompt = first.make(50)
    assert prompt == second.make(50)
    assert prompt != first.make(50)
    assert all(100 <= token < 900 for token in prompt)


def test_options_parse_lists_and_settings() -> None:
    assert int_list("1,4,8") == [1, 4, 8]
    assert setting("n_batch=2048") == ("n_batch", 2048)
    assert setting("type_k=q8_0") == ("type_k", "q8_0")
    with pytest.raises(harness.argparse.ArgumentTypeError, match="expected integers"):
        int_list("1,x")


def test_an_event_has_the_time_of_the_read_that_completed_it() -> None:
    first, second = piece("a"), piece("b", "length")
    wire = HEAD + chunk(first) + chunk(second + USAGE) + END
    cut = wire.index(b'"b"')
    reply = parse_reply(Raw(5, [(10, wire[:30]), (20, wire[30:cut]), (30, wire[cut:])]))
    assert [e.ns for e in reply.events] == [20, 30, 30, 30]
    parsed = parse_stream(reply)
    assert parsed == Stream(5, 30, (20, 30), "ab", 3, 2)
    assert parsed.ttft_s == pytest.approx(15e-9)


def test_an_event_may_span_chunks() -> None:
    whole = piece("split", "stop") + USAGE
    wire = HEAD + chunk(whole[:7]) + chunk(whole[7:40]) + chunk(whole[40:]) + END
    assert parse_stream(parse_reply(Raw(0, [(1, wire)]))).text == "split"


def test_comments_are_no_events() -> None:
    assert [data for _, data in split_events(b": keep-alive\n\ndata: 1\n\n: x\ndata: 2\ndata:3\n\ndata: cut")] == [
        "1",
        "2\n3",
    ]


def test_chat_deltas_count_as_text() -> None:
    body = (
        event(choices=[{"delta": {"content": "hi"}}]) + event(choices=[{"delta": {}, "finish_reason": "stop"}]) + USAGE
    )
    assert parse_stream(parse_reply(Raw(0, [(1, HEAD + chunk(body) + END)]))).text == "hi"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (piece("a"), "no finish_reason"),
        (piece("a", "stop"), "no usage"),
        (event(error={"message": "boom"}), "an error inside the stream"),
    ],
)
def test_a_stream_that_is_not_whole_is_an_error(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_stream(parse_reply(Raw(0, [(1, HEAD + chunk(body) + END)])))


def test_an_error_status_is_an_error_with_its_body() -> None:
    raw = Raw(0, [(1, b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nRetry-After: 3\r\n\r\n{}")])
    reply = parse_reply(raw)
    assert (reply.status, reply.headers["retry-after"], reply.body) == (429, "3", b"{}")
    with pytest.raises(ValueError, match="HTTP 429"):
        parse_stream(reply)


@pytest.mark.parametrize("body", [b"3\r\nabc\r\n", b"3\r\nabcd\r\n0\r\n\r\n"])
def test_broken_framing_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        chunk_spans(body, 0)


def test_something_else_than_http_is_an_error() -> None:
    with pytest.raises(ValueError, match="not an HTTP reply"):
        parse_reply(Raw(0, [(1, b"SSH-2.0\r\n\r\n")]))


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "wire",
    [HEAD + chunk(piece("a", "stop")) + END, HEAD + b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd"],
    ids=["stream", "empty stream", "length"],
)
def test_the_end_of_a_reply_is_seen_at_its_last_byte(wire: bytes, size: int) -> None:
    connection = stream_client.Connection()
    parts = [wire[i : i + size] for i in range(0, len(wire), size)]
    assert [connection._is_end(part) for part in parts] == [False] * (len(parts) - 1) + [True]


def test_steady_rate_counts_only_while_all_streams_run() -> None:
    early, late = (
        stream(*range(0, 11_000_000_000, 1_000_000_000)),
        stream(*range(5_000_000_000, 16_000_000_000, 1_000_000_000)),
    )
    assert steady_rate([early, late]) == pytest.approx(2.0)
    assert math.isnan(steady_rate([stream(0, 1), stream(5, 6)]))


def test_steady_rate_counts_tokens_not_events() -> None:
    assert steady_rate([stream(0, 1_000_000_000, 2_000_000_000, tokens=21)]) == pytest.approx(10.0)


def test_a_request_says_how_long_its_body_is() -> None:
    head, _, body = encode_request("POST", "/v1/completions", {"prompt": [1]}).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert encode_request("GET", "/health").endswith(b"content-length: 0\r\n\r\n")
