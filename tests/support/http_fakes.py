"""A model and a vocabulary that need nothing: one token per byte, replies from a script. And an
ASGI client that a test paces.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai

from deployments.http.model_library import ModelLibrary
from deployments.http.options import HttpOptions
from deployments.http.ports import ChatPrompt, RecordedReply, ReplyDefaults, ServedModel, VocabFacts
from deployments.ingress.http_app import make_http_app
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.errors import ErllamaError, InvalidParameter, NotSupported
from erllama.events import CacheHitKind, Done, Event, Failed, FinishReason, RequestStats, TokenLogprob, Tokens
from erllama.grammar.reasoning_budget import ReasoningBudget
from erllama.prompts.infill import infill_tokens
from erllama.prompts.next_turn import NextTurn
from erllama.prompts.pair import RankQuery
from erllama.request import GenerationRequest, Prompt
from erllama.stats import EngineStats, ModelInfo, ModelStatus
from erllama.testing.stub_backend import StubVocab


class FakePrompts:
    """Renders `role: content` lines; token n is byte n."""

    def __init__(self, n_ctx: int | None = 4096, *, template: bool = True, tool_format: ToolFormat = HERMES) -> None:
        self.loaded = True
        self.defaults = ReplyDefaults()
        self.n_ctx = n_ctx
        self.template = template
        self.tool_format = tool_format
        self.marker_ids: dict[str, int] = {}
        self.constrains_calls = True
        self.may_wait = False
        self.expects_turns = False
        self.salts: list[str] = []
        self.pins_from: int | None = 16
        self.fills_gaps = True
        self.adds_bos = False
        self.rendered: list[tuple[list[dict[str, Any]], Any, dict[str, Any]]] = []

    def of_tenant(self, salt):
        self.salts.append(salt)
        return self

    def render_chat(self, messages, tools, template_kwargs, ending="opened"):
        if not self.template:
            raise NotSupported("this model has no chat template", param="messages")
        self.rendered.append((list(messages), tools, dict(template_kwargs)))
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        text = {"opened": text + "assistant: ", "closed": text, "continued": text.removesuffix("\n")}[ending]
        return ChatPrompt(Prompt.of(text.encode()))

    def render_text(self, messages, tools, template_kwargs, ending="opened"):
        return bytes(self.render_chat(messages, tools, template_kwargs, ending).prompt.tokens).decode()

    def facts(self):
        return VocabFacts("/models/secret/demo.gguf", "{{ messages }}", "<s>", "</s>", 4)

    def shows_late_system(self, *, tools):
        return True

    def recorder(self, chat):
        return lambda reply: None

    def tokenize(self, text, add_special=True, parse_special=True):
        """A marker stands for what `add_special` adds: byte 2; `<x>` is a special token, byte 1."""
        text = text.replace("<x>", "\x01") if parse_special else text
        return [2] * (self.adds_bos and add_special) + list(text.encode())

    def detokenize(self, ids):
        return bytes(ids).decode(errors="replace")

    def rank_query(self, query):
        return RankQuery(StubVocab(), query)

    def infill_prompt(self, gap, room=None):
        return Prompt.of(infill_tokens(StubVocab(), gap, room))

    def reply_piece(self, token):
        return bytes([token])

    def token_text(self, token):
        return {1: b"<x>", 2: b"<s>"}.get(token) or bytes([token])

    def check_tokens(self, ids, param="prompt"):
        for token in ids:
            if not 0 <= token < 256:
                raise InvalidParameter(f"token id {token} is not in the vocabulary", param=param)

    def reasoning_budget(self, n_tokens, *, in_reasoning):
        opening, closing = (tuple(text.encode()) for text in self.tool_format.reasoning)
        return ReasoningBudget(n_tokens, closing, () if in_reasoning else opening)

    def check_constraint(self, constraint):
        if any(word in constraint.text for word in ("bad", "nothing")):
            raise constraint.refusal("the fake refuses it")


def stats(
    request: GenerationRequest, n: int, reason: FinishReason = FinishReason.STOP, cached: int = 3
) -> RequestStats:
    return RequestStats(len(request.prompt_tokens), n, cached, 0.0, 1.0, 1.0, CacheHitKind.PARTIAL, reason)


Script = Callable[[GenerationRequest], AsyncGenerator[list[Event], None]]


def replies(
    text: str, *, per_item: int = 4, reason: FinishReason = FinishReason.STOP, error: ErllamaError | None = None
) -> Script:
    """Says `text`, `per_item` bytes (= tokens) at a time, then ends, or fails with `error`."""

    async def script(request):
        data = text.encode()
        limit = len(data) if request.max_tokens is None else min(len(data), request.max_tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for start in range(0, limit, per_item):
            ids = tuple(data[start : min(start + per_item, limit)])
            logprobs = None
            if request.logprobs is not None:
                top = tuple((t, bytes([t]), -0.5 - i) for i, t in enumerate(range(65, 65 + request.logprobs)))
                logprobs = tuple(TokenLogprob(t, bytes([t]), -0.5, top) for t in ids)
            await asyncio.sleep(0)
            yield [Tokens(ids, decoder.decode(bytes(ids)), logprobs)]
        if error is not None:
            yield [Failed(error)]
        else:
            yield [Done(stats(request, limit, FinishReason.LENGTH if limit < len(data) else reason), "key")]

    return script


@dataclass
class FakeModel:
    """Runs `script` per request; remembers requests, and which of them were cut short."""

    script: Script = field(default_factory=lambda: replies("Hello, world!"))
    requests: list[GenerationRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    state: bool | Exception | None = True
    dimension: int = 4
    rank_tokens: int = 64
    ranked: list[list[list[int]]] = field(default_factory=list)
    expected: list[NextTurn] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        self.requests.append(request)
        complete = False
        try:
            async for item in self.script(request):
                complete = isinstance(item[-1], Done | Failed)
                yield item
        finally:
            (self.finished if complete else self.cancelled).append(request.request_id)

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        return [[float(len(ids)), *[0.5] * (self.dimension - 1)] for ids in inputs]

    async def rank(self, inputs: list[list[int]]) -> list[float]:
        self.ranked.append(inputs)
        return [ids.count(ord("e")) / len(ids) for ids in inputs]

    async def model_info(self) -> ModelInfo:
        return ModelInfo(
            id="demo", status=ModelStatus.IDLE, backend="llama.cpp", architecture="qwen3", name="Demo", context_size=4096,
            n_parallel=4, n_vocab=256, n_params=494_032_768, size_bytes=1234, quant_type="Q8_0", quant_bits=8.5, tier="none",
            kv_kind="attention", kv_problem="", fingerprint="safe:f00d", n_gpu_layers=0, has_chat_template=True, generates=True,
            embeds=True, rank_tokens=self.rank_tokens,
        )  # fmt: skip

    async def find(self, request_id: str) -> RecordedReply | None:
        """It keeps nothing."""
        return None

    def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        raise NotImplementedError

    async def expect(self, turn: NextTurn) -> None:
        self.expected.append(turn)

    async def cancel(self, ref: str) -> object:
        raise NotImplementedError

    async def stats(self) -> list[EngineStats]:
        return [EngineStats(4, 2, n_prefilling=1, n_generating=1, n_queued=3)]

    def end_all(self, error: ErllamaError) -> None:
        raise NotImplementedError

    async def ready(self) -> bool | None:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


def served(
    model: FakeModel, prompts: FakePrompts | None = None, *, id: str = "demo", aliases: tuple[str, ...] = ()
) -> ServedModel:
    return ServedModel(id=id, client=model, prompts=prompts or FakePrompts(), created=1_700_000_000, aliases=aliases)


def app_of(*models: ServedModel, library: ModelLibrary | None = None, **options: Any) -> Any:
    """Its replies are not kept, so that events have no ids, unless `options` say otherwise."""
    return make_http_app(models, HttpOptions(**{"resume_grace_s": 0.0, **options}), library=library)


@asynccontextmanager
async def http_client(app: Any, **headers: str) -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client:
        yield client


@asynccontextmanager
async def openai_client(app: Any, api_key: str = "none") -> Any:
    """The official client, unmodified, without retries."""
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    async with openai.AsyncOpenAI(
        api_key=api_key, base_url="http://test/v1", http_client=http, max_retries=0
    ) as client:
        yield client


@asynccontextmanager
async def anthropic_client(app: Any, api_key: str = "none") -> Any:
    """The official client, unmodified, without retries."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    async with anthropic.AsyncAnthropic(
        api_key=api_key, base_url="http://test", http_client=http, max_retries=0
    ) as client:
        yield client


