"""Chats over HTTP: what a client sends back reaches the engine as the ids that were sampled."""

import asyncio
import codecs
import json
import threading
from typing import ClassVar

import pytest

from cache_store.format.keys import root_key
from demo_model.template import CHAT_TEMPLATE
from deployments.ingress import prompts as prompts_module
from deployments.ingress.prompts import PromptSource
from erllama.chat.transcript import transcript_block
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import DecodeFailed
from erllama.events import Done, Failed, FinishReason, Tokens
from tests.support.http_fakes import (
    FakeModel,
    anthropic_client,
    app_of,
    http_client,
    openai_client,
    served,
    stats,
    streamed_calls,
)
from tests.support.llama_cpp_files import real_template

pytestmark = pytest.mark.anyio

ROOT = root_key("test")
HI = [{"role": "user", "content": "hello"}]
MORE = {"role": "user", "content": "and now?"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name":"get_weather",  "arguments":{"city":"Ulm","days":2.0}}\n</tool_call>'


class PairVocab:
    """Ids 0-255 are bytes, 256 is "ll", 257 and 258 open and close a turn. The tokenizer prefers
    "ll"; the fake models sample bytes.
    """

    n_vocab = 259
    bos_text, eos_text, adds_bos, pointer = "", "", False, 0
    chat_template = CHAT_TEMPLATE
    named_templates: ClassVar[dict[str, str]] = {}
    names = (*(bytes([i]) for i in range(256)), b"ll", b"<|im_start|>", b"<|im_end|>")

    def control_texts(self):
        return ()

    cut_texts = control_texts

    @classmethod
    def load(cls, path):
        return cls()

    def tokenize(self, text, *, add_special=True, parse_special=True):
        data, ids, position = text.encode(), [], 0
        while position < len(data):
            token = next((i for i in (258, 257, 256) if data.startswith(self.names[i], position)), data[position])
            ids.append(token)
            position += len(self.names[token])
        return ids

    def piece(self, token):
        return self.names[token] if token <= 256 else b""

    def detokenize(self, ids, *, special=False):
        return b"".join(self.names[i] if special else self.piece(i) for i in ids).decode(errors="replace")

    def close(self):
        pass


def samples(text, *, beyond="", reason=FinishReason.STOP, error=None):
    """Samples `text` byte by byte, three at a time, then `beyond`, whose text a stop string held
    back.
    """

    async def script(request):
        data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), 3):
            ids = tuple(data[start : start + 3])
            await asyncio.sleep(0)
            yield [Tokens(ids, decoder.decode(bytes(ids)))]
        yield [
            Tokens(tuple(beyond.encode()), ""),
            Failed(error) if error else Done(stats(request, len(data), reason), "key"),
        ]

    return script


def canonical_prompt(messages, tools=None):
    """The ids of a conversation that no book knows anything of."""
    source = PromptSource(EngineConfig(path="x"), root=ROOT, book=TranscriptBook())
    return source.render_chat(messages, tools, {}).prompt.tokens


class Chat:
    """A served model with a book, and the conversation so far."""

    def __init__(self, text, book=None, source=None, **script):
        self.book = book or TranscriptBook()
        self.prompts = source or PromptSource(EngineConfig(path="x"), root=ROOT, book=self.book)
        self.model = FakeModel(samples(text, **script))
        self.app = app_of(served(self.model, self.prompts))
        self.ids = tuple(text.encode())

    @property
    def first(self):
        """The first prompt and its reply as it was sampled."""
        return (*self.model.requests[0].prompt_tokens, *self.ids)

    def continues_as_sampled(self):
        return self.model.requests[-1].prompt_tokens[: len(self.first)] == self.first

    def canonical(self, messages, tools=None):
        return (
            PromptSource(EngineConfig(path="x"), root=ROOT, book=TranscriptBook())
            .render_chat(messages, tools, {})
            .prompt.tokens
        )


@pytest.fixture
def vocab(monkeypatch):
    monkeypatch.setattr(prompts_module, "LlamaVocab", PairVocab)
    return PairVocab


async def ask(client, messages, **params):
    return (await client.chat.completions.create(model="demo", messages=messages, **params)).choices


async def test_a_reply_comes_back_as_sampled(vocab):
    chat = Chat("well, well")
    async with openai_client(chat.app) as client:
        [choice] = await ask(client, HI)
        await ask(client, [*HI, choice.message, MORE])
    assert chat.continues_as_sampled()
    assert all(request.record_transcript for request in chat.model.requests)


async def test_the_replies_of_one_tenant_are_not_put_into_the_prompts_of_another(vocab):
    """Ids and their number would tell that the other has had this conversation."""
    chat = Chat("well, well")
    keys = ({"key": "a", "name": "a"}, {"key": "b", "name": "b"}, "plain")
    app = app_of(served(chat.model, chat.prompts), api_keys=keys)
    history = [*HI, {"role": "assistant", "content": "well, well"}, MORE]

    async def turn(key, messages):
        async with openai_client(app, api_key=key) as client:
            await ask(client, messages)
        return chat.continues_as_sampled()

    await turn("a", HI)
    assert [await turn(key, history) for key in ("b", "plain", "a")] == [False, False, True]
    assert chat.model.requests[1].prompt_tokens == chat.canonical(history)
    await turn("plain", HI)
    assert await turn("plain", history)
    assert not await turn("b", history)


