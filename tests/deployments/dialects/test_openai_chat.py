"""Chat completions through the official client, and through bare HTTP where the client would hide
what is sent.
"""

import json
import re
from dataclasses import replace

import openai
import pytest

from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReasoningDelta, TextDelta
from erllama.events import FinishReason
from erllama.grammar.constraint import JSON_OBJECT, Constraint, ConstraintKind
from erllama.grammar.reasoning_budget import ReasoningBudget
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    app_of,
    http_client,
    openai_client,
    replies,
    served,
    sse_events,
    streamed_calls,
)

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


async def chunks_of(client, **params):
    return [
        chunk async for chunk in await client.chat.completions.create(model="demo", messages=HI, stream=True, **params)
    ]


async def test_a_reply_is_complete_and_counts_its_tokens():
    model = FakeModel()
    async with openai_client(app_of(served(model))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI)
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert reply.model == "demo"
    [choice] = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world!", "stop")
    assert reply.usage.prompt_tokens == len(b"user: hi\nassistant: ")
    assert reply.usage.completion_tokens == 13
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 13
    assert reply.usage.prompt_tokens_details.cached_tokens == 3
    assert model.finished == [model.requests[0].request_id]


async def test_a_stream_says_the_same_text_and_opens_with_the_role():
    async with openai_client(app_of(served(FakeModel(replies("Grüße, 🌍!", per_item=1))))) as client:
        chunks = await chunks_of(client)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Grüße, 🌍!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_and_only_when_asked_for():
    async with openai_client(app_of(served(FakeModel()))) as client:
        chunks = await chunks_of(client, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 13
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_role_leaves_in_the_same_bytes_as_the_first_text():
    async with http_client(app_of(served(FakeModel(replies("ab", per_item=2))))) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    deltas = [event["choices"][0]["delta"] for event in sse_events(reply.content)]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "ab"}, {}]


async def test_every_sampling_parameter_reaches_the_engine():
    model = FakeModel()
    body = {
        "messages": HI, "temperature": 1, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2, "repeat_last_n": 9,
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "seed": 11, "stop": ["x", "y"], "max_tokens": 5,
        "max_completion_tokens": 4, "logit_bias": {"65": -100, "66": 1.5}, "ignore_eos": True,
    }  # fmt: skip
    async with http_client(app_of(served(model))) as client:
        reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    [request] = model.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        1.0,
        0.5,
        7,
        0.1,
        11,
    )
    assert (sampling.repetition_penalty, sampling.repeat_last_n) == (1.2, 9)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert sampling.logit_bias == ((65, -100.0), (66, 1.5))
    assert (request.stop, request.max_tokens, request.ignore_eos) == (("x", "y"), 4, True)


async def test_what_the_body_leaves_out_keeps_the_engines_defaults():
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        await client.post(
            "/v1/chat/completions", json={"messages": HI, "temperature": None, "stop": None, "max_tokens": -1}
        )
    [request] = model.requests
    assert (request.sampling.temperature, request.max_tokens, request.stop, request.grammar, request.logprobs) == (
        0.8,
        None,
        (),
        None,
        None,
    )


async def test_n_choices_run_in_parallel_with_seeds_of_their_own_and_one_prompt_in_usage():
    model = FakeModel()
    async with openai_client(app_of(served(model))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, n=3, seed=2**64 - 2)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage.prompt_tokens == 20
        assert reply.usage.completion_tokens == 39
        assert reply.usage.prompt_tokens_details.cached_tokens == 3
        assert [request.sampling.seed for request in model.requests] == [2**64 - 2, 2**64 - 1, 0]
        assert len({request.request_id for request in model.requests}) == 3
        chunks = await chunks_of(client, n=2)
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "Hello, world!"
        assert mine[0].delta.role == "assistant"
        assert mine[-1].finish_reason == "stop"


async def test_logprobs_have_one_entry_per_token_streamed_or_not():
    async with openai_client(app_of(served(FakeModel(replies("é!", per_item=1))))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, logprobs=True, top_logprobs=2)
        entries = reply.choices[0].logprobs.content
        assert [entry.bytes for entry in entries] == [[0xC3], [0xA9], [0x21]]
        assert entries[2].token == "!"
        assert [(top.token, top.logprob) for top in entries[2].top_logprobs] == [("A", -0.5), ("B", -1.5)]
        chunks = await chunks_of(client, logprobs=True)
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.bytes for entry in streamed] == [[0xC3], [0xA9], [0x21]]
    assert streamed[0].top_logprobs == []
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "é!"


async def test_response_format_becomes_a_constraint():
    model = FakeModel()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    async with openai_client(app_of(served(model))) as client:
        for wanted in (
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        ):
            await client.chat.completions.create(model="demo", messages=HI, response_format=wanted)
        await client.chat.completions.create(model="demo", messages=HI, extra_body={"grammar": 'root ::= "a"'})
    assert [request.constraint for request in model.requests] == [
        None,
        Constraint.of_schema(JSON_OBJECT, "response_format"),
        Constraint.of_schema(schema, "response_format"),
        Constraint(ConstraintKind.GBNF, 'root ::= "a"'),
    ]


