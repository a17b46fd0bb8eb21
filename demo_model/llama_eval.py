"""Runs `evaluate` on a GGUF through llama.cpp: `python -m demo_model.llama_eval [--model FILE]
[--samples 200]`.

A measuring script, no part of the engine: it uses the high-level class of llama_cpp, greedy, one
sequence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from llama_cpp import Llama

from demo_model.evaluate import evaluate
from demo_model.samples import BUCKETS
from erllama.demo import demo_model_path

MAXIMUM_REPLY_TOKENS = 160


def greedy_generator(llama: Llama) -> Callable[[str], str]:
    end = llama.token_eos()

    def generate(prompt: str) -> str:
        reply: list[int] = []
        llama.reset()  # type: ignore[no-untyped-call]
        for token in llama.generate(tokens(llama, prompt), temp=0.0, repeat_penalty=1.0):
            if token == end or len(reply) == MAXIMUM_REPLY_TOKENS:
                break
            reply.append(token)
        return llama.detokenize(reply).decode(errors="replace")

    return generate


def tokens(llama: Llama, text: str) -> list[int]:
    return list(llama.tokenize(text.encode(), add_bos=False, special=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the packaged demo model")
    parser.add_argument("--samples", type=int, default=200, help="per bucket and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--buckets", nargs="+", choices=list(BUCKETS), default=list(BUCKETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mistakes", type=int, default=0, help="wrong replies to show per bucket, on stderr")
    arguments = parser.parse_args()
    llama = Llama(
        str(arguments.model or demo_model_path()), n_ctx=4096, n_batch=2048, n_threads=arguments.threads,
        n_threads_batch=arguments.threads, verbose=False,
    )  # fmt: skip
    figures = evaluate(
        greedy_generator(llama),
        lambda text: len(tokens(llama, text)),
        buckets=arguments.buckets,
        seeds=arguments.seeds,
        n_samples=arguments.samples,
    )
    for figure in figures:
        print(figure, flush=True)
        for sample, reply in figure.mistakes[: arguments.mistakes]:
            print(f"  {sample.prompt[-160:]!r}\n  wanted {sample.expected!r}\n  got    {reply!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