@asynccontextmanager
async def ollama_client(app: Any, **headers: str) -> Any:
    """The official client, unmodified."""
    async with ollama.AsyncClient("http://test", transport=httpx.ASGITransport(app), headers=headers) as client:
        yield client


def sse_events(body: bytes) -> list[Any]:
    """The decoded `data:` events of a whole stream without its terminator, which must be there."""
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if not line.startswith(":")]


def named_events(body: bytes) -> list[tuple[str, Any]]:
    """Name and decoded data of the events of a whole stream that has names and no terminator."""
    frames = body.decode().split("\n\n")
    assert frames.pop() == ""
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        assert (name[:7], data[:6]) == ("event: ", "data: ")
        events.append((name[7:], json.loads(data[6:])))
    return events


def streamed_calls(chunks: Iterable[Any]) -> list[dict[str, Any]]:
    """The tool calls of the first choice of a stream, put together as clients do: id and name from
    the first piece of each, the arguments from all of them.
    """
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for piece in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            if piece.index == len(calls):
                calls.append(
                    {"id": piece.id, "type": piece.type, "function": {"name": piece.function.name, "arguments": ""}}
                )
            calls[piece.index]["function"]["arguments"] += piece.function.arguments
    return calls


class Exchange:
    """One request to an ASGI app, message by message: `httpx.ASGITransport` hands a body over only
    when it is complete.
    """

    def __init__(self, task: asyncio.Task[None], inbox: asyncio.Queue[Any], outbox: asyncio.Queue[Any]) -> None:
        self.task = task
        self._inbox = inbox
        self._outbox = outbox

    async def next(self) -> dict[str, Any]:
        """The next message that the app sends."""
        return await asyncio.wait_for(self._outbox.get(), 5)

    async def start(self) -> tuple[int, dict[str, str]]:
        message = await self.next()
        assert message["type"] == "http.response.start"
        return message["status"], {key.decode(): value.decode() for key, value in message["headers"]}

    async def chunk(self) -> bytes:
        message = await self.next()
        assert message["type"] == "http.response.body"
        return message["body"]

    async def rest(self) -> bytes:
        body = b""
        while True:
            message = await self.next()
            body += message["body"]
            if not message.get("more_body"):
                return body

    @property
    def silent(self) -> bool:
        return self._outbox.empty()

    def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})


@asynccontextmanager
async def exchange(app: Any, path: str, body: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> Any:
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": list(headers),
        "server": ("t", 80), "client": ("c", 1),
    }  # fmt: skip
    inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    task = asyncio.create_task(app(scope, inbox.get, outbox.put))
    try:
        yield Exchange(task, inbox, outbox)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
