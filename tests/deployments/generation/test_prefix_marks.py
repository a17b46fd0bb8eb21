"""Which beginning of a prompt a request asks to keep: by `cache_control`, and by `instructions`."""

import json

import pytest

from deployments.dialects.anthropic.cache_marks import prefix_mark
from deployments.dialects.anthropic.params import chat_ask
from deployments.dialects.anthropic.wire import MessageBody
from deployments.generation.chat import ChatAsk, OfferedTool, ready_chat
from deployments.generation.pins import PrefixMark, chat_head
from deployments.http.body import parse_json
from deployments.ingress.prompts import PromptSource
from deployments.noise.filter import Noise
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import InvalidParameter
from erllama.request import Pin, SamplingParams
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served

pytestmark = pytest.mark.anyio

RULES, ASKED, SAID = "You write short answers. " * 20, "What is a river? " * 20, "Water that flows. " * 20
FIVE, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
TOOL = {"name": "look_up", "description": "Finds a word.", "input_schema": {"type": "object"}}


def block(text, control=None):
    return {"type": "text", "text": text} | ({"cache_control": control} if control else {})


def body_of(**fields) -> MessageBody:
    given = {"system": [block(RULES)], "messages": [{"role": "user", "content": ASKED}], **fields}
    return parse_json(MessageBody, json.dumps(given).encode())


# --- where the mark is ----------------------------------------------------------------------------

TURNS = [
    {"role": "user", "content": [block(ASKED)]},
    {"role": "assistant", "content": [block(SAID)]},
    {"role": "user", "content": [block("And a lake?")]},
]


def turns(number, control):
    marked = [dict(turn) for turn in TURNS]
    marked[number]["content"] = [block(TURNS[number]["content"][0]["text"], control)]
    return marked


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [block("found", HOUR)]}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look_up", "input": {}}]}


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({}, None),
        ({"system": [block(RULES, FIVE)]}, PrefixMark(1, 300)),
        ({"system": [block(RULES, HOUR), block("more")]}, PrefixMark(1, 3600)),
        ({"system": [], "tools": [TOOL | {"cache_control": FIVE}]}, PrefixMark(0, 300)),
        ({"messages": turns(0, FIVE)}, PrefixMark(2, 300)),
        ({"messages": turns(1, HOUR)}, PrefixMark(3, 3600)),
        ({"messages": turns(2, FIVE)}, PrefixMark(4, 300)),
        ({"messages": turns(0, FIVE), "system": [block(RULES, HOUR)]}, PrefixMark(2, 300)),
        ({"messages": [*TURNS, CALL, {"role": "user", "content": [RESULT, block("?")]}]}, PrefixMark(7, 3600)),
        ({"cache_control": FIVE, "messages": TURNS}, PrefixMark(4, 300)),
        *[({"system": [block(RULES, odd)]}, None) for odd in ("ephemeral", 5, [], {"type": "other"}, {"ttl": "1h"})],
        ({"system": [block(RULES, {"type": "ephemeral", "ttl": 9})]}, PrefixMark(1, 300)),
    ],
)
def test_the_last_mark_counts(fields, mark):
    assert prefix_mark(body_of(**fields)) == mark


# --- what it is in tokens -------------------------------------------------------------------------


def pin_of(ask: ChatAsk, prompts) -> Pin | None:
    return ready_chat(ask, prompts, Noise().no_filter()).request("r", SamplingParams()).pin


def test_without_a_mark_nothing_is_rendered_twice():
    prompts = FakePrompts()
    assert pin_of(chat_ask(body_of()), prompts) is None
    assert len(prompts.rendered) == 1


def test_a_mark_behind_everything_is_the_whole_prompt_and_renders_nothing():
    prompts = FakePrompts()
    ask = chat_ask(body_of(messages=turns(2, FIVE)))
    ready = ready_chat(ask, prompts, Noise().no_filter())
    assert ready.pin == Pin(len(ready.chat.prompt), 300)
    assert len(prompts.rendered) == 1


