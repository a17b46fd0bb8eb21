"""What the next turn of a chat costs when idle time has prepared it: through the HTTP app in this
process, on one model.

    python bench/idle.py --model MODEL.gguf --template TEMPLATE.jinja [--rounds 5] [--prompt 800]
    [--thought 300] [--reply 400] [--threads 2] [--json FILE]

Every round holds the same conversation twice, with other words and in turns first: with
`idle_prefill` and without. A first turn of about `--prompt` words is answered with reasoning of
`--thought` letters, if the template is of a family that reasons, and a reply of `--reply`; a grammar
makes any model say so much. The client waits until the model has nothing left to do, and asks for one
token more, with the reply in the history as clients send it, without the reasoning.

KIND.computed.with, .without   prompt tokens that the second turn computed; KIND is plain or reasoned
KIND.ttft.with, .without       time of the second turn, which is that of its first token
arrival.ttft.with, .without    of a stranger's request that arrives in the midst of the idle prefill,
                               and of the same without one

Ratios are with / without, of the medians.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
from harness import Figures, make_parser, median, say, with_server_threads

from cache_store import root_key
from deployments.http.options import HttpOptions
from deployments.http.ports import ReplyDefaults, ServedModel
from deployments.ingress.http_app import make_http_app
from deployments.ingress.prompts import PromptSource
from erllama import Model
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.events import Event
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, SamplingParams
from erllama.stats import ModelInfo

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class LocalModel:
    """The `ModelPort` of a model in this process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        yield await asyncio.to_thread(list, self._model.submit(request))

    async def expect(self, turn: NextTurn) -> None:
        self._model.expect(turn)

    async def ready(self) -> bool | None:
        return True

    async def model_info(self) -> ModelInfo:
        return self._model.model_info()


@dataclass(frozen=True, slots=True)
class Asked:
    message: dict[str, Any]
    computed: int
    seconds: float


class Client:
    """A conversation with one of the apps."""

    def __init__(self, app: Any, model: Model, words: str) -> None:
        self.app, self.model = app, model
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": words}]

    async def ask(self, **more: Any) -> Asked:
        body = {"model": "demo", "messages": self.messages, "temperature": 0, **more}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://bench") as client:
            started = time.perf_counter()
            answer = await client.post("/v1/chat/completions", json=body, timeout=600)
            seconds = time.perf_counter() - started
        answer.raise_for_status()
        told = answer.json()
        usage = told["usage"]
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        return Asked(told["choices"][0]["message"], computed, seconds)

    async def idle(self) -> None:
        """Until the model has nothing to do any more."""
        await self.app.state.expected_turns.settled()
        await asyncio.to_thread(self._wait, lambda: not self.model._call(lambda engine: len(engine.next_turns)))

    async def begun(self, n_before: int) -> None:
        """Until idle time has begun to compute."""
        await asyncio.to_thread(self._wait, lambda: self.model.stats().cache.idle_tokens > n_before)

    @staticmethod
    def _wait(is_over: Callable[[], bool], seconds: float = 60.0) -> None:
        give_up = time.monotonic() + seconds
        while not is_over() and time.monotonic() < give_up:
            time.sleep(0.002)

    def hear(self, said: dict[str, Any], words: str) -> None:
        self.messages += [{"role": "assistant", "content": said["content"]}, {"role": "user", "content": words}]


def words(n: int, seed: int) -> str:
    return " ".join([f"Number {seed}.", *(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(n))])


def reply_grammar(n_thought: int, n_reply: int, reasoning: tuple[str, str] | None) -> Constraint:
    thought = ""
    if reasoning is not None and n_thought:
        opening, closing = (text.strip() for text in reasoning)
        thought = f'"{opening}" [a-z ]{{{n_thought}}} "{closing}\\n\\n" '
    return Constraint(ConstraintKind.GBNF, f"root ::= {thought}[a-z ]{{{n_reply - 1}}} [a-z]", "reply_grammar")


def make_app(settings: dict[str, Any], model: Model, n_thought: int, n_reply: int, *, idle: bool) -> Any:
    prompts = PromptSource(EngineConfig(**settings, idle_prefill=idle), root=root_key("idle"), book=TranscriptBook())
    prompts.load()
    grammar = reply_grammar(n_thought, n_reply, prompts.tool_format.reasoning)
    prompts.defaults = replace(ReplyDefaults(), sampling=SamplingParams(temperature=0.0), grammar=grammar)
    served = ServedModel(id="demo", client=LocalModel(model), prompts=prompts, created=0)  # type: ignore[arg-type]
    return make_http_app([served], HttpOptions())


async def measure(args: Any, settings: dict[str, Any], model: Model, figures: Figures) -> list[str]:
    found: dict[str, list[float]] = {}
    failures = []
    for kind, n_thought in (("plain", 0), ("reasoned", args.thought)):
        apps = {
            how: make_app(settings, model, n_thought, args.reply, idle=how == "with") for how in ("with", "without")
        }
        for number in range(args.rounds):
            for how in ("with", "without") if number % 2 else ("without", "with"):
                seed = 100 * len(found) + 2 * number + (how == "with") + (1000 if n_thought else 0)
                client = Client(apps[how], model, words(args.prompt, seed))
                first = await client.ask(max_tokens=4 * (args.reply + args.thought))
                await client.idle()
                client.hear(first.message, words(20, seed))
                second = await client.ask(max_tokens=1)
                say(kind, how, f"computed={second.computed} seconds={second.seconds:.3f}")
                found.setdefault(f"{kind}.computed.{how}", []).append(second.computed)
                found.setdefault(f"{kind}.ttft.{how}", []).append(second.seconds)
        for number in range(args.rounds if n_thought else 0):
            for how in ("with", "without") if number % 2 else ("without", "with"):
                seed = 5000 + 2 * number + (how == "with")
                client, n_before = Client(apps[how], model, words(args.prompt, seed)), model.stats().cache.idle_tokens
                await client.ask(max_tokens=4 * (args.reply + args.thought))
                if how == "with":
                    await client.begun(n_before)
                stranger = await Client(apps[how], model, words(20, seed + 500)).ask(max_tokens=1)
                found.setdefault(f"arrival.ttft.{how}", []).append(stranger.seconds)
                await client.idle()
    for name, values in found.items():
        figures.add(name, median(values), "tokens" if "computed" in name else "s")
    for name in ("plain.computed", "reasoned.computed", "plain.ttft", "reasoned.ttft", "arrival.ttft"):
        figures.add_ratio(f"ratio.{name}", figures.get(f"{name}.with"), figures.get(f"{name}.without"))
    if not (figures.get("reasoned.computed.with") or 0) < (figures.get("reasoned.computed.without") or 0):
        failures.append("idle time spared no token")
    return failures


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--template")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=800)
    parser.add_argument("--thought", type=int, default=300)
    parser.add_argument("--reply", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with_server_threads()
    settings: dict[str, Any] = {"path": args.model, "n_ctx": 4096, "chat_template": args.template}
    figures = Figures()
    with Model(id="demo", n_parallel=4, n_threads=args.threads, **settings) as model:
        failures = asyncio.run(measure(args, settings, model, figures))
        figures.extra["idle"] = {name: value for name, value in vars_of(model).items() if name.startswith("idle")}
    return figures.conclude(args.json, failures)


def vars_of(model: Model) -> dict[str, Any]:
    cache = model.stats().cache
    return {name: getattr(cache, name) for name in type(cache).__dataclass_fields__}


if __name__ == "__main__":
    sys.exit(main())