async def test_a_streamed_reply_is_remembered_before_its_last_chunk_leaves(vocab):
    chat = Chat("well, 😀 well")
    known = []

    async def watched(scope, receive, send):
        async def sending(message):
            if b'"finish_reason":"stop"' in message.get("body", b""):
                known.append(repr(chat.book))
            await send(message)

        await chat.app(scope, receive, sending)

    async with openai_client(watched) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(model="demo", messages=HI, stream=True)]
        assert [book[:26] for book in known] == ["<TranscriptBook 1 replies,"]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        await ask(client, [*HI, {"role": "assistant", "content": text}, MORE])
    assert chat.continues_as_sampled()


async def test_a_call_comes_back_as_sampled_although_the_client_wrote_its_json_anew(vocab):
    chat = Chat(f"Let me tell.\n{CALL}\n{CALL}")
    async with openai_client(chat.app) as client:
        [choice] = await ask(client, HI, tools=TOOLS)
        message = choice.message.model_dump(exclude_none=True)
        for call in message["tool_calls"]:
            call["function"]["arguments"] = json.dumps({"days": 2, "city": "Ulm"}, indent=1)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "wet"} for call in message["tool_calls"]]
        await ask(client, [*HI, message, *results], tools=TOOLS)
    assert chat.continues_as_sampled()


async def test_a_streamed_call_comes_back_as_sampled(vocab):
    chat = Chat(CALL)
    async with openai_client(chat.app) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(model="demo", messages=HI, tools=TOOLS, stream=True)
        ]
        [call] = streamed_calls(chunks)
        message = {"role": "assistant", "tool_calls": [call]}
        await ask(client, [*HI, message, {"role": "tool", "tool_call_id": call["id"], "content": "wet"}], tools=TOOLS)
    assert chat.continues_as_sampled()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("text", ["well, 😀 well", f"Let me tell.\n{CALL}\n{CALL}"])
async def test_cc_50_a_turn_of_anthropics_client_begins_with_the_last_one(vocab, streams, text):
    chat = Chat(text)
    asked = {"model": "demo", "max_tokens": 1000}
    asked["tools"] = [{"name": "get_weather", "input_schema": {"type": "object"}}]
    async with anthropic_client(chat.app) as client:
        if streams:
            async with client.messages.stream(messages=HI, **asked) as stream:
                reply = await stream.get_final_message()
        else:
            reply = await client.messages.create(messages=HI, **asked)
        calls = [block.id for block in reply.content if block.type == "tool_use"]
        answer = [{"type": "tool_result", "tool_use_id": id, "content": "wet"} for id in calls] or MORE["content"]
        history = [*HI, {"role": "assistant", "content": reply.content}, {"role": "user", "content": answer}]
        await client.messages.create(messages=history, **asked)
    assert chat.continues_as_sampled()


@pytest.mark.parametrize("rules", ["on", "off"])
async def test_cc_10_a_reply_comes_back_as_sampled_though_the_billing_header_has_changed(vocab, rules):
    chat = Chat("well, well")
    asked = {"model": "demo", "max_tokens": 1000}
    reply = {"role": "assistant", "content": "well, well"}
    async with http_client(chat.app, **{"x-erllama-noise": rules}) as client:
        for version, messages in (("1f2", HI), ("99a", [*HI, reply, MORE])):
            header = f"x-anthropic-billing-header: cc_version=2.1.257.{version}; cc_entrypoint=cli;"
            system = [{"type": "text", "text": header}, {"type": "text", "text": "Be brief."}]
            await client.post("/v1/messages", json={**asked, "system": system, "messages": messages})
    assert chat.continues_as_sampled() == (rules == "on")


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_drops_the_reasoning_goes_on_from_what_was_sampled_if_wanted(
    vocab, monkeypatch, keeps, streams
):
    monkeypatch.setattr(vocab, "chat_template", real_template("Qwen-Qwen3-0.6B"))
    book = TranscriptBook()
    config = EngineConfig(path="x", keep_sampled_reasoning=keeps)
    chat = Chat(f"<think>\nwell, hm\n</think>\n\n{CALL}", book, PromptSource(config, root=ROOT, book=book))
    async with openai_client(chat.app) as client:
        if streams:
            stream = await client.chat.completions.create(model="demo", messages=HI, tools=TOOLS, stream=True)
            calls = streamed_calls([chunk async for chunk in stream])
        else:
            [choice] = await ask(client, HI, tools=TOOLS)
            calls = [call.model_dump() for call in choice.message.tool_calls]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        history = [*HI, message, {"role": "tool", "tool_call_id": calls[0]["id"], "content": "wet"}]
        await ask(client, history, tools=TOOLS)
    assert chat.continues_as_sampled() == keeps
    if not keeps:
        assert chat.model.requests[-1].prompt_tokens == chat.canonical(history, TOOLS)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("told", ["well, hm", "oh"])
