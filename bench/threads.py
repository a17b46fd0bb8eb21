"""Decode speed with fixed numbers of threads and with adaptive ones, beside busy processes.

    python bench/threads.py --model MODEL.gguf [--busy 0,1,2,4] [--rounds 4] [--json FILE]

One sequence decodes greedily on one thread of this process, as the engine does, with the OpenMP
switches of the launcher. Beside it run so many processes that only count (an endless loop in Python,
bound to no core). Each round decodes for `--seconds` with every fixed count and with
`ThreadTuner`, in an order that alternates; a tuner lives through all rounds of its number of
busy processes, and what it needs to find its count is part of its first round.

fixed.tN.bB     tokens/s with N threads beside B busy processes, the median over the rounds
auto.bB         the same, with the count that the tuner chooses
held.bB         that count at the end of the last round
ratio.best.bB   auto / the best of the fixed counts
ratio.all.bB    auto / as many threads as cores, which is what was used before

Hold still: what else runs on the machine counts as busy processes. `load` in the JSON says so.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
from harness import Figures, PromptMaker, int_list, make_parser, median, say, with_server_threads

from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.config import EngineConfig
from erllama.demo import demo_model_path
from erllama.llama.backend import LlamaBackend
from erllama.pace.thread_tuner import ThreadTuner

_WARM_DECODES = 4  # of a segment with a fixed count; they do not count


@contextlib.contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """`n` processes that each want a core; gone behind the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Decoder:
    """One sequence behind a prompt, whose reply begins again when the context is full."""

    def __init__(self, backend: LlamaBackend, prompt: list[int]) -> None:
        self._backend = backend
        self._prompt = prompt
        self._depth = 0
        self._token = 0
        self._restart()

    def _restart(self) -> None:
        self._backend.drop(0)
        self._depth = 0
        self._token = self._decode(self._prompt)

    def _decode(self, tokens: list[int]) -> int:
        row = SimpleNamespace(seq_id=0, tokens=tokens, start=self._depth, n_tokens=len(tokens), n_logits=1)
        ((logits,),) = self._backend.decode(BatchPlan((cast(PlanRow, row),), ()))
        self._depth += len(tokens)
        return int(np.argmax(logits))

    def next(self) -> float:
        """The seconds that the next token took."""
        if self._depth + 1 >= self._backend.n_ctx:
            self._restart()
        started = time.perf_counter()
        self._token = self._decode([self._token])
        return time.perf_counter() - started


def fixed(decoder: Decoder, backend: LlamaBackend, n_threads: int, seconds: float) -> float:
    """Tokens per second with a count."""
    backend.set_threads(n_threads)
    for _ in range(_WARM_DECODES):
        decoder.next()
    return rate(decoder.next, seconds)


def adaptive(decoder: Decoder, backend: LlamaBackend, tuner: ThreadTuner, seconds: float) -> float:
    """Tokens per second with a tuner's counts; trials are part of it."""

    def one() -> float:
        backend.set_threads(tuner.count)
        took = decoder.next()
        tuner.note(took, n_rows=1)
        return took

    return rate(one, seconds)


def rate(one: Callable[[], float], seconds: float) -> float:
    n, spent = 0, 0.0
    while spent < seconds:
        spent += one()
        n += 1
    return n / spent


def main() -> None:
    with_server_threads()
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--busy", type=int_list, default=[0, 1, 2, 4], help="busy processes (default 0,1,2,4)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="the most (default: the cores)")
    parser.add_argument("--type-kv", default="q8_0")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one segment (default 4)")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    config = EngineConfig(
        path=path, n_ctx=1024, n_parallel=1, type_k=args.type_kv, type_v=args.type_kv, max_threads=args.threads
    )
    backend = LlamaBackend(config)
    decoder = Decoder(backend, PromptMaker(backend.n_vocab).make(args.prompt_tokens))
    counts = sorted({1, max(1, args.threads // 2), max(1, args.threads - 1), args.threads})
    figures = Figures()
    for n_busy in args.busy:
        tuner = ThreadTuner(args.threads)
        rates: dict[str, list[float]] = defaultdict(list)
        with busy_processes(n_busy):
            for turn in range(args.rounds):
                say(f"{n_busy} busy, round {turn + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}, {tuner!r}")
                kinds: list[int | None] = [*counts, None]
                for kind in kinds if turn % 2 == 0 else reversed(kinds):
                    if kind is None:
                        rates["auto"].append(adaptive(decoder, backend, tuner, args.seconds))
                    else:
                        rates[f"fixed.t{kind}"].append(fixed(decoder, backend, kind, args.seconds))
        for name, values in rates.items():
            figures.add(f"{name}.b{n_busy}", median(values), "tok/s")
        figures.add(f"held.b{n_busy}", tuner.held, "threads")
        auto = figures.get(f"auto.b{n_busy}")
        best = max(figures.get(f"fixed.t{count}.b{n_busy}") or 0.0 for count in counts)
        figures.add_ratio(f"ratio.best.b{n_busy}", auto, best)
        figures.add_ratio(f"ratio.all.b{n_busy}", auto, figures.get(f"fixed.t{args.threads}.b{n_busy}"))
        figures.extra.setdefault("rounds", {})[str(n_busy)] = rates
    backend.close()
    figures.report(args.json)


if __name__ == "__main__":
    main()
