"""What a client's noise costs an agent's conversation, with the rules against it and without: the real
application, templates, vocabulary and engine in this process, without Ray.

    python bench/noise.py [--turns 10] [--json FILE]

Two clients, made up in the form that the real ones have:

claude      Anthropic's API, in the shape of Claude Code: a billing header with another hash in each
            request, tools, a long system text in blocks, the day in the first message of the user; a
            message that was a list of one block is a text the turn after
opencode    OpenAI's API, in the shape of opencode: the day stands in the system text, and midnight
            comes in the middle of the conversation

and ways to serve them: `off` (no rules), `on` (the rules that run of themselves), `date` (`opt_in`
of the rule `date`: the day stands at the user's first message), `last` (the same rule, with the day
behind all that was said).

CLIENT.WAY.tNN       cached tokens / prompt tokens of turn NN
CLIENT.WAY.next      the same of the first turn of another conversation, on the next day
CLIENT.WAY.cached    of all turns together
CLIENT.WAY.prefilled prompt tokens that were computed, all turns together

Greedy, one reply of `--reply` tokens per turn. Fails when `claude.on` computes more in a turn than
what is new in it, give or take `SPARE_TOKENS`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import httpx
from harness import Figures, make_parser, say, with_server_threads

from cache_store.format.keys import root_key
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.ingress.http_app import make_http_app
from deployments.ingress.prompts import PromptSource
from deployments.noise.options import NoiseOptions
from deployments.noise.rules import packaged_rules
from erllama import Model
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import ErllamaError
from erllama.events import Event
from erllama.request import GenerationRequest
from erllama.stats import ModelInfo

SPARE_TOKENS = 8  # the end of a prompt that the engine may compute again, and the mark of a reply's end
DAYS = ("Fri Nov 27 2026", "Sat Nov 28 2026", "Sun Nov 29 2026")
TOPICS = ("files", "tests", "commits", "plans", "names", "errors", "style", "tools")
RULES = " ".join(f"Of {topic}: read them first, change little, and say what was done." for topic in TOPICS * 3)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request cost, in tokens."""

    prompt_tokens: int
    cached: int
    told: str

    @property
    def share(self) -> float:
        return self.cached / self.prompt_tokens


class LocalModel:
    """The `ModelPort` of a model in this process; each reply is one list of events."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        yield await asyncio.to_thread(list, self._model.submit(request))

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        return self._model.embed_many(inputs)

    async def ready(self) -> bool | None:
        return True

    async def model_info(self) -> ModelInfo:
        return self._model.model_info()

    def end_all(self, error: ErllamaError) -> None:
        """Nothing runs here beyond its request."""


# --- the clients ----------------------------------------------------------------------------------


def tool_names() -> Iterator[str]:
    return (f"{verb}_{what}" for verb in ("read", "write", "find") for what in ("file", "folder"))


def schema(name: str) -> dict[str, Any]:
    about = {"type": "string", "description": f"Where to {name.replace('_', ' a ')}, from the root."}
    return {"type": "object", "properties": {"path": about}, "required": ["path"]}


class ClaudeShape:
    """In the shape of Claude Code's requests."""

    path = "/v1/messages"

    def __init__(self, reply_tokens: int) -> None:
        self._n_requests = 0
        self._said: list[tuple[str, str]] = []
        self._reply_tokens = reply_tokens

    def ask(self, words: str, day: str) -> dict[str, Any]:
        self._n_requests += 1
        if not self._said:  # frozen: the day of a session's first turn
            words = f"<system-reminder>\nThe day is {day}.\n</system-reminder>\n{words}"
        self._said.append(("user", words))
        hash = f"{self._n_requests * 7919 % 65536:04x}"
        billing = f"x-anthropic-billing-header: cc_version=2.1.257.{hash[:3]}; cc_entrypoint=cli; cch={hash}a;"
        return {
            "model": "demo",
            "max_tokens": self._reply_tokens,
            "temperature": 0,
            "system": [self._block(billing), self._block(RULES, cached=True)],
            "tools": [
                {"name": name, "description": "A tool of the agent.", "input_schema": schema(name)}
                for name in tool_names()
            ],
            "messages": [self._message(n) for n in range(len(self._said))],
        }

    def _message(self, n: int) -> dict[str, Any]:
        role, words = self._said[n]
        is_last = n == len(self._said) - 1
        return {"role": role, "content": [self._block(words, cached=True)] if is_last else words}

    @staticmethod
    def _block(words: str, *, cached: bool = False) -> dict[str, Any]:
        return {"type": "text", "text": words} | ({"cache_control": {"type": "ephemeral"}} if cached else {})

    def hear(self, reply: dict[str, Any]) -> tuple[int, int]:
        """Prompt tokens, and those of them that were cached."""
        self._said.append(("assistant", "".join(block.get("text", "") for block in reply["content"])))
        usage = reply["usage"]
        cached = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + cached + usage["cache_creation_input_tokens"], cached