async def test_a_client_that_sends_the_reasoning_back_goes_on_from_what_was_sampled(vocab, monkeypatch, keeps, told):
    monkeypatch.setattr(vocab, "chat_template", real_template("Qwen-Qwen3-0.6B"))
    book = TranscriptBook()
    config = EngineConfig(path="x", keep_sampled_reasoning=keeps)
    chat = Chat(f"<think>\nwell, hm\n</think>\n\n{CALL}", book, PromptSource(config, root=ROOT, book=book))
    async with openai_client(chat.app) as client:
        [choice] = await ask(client, HI, tools=TOOLS)
        message = choice.message.model_dump(exclude_none=True)
        thought = message["reasoning_content"].replace("well, hm", told)
        history = [*HI, message | {"reasoning_content": thought}]
        history.append({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "wet"})
        await ask(client, history, tools=TOOLS)
    assert chat.continues_as_sampled() == (told == "well, hm")
    if told == "oh":
        assert chat.model.requests[-1].prompt_tokens == chat.canonical(history, TOOLS)


async def test_each_of_several_choices_can_be_continued(vocab):
    chat = Chat("well")
    replies = iter(["all well", "call me"])

    async def script(request):
        async for item in samples(next(replies, "x"))(request):
            yield item

    chat.model.script = script
    async with openai_client(chat.app) as client:
        for choice in await ask(client, HI, n=2):
            await ask(client, [*HI, choice.message, MORE])
            chat.ids = tuple(choice.message.content.encode())
            assert chat.continues_as_sampled()


@pytest.mark.parametrize("reason", list(FinishReason)[:2])
async def test_what_a_stop_string_cut_off_does_not_come_back(vocab, reason):
    chat = Chat("well", beyond="###", reason=reason)
    async with openai_client(chat.app) as client:
        [choice] = await ask(client, HI, stop="###")
        await ask(client, [*HI, choice.message, MORE])
    assert chat.continues_as_sampled()
    assert chat.model.requests[-1].prompt_tokens[len(chat.first)] == 258


async def test_an_edited_reply_is_tokenised_from_its_text(vocab):
    chat = Chat("well, well")
    async with openai_client(chat.app) as client:
        await ask(client, HI)
        edited = [*HI, {"role": "assistant", "content": "well, hell"}, MORE]
        await ask(client, edited)
    assert chat.model.requests[-1].prompt_tokens == chat.canonical(edited)


async def test_a_reply_that_failed_is_not_remembered(vocab):
    chat = Chat("well", error=DecodeFailed("lost"))
    async with http_client(chat.app) as client:
        assert (await client.post("/v1/chat/completions", json={"messages": HI})).status_code == 500
    assert "0 replies" in repr(chat.book)


async def test_completions_are_not_remembered(vocab):
    chat = Chat("well")
    prompt = chat.canonical(HI)
    async with http_client(chat.app) as client:
        assert (await client.post("/v1/completions", json={"prompt": list(prompt)})).status_code == 200
    assert "0 replies" in repr(chat.book)
    assert not chat.model.requests[0].record_transcript


async def test_a_reply_that_another_process_stored_is_found_off_the_event_loop(vocab):
    prompt = (
        PromptSource(EngineConfig(path="x"), root=ROOT, book=TranscriptBook()).render_chat(HI, None, {}).prompt.tokens
    )
    block = transcript_block(ROOT, prompt, b"well", "well", PairVocab().piece)
    on_loop = []

    def fetch(id, deadline_s):
        on_loop.append(threading.current_thread() is threading.main_thread())
        return block if id == block.id else None

    chat = Chat("x", TranscriptBook(fetch))
    async with openai_client(chat.app) as client:
        await ask(client, HI)
        assert on_loop == []
        await ask(client, [*HI, {"role": "assistant", "content": "well"}, MORE])
    assert on_loop == [False]
    assert chat.model.requests[-1].prompt_tokens[: len(prompt) + 4] == (*prompt, *b"well")


@pytest.mark.model
async def test_the_demo_model_gets_its_own_tokens_back():
    source = PromptSource(EngineConfig(path="demo"), root=ROOT, book=TranscriptBook())
    source.load()
    text = "The weather in Ulm is fine, well."
    ids = [token for char in text for token in source.tokenize(char, add_special=False)]
    assert ids != source.tokenize(text, add_special=False)

    async def script(request):
        for token in ids:
            yield [Tokens((token,), source.detokenize([token]))]
        yield [Done(stats(request, len(ids)), "key")]

    chat = Chat(text, source=source)
    chat.ids = tuple(ids)
    chat.model.script = script
    async with openai_client(chat.app) as client:
        [choice] = await ask(client, HI)
        await ask(client, [*HI, choice.message, MORE])
    assert chat.continues_as_sampled()
    source.close()