def test_a_mark_inside_is_what_the_beginning_alone_has_in_common():
    prompts = FakePrompts()
    ask = chat_ask(body_of(system=[block(RULES, HOUR)], messages=[{"role": "user", "content": ASKED * 2}]))
    assert pin_of(ask, prompts) == Pin(len(f"system: {RULES}\nuser: "), 3600)
    assert len(prompts.rendered) == 2


def test_a_mark_behind_most_of_a_conversation_stands_for_all_of_it():
    prompts = FakePrompts()
    ready = ready_chat(chat_ask(body_of(system=[block(RULES, HOUR)])), prompts, Noise().no_filter())
    assert ready.pin == Pin(len(ready.chat.prompt), 3600)
    assert len(prompts.rendered) == 1


@pytest.mark.parametrize("pins_from", [None, 10_000])
def test_what_is_not_worth_it_is_not_rendered(pins_from):
    prompts = FakePrompts()
    prompts.pins_from = pins_from
    assert pin_of(chat_ask(body_of(system=[block(RULES, HOUR)])), prompts) is None
    assert len(prompts.rendered) == 1


def test_a_template_that_cannot_render_the_beginning_costs_the_pin_only():
    class Choosy(FakePrompts):
        def render_chat(self, messages, *more):
            if self.rendered:
                raise InvalidParameter("a conversation must be longer")
            return super().render_chat(messages, *more)

    ask = chat_ask(body_of(system=[block(RULES, HOUR)], messages=[{"role": "user", "content": ASKED * 2}]))
    assert pin_of(ask, Choosy()) is None


@pytest.fixture(scope="module")
def demo():
    prompts = PromptSource(EngineConfig(path="demo"), root="00" * 32, book=TranscriptBook(), pins_from=32)
    yield prompts
    prompts.close()


TOOLS = (OfferedTool("look_up", {}, {"type": "function", "function": {"name": "look_up", "parameters": {}}}),)
CHAT = [
    {"role": "system", "content": RULES},
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": SAID},
    {"role": "user", "content": "And a lake? " * 200},
]


@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_a_real_template_marks_whole_messages(demo, tools, n):
    """The tokens are those of the prompt, end behind the text of what is marked, and before what is not."""
    ready = ready_chat(ChatAsk(CHAT, tools, mark=PrefixMark(n, 300)), demo, Noise().no_filter())
    if ready.pin is None:
        assert n == 0
        return
    kept = demo.load().vocab.detokenize(ready.chat.prompt.tokens[: ready.pin.n_tokens], special=True)
    assert all(message["content"][:200].strip() in kept for message in CHAT[:n])
    assert not any(message["content"].strip() in kept for message in CHAT[n:])
    assert ("look_up" in kept) == bool(tools)


def test_what_is_computed_ahead_is_what_every_chat_begins_with(demo):
    head = chat_head(demo, CHAT[:1], None)
    for text in ("Hello", "1", "?", " x"):
        prompt = demo.render_chat([*CHAT[:1], {"role": "user", "content": text}], None, {}).prompt.tokens
        assert prompt[: len(head)] == tuple(head)
    assert len(head) > 40


# --- over HTTP ------------------------------------------------------------------------------------


async def pin_sent(path, body):
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return model.requests[0].pin


async def test_cache_control_travels_to_the_engine():
    body = {"messages": turns(2, HOUR), "system": RULES, "max_tokens": 5}
    pin = await pin_sent("/v1/messages", body)
    assert (pin.ttl_s, pin.owner) == (3600, "")
    assert pin.n_tokens > len(RULES + ASKED + SAID)


async def test_instructions_of_a_response_are_kept():
    pin = await pin_sent("/v1/responses", {"input": ASKED * 2, "instructions": RULES})
    assert pin == Pin(len(f"system: {RULES}\nuser: "), 300)
    assert await pin_sent("/v1/responses", {"input": ASKED}) is None