class OpencodeShape:
    """In the shape of opencode's requests."""

    path = "/v1/chat/completions"

    def __init__(self, reply_tokens: int) -> None:
        self._said: list[dict[str, Any]] = []
        self._reply_tokens = reply_tokens

    def ask(self, words: str, day: str) -> dict[str, Any]:
        self._said.append({"role": "user", "content": words})
        env = f"<env>\n  Working directory: /home/a\n  Platform: linux\n  Today's date: {day}\n</env>"
        return {
            "model": "demo",
            "max_tokens": self._reply_tokens,
            "temperature": 0,
            "messages": [{"role": "system", "content": f"You are an agent.\n{env}\n{RULES}"}, *self._said],
            "tools": [
                {"type": "function", "function": {"name": name, "parameters": schema(name)}} for name in tool_names()
            ],
        }

    def hear(self, reply: dict[str, Any]) -> tuple[int, int]:
        """Prompt tokens, and those of them that were cached."""
        self._said.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"] or ""})
        usage = reply["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


CLIENTS: dict[str, Callable[[int], Any]] = {"claude": ClaudeShape, "opencode": OpencodeShape}


def way(name: str) -> NoiseOptions:
    if name == "last":
        [date] = [rule for rule in packaged_rules() if rule.name == "date"]
        return NoiseOptions(rules=(date.model_copy(update={"to": "last"}),), opt_in=("date",))
    return NoiseOptions(enabled=name != "off", opt_in=("date",) if name == "date" else ())


WAYS = {"claude": ("off", "on"), "opencode": ("off", "on", "date", "last")}


# --- conversations --------------------------------------------------------------------------------


async def converse(app: Any, client: Any, n_turns: int, days: Callable[[int], str], task: str) -> list[Turn]:
    turns = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=600) as http:
        for number in range(n_turns):
            words = f"Turn {number + 1} of {task}: look at file {number * 37 % 11}, then tell me what to do next."
            answer = await http.post(client.path, json=client.ask(words, days(number)))
            if answer.status_code != 200:
                raise ValueError(f"HTTP {answer.status_code}: {answer.text[:300]}")
            turns.append(Turn(*client.hear(answer.json()), answer.headers.get("x-erllama-noise", "")))
    return turns


def run(name: str, how: str, args: Any, figures: Figures) -> list[Turn]:
    """A fresh model for each way, so that none finds what another one computed."""
    settings: dict[str, Any] = {"path": args.model, "n_ctx": args.n_ctx}
    prompts = PromptSource(EngineConfig(**settings, idle_prefill=False), root=root_key("noise"), book=TranscriptBook())
    prompts.load()
    with Model(id="demo", n_parallel=2, n_threads=args.threads, **settings) as model:
        served = ServedModel(id="demo", client=LocalModel(model), prompts=prompts, created=0)
        app = make_http_app([served], HttpOptions(noise=way(how)))
        midnight = args.turns // 2
        turns = asyncio.run(
            converse(app, CLIENTS[name](args.reply), args.turns, lambda n: DAYS[n >= midnight], "the first task")
        )
        turns += asyncio.run(converse(app, CLIENTS[name](args.reply), 1, lambda n: DAYS[2], "another task"))
    prompts.close()
    for number, turn in enumerate(turns, start=1):
        place = "next" if number > args.turns else f"t{number:02}"
        say(f"  {name} {how} {place}: {turn.cached}/{turn.prompt_tokens} cached {turn.told}")
        figures.add(f"{name}.{how}.{place}", turn.share, "1")
    within = turns[:-1]
    asked = sum(turn.prompt_tokens for turn in within)
    cached = sum(turn.cached for turn in within)
    figures.add(f"{name}.{how}.cached", cached / asked, "1")
    figures.add(f"{name}.{how}.prefilled", asked - cached, "tokens")
    figures.extra[f"{name}.{how}"] = [asdict(turn) for turn in turns]
    return turns


def problems(turns: list[Turn]) -> list[str]:
    """Turns that computed more than what the turn before them had not."""
    found = []
    for number, (before, turn) in enumerate(pairwise(turns[:-1]), start=2):
        if turn.cached < before.prompt_tokens - SPARE_TOKENS:
            found.append(f"claude.on turn {number}: {turn.cached} cached of {before.prompt_tokens} that were known")
    return found


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="demo", help="a GGUF file (default: demo)")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--reply", type=int, default=24, help="tokens of a reply (default 24)")
    parser.add_argument("--n-ctx", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with_server_threads()
    figures = Figures()
    failures: list[str] = []
    for name, ways in WAYS.items():
        for how in ways:
            turns = run(name, how, args, figures)
            if (name, how) == ("claude", "on"):
                failures = problems(turns)
    for name, ways in WAYS.items():
        off = figures.get(f"{name}.off.prefilled")
        for how in ways[1:]:
            figures.add_ratio(f"{name}.ratio.prefilled/{how}", off, figures.get(f"{name}.{how}.prefilled"))
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