async def test_messages_reach_the_template_as_templates_expect_them():
    prompts = FakePrompts()
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
        {"role": "assistant", "content": None, "refusal": None, "audio": None,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]  # fmt: skip
    body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    async with http_client(app_of(served(FakeModel(), prompts))) as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    [(rendered, tools, kwargs)] = prompts.rendered
    assert rendered == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "bob"},
        {"role": "assistant", "content": "", "tool_calls": [messages[2]["tool_calls"][0] | {"id": "call_0"}]},
        {"role": "tool", "content": "42", "tool_call_id": "call_0"},
    ]
    assert tools is None
    assert kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": True, "thinking": True}),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False, "x": 1}},
            {"enable_thinking": False, "thinking": True, "x": 1},
        ),
    ],
)
async def test_the_switches_of_reasoning_reach_the_template(fields, variables):
    prompts = FakePrompts()
    async with http_client(app_of(served(FakeModel(), prompts))) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": HI, **fields})
    assert reply.status_code == 200
    assert prompts.rendered[0][2] == variables


async def test_a_thinking_budget_reaches_the_engine_as_tokens():
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        for budget in (5, -1, None):
            await client.post("/v1/chat/completions", json={"messages": HI, "thinking_budget": budget})
        reply = await client.post("/v1/chat/completions", json={"messages": HI, "thinking_budget": -2})
    assert [request.reasoning for request in model.requests] == [
        ReasoningBudget(5, tuple(b"</think>"), tuple(b"<think>")), None, None,
    ]  # fmt: skip
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "thinking_budget")


async def test_reasoning_is_split_off_streamed_and_whole():
    text = "<think>\nLet me see.\n</think>\n\nIt rains."
    async with openai_client(app_of(served(FakeModel(replies(text, per_item=3))))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI)
        chunks = await chunks_of(client)
    assert (reply.choices[0].message.content, reply.choices[0].message.reasoning_content) == (
        "It rains.",
        "Let me see.",
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see."
    assert "".join(delta.content or "" for delta in deltas) == "It rains."


THOUGHT = "<think>\nLet me see.\n</think>"


@pytest.mark.parametrize("per_item", [1, 3, 500])
@pytest.mark.parametrize(
    ("text", "n_reasoning"),
    [
        (f"{THOUGHT}\n\nIt rains.", len(THOUGHT)),
        (f" {THOUGHT}{CALL}", len(THOUGHT) + 1),
        (THOUGHT[:-4], len(THOUGHT) - 4),
        ("It rains.", 0),
        (f"Well, {THOUGHT}", 0),
    ],
)
async def test_usage_tells_how_many_tokens_were_reasoning(text, n_reasoning, per_item):
    script = replies(text, per_item=per_item)
    async with openai_client(app_of(served(FakeModel(script)))) as client:
        for n in (1, 2):
            for tools in ({}, {"tools": [WEATHER]}):
                reply = await client.chat.completions.create(model="demo", messages=HI, n=n, **tools)
                chunks = await chunks_of(client, n=n, stream_options={"include_usage": True}, **tools)
                assert reply.usage == chunks[-1].usage
                assert reply.usage.completion_tokens_details.reasoning_tokens == n * n_reasoning


async def test_reasoning_that_the_prompt_has_opened_is_counted_from_the_first_token():
    class Opening(FakePrompts):
        def render_chat(self, *args):
            return replace(super().render_chat(*args), in_reasoning=True)

    async with openai_client(app_of(served(FakeModel(replies("Hm.</think>Yes")), Opening()))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI)
    assert reply.usage.completion_tokens_details.reasoning_tokens == len("Hm.</think>")


@pytest.mark.parametrize("per_item", [1, 3, 500])
async def test_a_tool_call_is_split_out_of_the_text(per_item):
    prompts = FakePrompts()
    async with openai_client(
        app_of(served(FakeModel(replies(f"Let me see.\n{CALL}\n{CALL}", per_item=per_item)), prompts))
    ) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER])
        [choice] = reply.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == [
            ("get_weather", {"city": "Ulm"})
        ] * 2
        assert len({call.id for call in choice.message.tool_calls}) == 2
        chunks = await chunks_of(client, tools=[WEATHER])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me see."
    functions = [call["function"] for call in streamed_calls(chunks)]
    assert [(one["name"], json.loads(one["arguments"])) for one in functions] == [("get_weather", {"city": "Ulm"})] * 2
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert prompts.rendered[0][1] == [
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER["function"]["parameters"]}}
    ]


