"""What serving itself costs: the real HTTP path, ingress, replica and engine around a backend that
takes no time.

    python bench/overhead.py [--streams 1,16,64] [--seconds 8] [--step-ms 0,20] [--mode both]
    [--json FILE]
    python bench/overhead.py --mode history
    python bench/overhead.py --mode dialects [--rounds 15]

For each mode (`tuned`: the switches of deployments.launch; `default`: Ray as it comes) one cluster
runs with one model per value of `--step-ms`: 0 decodes as fast as the engine loop turns, so tokens
leave in lumps; 20 is the pace of a real model, where every token is a message of its own. The
client runs K streams for `--seconds`, or K connections of short completions that are not streamed.

MODE.idle.PART_ms       CPU milliseconds per second of each part when nothing is asked of it: at few
                        paced streams most of PART_us
MODE.stepN.sK.tokens    tokens/s over all streams
MODE.stepN.sK.items     events with text per second
MODE.stepN.sK.PART_us   CPU microseconds per streamed token of proxy (HAProxy and ProxyActor),
                        ingress, replica, ray (all other processes of the cluster), serving (the
                        first three together), client (this process)
MODE.unary.sK.requests  completions of 4 tokens per second, K at a time; here PART_us is per request
MODE.unary.sK.p50       milliseconds per such request, the median

history.first, .second  CPU milliseconds to render and tokenise a chat of `--messages` messages (some
                        30,000 tokens of the demo model) that no one has seen, and with the next
                        turn behind it; no server runs

dialect.NAME.token_us, .stream_us, .request_us
                        CPU microseconds of the ingress per token of a stream, per short stream and
                        per request that is not streamed, by dialect; no server runs. Ratios are to
                        chat completions

CPU is user + system time from /proc, in ticks of 10 ms, so short runs are coarse. Ratios are
default/tuned: above one means that the switches help (for requests, items and tokens, below one
does). With step 0 everything shares the cores with the client; with a paced backend and few streams
the machine is mostly idle, and the figures are costs, not limits.

Hold still: nothing else on the machine. The model's file is a tiny GGUF made for the run; only its
vocabulary is read.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import Figures, int_list, make_parser, percentile, say
from overhead_dialects import measure_dialects
from servers import Ours, component, cpu_of
from stream_client import Connection, Truncated, encode_request, parse_reply, parse_stream

from deployments.ingress.prompts import PromptSource
from erllama.cache.setup import transcript_root
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

PARTS = ("proxy", "ingress", "replica")
PROMPT = list(range(97, 113))
N_CTX = 16_384
UNPACED_TOKENS = 1024
UNARY_TOKENS = 4
UNARY_STEP = 0  # short requests go to the model that does not sleep


@dataclass(slots=True)
class Tally:
    """What the client saw in one measurement."""

    requests: int = 0
    tokens: int = 0
    items: int = 0
    latencies_ms: list[float] | None = None
    wall_s: float = 0.0
    client_cpu_s: float = 0.0


def model_id(step_ms: int) -> str:
    return f"step{step_ms}"


def body(step_ms: int, max_tokens: int, number: int, *, stream: bool) -> bytes:
    """That of connection `number`: identical requests would be computed once."""
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    prompt = [97 + number // 26 % 26, 97 + number % 26, *PROMPT[2:]]
    request = {"model": model_id(step_ms), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}
    return encode_request("POST", "/v1/completions", request)


async def drive(port: int, make: Callable[[int], bytes], n: int, seconds: float, *, stream: bool) -> Tally:
    """`n` connections, each repeating the request of its number until the time is up; the last ones are finished.
    Replies are parsed as they end.
    """
    tally = Tally(latencies_ms=[])
    connections = [await Connection.open(port) for _ in range(n)]
    started, cpu = time.monotonic(), time.process_time()

    async def one(number: int, connection: Connection) -> None:
        data = make(number)
        while True:
            reply = parse_reply(await connection.request(data))
            if stream:
                parsed = parse_stream(reply)
                tally.tokens += parsed.completion_tokens
                tally.items += len(parsed.text_ns)
            elif reply.status != 200:
                raise ValueError(f"HTTP {reply.status}: {reply.body[:200]!r}")
            tally.requests += 1
            assert tally.latencies_ms is not None
            tally.latencies_ms.append((reply.done_ns - reply.sent_ns) / 1e6)
            if time.monotonic() - started >= seconds:
                return

    await asyncio.gather(*(one(number, connection) for number, connection in enumerate(connections)))
    tally.wall_s, tally.client_cpu_s = time.monotonic() - started, time.process_time() - cpu
    for connection in connections:
        connection.abort()
    return tally


def measure(server: Ours, figures: Figures, mode: str, args: Any) -> None:
    """Every figure of one mode."""
    say(f"{mode}: idle")
    with cpu_of(server, component) as used:
        time.sleep(args.seconds)
    for part in (*PARTS, "ray"):
        figures.add(f"{mode}.idle.{part}_ms", 1e3 * used.get(part, 0.0) / args.seconds, "ms/s")
    for n in args.streams:
        for step_ms in args.step_ms:
            paced = step_ms > 0
            max_tokens = (
                min(N_CTX - len(PROMPT) - 1, max(8, int(args.seconds * 1000 / step_ms))) if paced else UNPACED_TOKENS
            )
            seconds = 0.0 if paced else args.seconds  # one paced stream already lasts that long
            say(f"{mode}: {n} streams, step {step_ms} ms")
            with cpu_of(server, component) as used:
                tally = asyncio.run(
                    drive(server.port, partial(body, step_ms, max_tokens, stream=True), n, seconds, stream=True)
                )
            name = f"{mode}.{model_id(step_ms)}.s{n}"
            figures.add(f"{name}.tokens", tally.tokens / tally.wall_s, "tok/s")
            figures.add(f"{name}.items", tally.items / tally.wall_s, "1/s")
            _add_costs(figures, name, used, tally.client_cpu_s, tally.tokens, "us/tok")
        if UNARY_STEP in args.step_ms:
            say(f"{mode}: {n} connections of short completions")
            make = partial(body, UNARY_STEP, UNARY_TOKENS, stream=False)
            with cpu_of(server, component) as used:
                tally = asyncio.run(drive(server.port, make, n, args.seconds, stream=False))
            name = f"{mode}.unary.s{n}"
            figures.add(f"{name}.requests", tally.requests / tally.wall_s, "1/s")
            figures.add(f"{name}.p50", percentile(tally.latencies_ms or [], 50), "ms")
            _add_costs(figures, name, used, tally.client_cpu_s, tally.requests, "us/req")


def _add_costs(figures: Figures, name: str, used: dict[str, float], client_s: float, count: int, unit: str) -> None:
    for part in (*PARTS, "ray"):
        figures.add(f"{name}.{part}_us", 1e6 * used.get(part, 0.0) / count, unit)
    figures.add(f"{name}.serving_us", 1e6 * sum(used.get(part, 0.0) for part in PARTS) / count, unit)
    figures.add(f"{name}.client_us", 1e6 * client_s / count, unit)


def measure_history(figures: Figures, n_messages: int) -> None:
    """What the ingress does with a long chat, turn after turn."""
    source = PromptSource(EngineConfig(path="demo"), root=transcript_root("demo", ""), book=TranscriptBook())
    source.load()
    draw = random.Random(0)
    words = [
        "the",
        "sea",
        "a",
        "ship",
        "wind",
        "north",
        "old",
        "harbour",
        "sails",
        "and",
        "then",
        "we",
        "saw",
        "it",
        "again",
        ",",
        "later",
        "that",
        "night",
    ]

    def message(number: int) -> dict[str, str]:
        text = " ".join(draw.choice(words) for _ in range(130))
        return {"role": "assistant" if number % 2 else "user", "content": text}

    history = [message(number) for number in range(n_messages - 1 + n_messages % 2)]
    for name in ("first", "second"):
        begun = time.process_time()
        prompt = source.render_chat(history, None, {}).prompt
        figures.add(f"history.{name}", 1e3 * (time.process_time() - begun), "ms")
        figures.add(f"history.{name}.tokens", len(prompt), "1")
        history += [message(len(history)), message(len(history) + 1)]
    source.close()
    figures.add_ratio("ratio.history", figures.get("history.second"), figures.get("history.first"))


def warm_up(server: Ours, step_ms: Sequence[int]) -> None:
    """Load vocabularies, open every path once, and wait out the time in which HAProxy still uses
    its fallback.
    """
    for _ in range(8):
        for step in step_ms:
            try:
                asyncio.run(drive(server.port, partial(body, step, 16, stream=True), 4, 0.5, stream=True))
            except Truncated:  # HAProxy reloads while the app comes up and closes connections that it had kept open
                say("a connection was closed while warming up")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--streams", type=int_list, default=[1, 16, 64], help="concurrent streams (default 1,16,64; at most 64)"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument(
        "--step-ms", type=int_list, default=[0, 20], help="sleep per decode step, one model each (default 0,20)"
    )
    parser.add_argument("--mode", choices=("tuned", "default", "both", "history", "dialects"), default="both")
    parser.add_argument("--rounds", type=int, default=15, help="of the dialects (default 15)")
    parser.add_argument("--messages", type=int, default=200, help="of the history (default 200)")
    parser.add_argument("--port", type=int, default=8210)
    args = parser.parse_args()
    if not args.streams or not 1 <= min(args.streams) <= max(args.streams) <= 64:
        parser.error("--streams must be between 1 and 64")

    figures = Figures()
    if args.mode in ("history", "dialects"):
        if args.mode == "history":
            measure_history(figures, args.messages)
        else:
            measure_dialects(figures, args.rounds)
        figures.report(args.json)
        return
    logging.getLogger("gguf").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as directory:
        path = Path(directory, "vocab.gguf")
        write_random_model(path, SHAPES["tiny-qwen2"])
        models = [
            {"id": model_id(step), "path": str(path), "n_ctx": N_CTX, "n_parallel": 64, "speculation": "off"}
            for step in args.step_ms
        ]
        app_args = {"models": models, "step_ms": {model_id(step): step for step in args.step_ms}}
        for mode in ("default", "tuned") if args.mode == "both" else (args.mode,):
            with Ours(app_args, port=args.port, tuned=mode == "tuned", import_path="overhead_app:build_app") as server:
                warm_up(server, args.step_ms)
                measure(server, figures, mode, args)
    if args.mode == "both":
        for figure in [figure for figure in figures.figures if figure.name.startswith("tuned.")]:
            name = figure.name.removeprefix("tuned.")
            if not name.endswith(("client_us", "ray_us")):
                figures.add_ratio(f"ratio.{name}", figures.get(f"default.{name}"), figure.value)
    figures.report(args.json)


if __name__ == "__main__":
    main()