async def test_a_long_argument_streams_as_it_is_made():
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "' + "Ulm " * 50 + '"}}\n</tool_call>'
    async with openai_client(app_of(served(FakeModel(replies(text, per_item=4))))) as client:
        chunks = await chunks_of(client, tools=[WEATHER])
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert (pieces[0].function.name, pieces[0].function.arguments) == ("get_weather", "")
    assert len(pieces) > 40
    assert [piece.id for piece in pieces[1:]] == [None] * (len(pieces) - 1)
    assert json.loads(streamed_calls(chunks)[0]["function"]["arguments"]) == {"city": "Ulm " * 50}


async def test_a_call_without_other_text_has_null_content():
    async with openai_client(app_of(served(FakeModel(replies(CALL))))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER])
    assert reply.choices[0].message.content is None


async def test_logprobs_and_tool_calls_go_together():
    async with openai_client(app_of(served(FakeModel(replies(f"Hm. {CALL}", per_item=5))))) as client:
        chunks = await chunks_of(client, tools=[WEATHER], logprobs=True)
    pieces = [
        bytes(entry.bytes)
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert b"".join(pieces).decode() == f"Hm. {CALL}"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hm."
    assert len(streamed_calls(chunks)) == 1


async def test_tool_choice_none_shows_the_tools_and_leaves_the_text_alone():
    prompts = FakePrompts()
    async with openai_client(app_of(served(FakeModel(replies(CALL)), prompts))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.content == CALL
    assert reply.choices[0].message.tool_calls is None
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == ["get_weather"]


async def test_without_tools_the_markup_of_a_call_is_text():
    async with openai_client(app_of(served(FakeModel(replies(CALL))))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI)
    assert reply.choices[0].message.content == CALL


async def test_a_forced_tool_choice_is_a_grammar():
    model = FakeModel(replies(CALL))
    async with openai_client(app_of(served(model))) as client:
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER], tool_choice=choice)
            assert reply.choices[0].finish_reason == "tool_calls"
    required, named = (request.constraint for request in model.requests)
    assert "start: calls\n" in required.text
    assert ")*" in required.text
    assert ")*" not in named.text


async def test_a_reply_that_was_cut_while_calling_says_length():
    model = FakeModel(replies(CALL, reason=FinishReason.LENGTH))
    async with openai_client(app_of(served(model))) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER])
    assert reply.choices[0].finish_reason == "length"


class Bracketed:
    """Another family's form: `(thought)`, `[name]`, all else is text. Only what a reply needs of a
    format is here.
    """

    name, opening, next_message, reasoning, thinks = "bracketed", "", "", None, None

    def free_rules(self, tools, write, *, parallel, excluded=""):
        return None

    def splitter(self, tools, *, in_reasoning):
        return self

    def push(self, text):
        kinds = {"(": lambda s: [ReasoningDelta(s[1:-1])], "[": lambda s: [CallStart(s[1:-1]), ArgumentsDelta("{}")]}
        pieces = re.findall(r"\(.*?\)|\[.*?\]|[^(\[]+", text)
        return [part for piece in pieces for part in kinds.get(piece[0], lambda s: [TextDelta(s)])(piece)]

    def finish(self):
        return []


@pytest.mark.parametrize("logprobs", [False, True])
async def test_the_form_of_calls_and_reasoning_is_the_models(logprobs):
    app = app_of(served(FakeModel(replies("(hm)Well[f]", per_item=20)), FakePrompts(tool_format=Bracketed())))
    async with openai_client(app) as client:
        reply = await client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER])
        chunks = await chunks_of(client, tools=[WEATHER], logprobs=logprobs)
    message = reply.choices[0].message
    assert (message.reasoning_content, message.content, message.tool_calls[0].function.name) == ("hm", "Well", "f")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.content or "" for delta in deltas) == "Well"
    assert [call.function.name for delta in deltas for call in delta.tool_calls or ()] == ["f", None]


async def test_minus_infinity_is_written_as_openais_floor():
    from deployments.dialects.openai.logprobs import chat_logprobs
    from erllama.events import TokenLogprob

    assert chat_logprobs([(0, TokenLogprob(1, b"a", float("-inf")))])["content"][0]["logprob"] == -9999.0


async def test_fields_that_change_nothing_are_accepted():
    ignored = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "cache_prompt": True, "mirostat": 0,
               "typical_p": 1.0, "modalities": ["text"], "parallel_tool_calls": True, "functions": None}  # fmt: skip
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": HI, **ignored})
    assert reply.status_code == 200


async def test_a_stream_that_fails_midway_ends_with_an_error_event():
    from erllama.errors import DecodeFailed

    async with openai_client(app_of(served(FakeModel(replies("abcdefgh", error=DecodeFailed("lost")))))) as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
        texts = []

        async def read():
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)  # noqa: PERF401  (a comprehension would lose what came before the error)

        with pytest.raises(openai.APIError, match="lost"):
            await read()
    assert "".join(texts) == "abcdefgh"
