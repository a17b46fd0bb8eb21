"""Gemini's API, as its official client of version 3 and Gemini CLI speak it, against scripted replies."""

import json
import logging
import re

import anyio
import httpx
import pytest

from deployments.dialects.gemini.params import chat_ask, offered_tools, reply_constraint
from deployments.dialects.gemini.schema import json_schema
from deployments.dialects.gemini.wire import GenerateBody, GenerationConfig
from deployments.http.body import parse_json
from erllama.chat.tool_formats.json_format import HERMES
from erllama.errors import DecodeFailed, InvalidParameter, QueueFull
from erllama.events import FinishReason
from erllama.grammar.reasoning_budget import ReasoningBudget
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, http_client, replies, served
from tests.support.tool_replies import admits

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "parts": [{"text": "hi"}]}]
CALL = 'so <tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
WEATHER = {
    "name": "get_weather",
    "description": "Weather",
    "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]},
}
TOOLS = [{"functionDeclarations": [WEATHER]}]


def body_of(**fields):
    return parse_json(GenerateBody, json.dumps({"contents": HI, **fields}).encode())


async def posted(fields, path="/v1beta/models/demo:generateContent", script="Hello, world!", model=None, **headers):
    model = model or FakeModel(replies(script, per_item=3))
    async with http_client(app_of(served(model)), **headers) as client:
        return model, await client.post(path, json={"contents": HI, **fields})


def pieces(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    return [json.loads(frame.removeprefix("data: ")) for frame in reply.text.split("\n\n") if frame]


# --- what bodies say ------------------------------------------------------------------------------


def test_a_conversation_is_rendered_as_in_every_dialect():
    contents = [
        {"role": "user", "parts": [{"text": "weather?"}, {"text": "in Köln"}]},
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"text": "so"},
                {
                    "functionCall": {"name": "get_weather", "args": {"city": "Köln"}, "id": "c1"},
                    "thoughtSignature": "x",
                },
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "get_weather", "id": "c1", "response": {"output": "sunny"}}},
                {"text": "and?"},
            ],
        },
    ]
    ask = chat_ask(body_of(contents=contents, systemInstruction={"parts": [{"text": "be"}, {"text": "kind"}]}))
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
    assert ask.messages == [
        {"role": "system", "content": "be\nkind"},
        {"role": "user", "content": "weather?\nin Köln"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "get_weather"},
        {"role": "user", "content": "and?"},
    ]
    assert ask.ending == "opened"


def test_calls_without_ids_find_their_results_by_name_in_order():
    def call(city):
        return {"functionCall": {"name": "get_weather", "args": {"city": city}}}

    def result(text):
        return {"functionResponse": {"name": "get_weather", "response": text}}

    contents = [
        *HI,
        {"role": "model", "parts": [call("a"), call("b")]},
        {"role": "function", "parts": [result({"error": "no"}), result({"t": 1})]},
    ]
    first, second, third = chat_ask(body_of(contents=contents)).messages[1:]
    assert [made["id"] for made in first["tool_calls"]] == [second["tool_call_id"], third["tool_call_id"]]
    assert (second["content"], third["content"]) == ("Error: no", '{"t":1}')


def test_snake_case_and_a_text_as_system_instruction_are_read():
    ask = chat_ask(body_of(system_instruction="be kind", generation_config={"max_output_tokens": 5}))
    assert ask.messages[0] == {"role": "system", "content": "be kind"}


def test_a_last_text_of_the_model_is_gone_on_with():
    assert chat_ask(body_of(contents=[*HI, {"role": "model", "parts": [{"text": "I"}]}])).ending == "continued"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"type": "STRING", "nullable": True}, {"type": ["string", "null"]}),
        (
            {"type": "STRING", "enum": ["a"], "format": "enum", "nullable": True},
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]},
        ),
        (
            {"type": "ARRAY", "items": {"type": "INTEGER", "format": "int32"}, "minItems": "2", "max_items": 3},
            {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ),
        ({"anyOf": [{"type": "NUMBER"}, {"type": "BOOLEAN"}]}, {"anyOf": [{"type": "number"}, {"type": "boolean"}]}),
        ({"type": "STRING", "format": "date-time", "example": "x"}, {"type": "string", "format": "date-time"}),
    ],
)
def test_schemas_of_google_are_json_schemas(given, meant):
    assert json_schema(given) == meant


def test_the_order_of_properties_is_the_one_that_the_schema_asks_for():
    properties = {"b": {"type": "STRING"}, "a": {"type": "STRING"}, "c": {"type": "STRING"}}
    schema = json_schema({"type": "OBJECT", "properties": properties, "propertyOrdering": ["a", "nothing", "b"]})
    assert list(schema["properties"]) == ["a", "b", "c"]


def test_a_schema_without_end_is_refused():
    schema = {"type": "STRING"}
    for _ in range(80):
        schema = {"type": "ARRAY", "items": schema}
    with pytest.raises(InvalidParameter, match="nested more than 64"):
        json_schema(schema)


def test_tools_of_googles_servers_are_left_out_and_others_look_as_in_every_dialect(caplog):
    caplog.set_level("INFO")
    [tool] = offered_tools(body_of(tools=[{"googleSearch": {}}, *TOOLS]))
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Weather", "parameters": schema}
    assert tool.shown == {"type": "function", "function": function}
    assert list(tool.shown["function"]) == ["name", "description", "parameters"]
    assert "googleSearch" in caplog.text


@pytest.mark.parametrize(
    ("config", "choice"),
    [
        ({"mode": "AUTO"}, ("auto", None)),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["get_weather"]}, ("auto", ("get_weather",))),
        ({"mode": "ANY"}, ("required", None)),
        ({"mode": "ANY", "allowedFunctionNames": ["get_weather"]}, ("required", ("get_weather",))),
        ({"mode": "NONE"}, ("none", None)),
    ],
)
def test_how_calls_may_be_made(config, choice):
    ask = chat_ask(body_of(tools=TOOLS, toolConfig={"functionCallingConfig": config}))
    assert (ask.choice.mode, ask.choice.names) == choice


async def test_a_forced_call_is_enforced():
    model, _ = await posted({"tools": TOOLS, "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}})
    assert admits(model.requests[0].constraint, CALL.removeprefix("so "))
    assert not admits(model.requests[0].constraint, "no call")


@pytest.mark.parametrize(
    ("config", "good", "bad"),
    [
        ({"responseMimeType": "application/json"}, "[1]", "text"),
        ({"responseMimeType": "application/json", "responseSchema": {"type": "INTEGER"}}, "7", '"7"'),
        ({"responseMimeType": "application/json", "responseJsonSchema": {"type": "null"}}, "null", "7"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["a b", 'q"']}}, 'q"', "q"),
    ],
)
def test_the_form_of_a_reply_is_enforced(config, good, bad):
    constraint = reply_constraint(GenerationConfig.model_validate(config))
    assert admits(constraint, good)
    assert not admits(constraint, bad)


async def test_sampling_limits_and_candidates_reach_the_engine():
    config = {
        "temperature": 0.5, "topP": 0.9, "topK": 40.0, "seed": -1, "maxOutputTokens": 7, "stopSequences": ["x"],
        "candidateCount": 2, "presencePenalty": 0.1, "frequencyPenalty": 0.2,
        "thinkingConfig": {"thinkingBudget": 5},
    }  # fmt: skip
    model, reply = await posted({"generationConfig": config})
    first, second = model.requests
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)
    assert (first.max_tokens, first.stop) == (7, ("x",))
    assert isinstance(first.reasoning, ReasoningBudget)
    assert (first.sampling.seed + 1) % 2**63 in (second.sampling.seed, 0)
    assert [one["index"] for one in reply.json()["candidates"]] == [0, 1]


async def test_a_budget_of_none_turns_thinking_off():
    prompts = FakePrompts(tool_format=HERMES)
    async with http_client(app_of(served(FakeModel(), prompts))) as client:
        for config in ({"thinkingBudget": 0}, {"thinkingBudget": -1}, {"thinkingLevel": "HIGH"}):
            body = {"contents": HI, "generationConfig": {"thinkingConfig": config}}
            await client.post("/v1beta/models/demo:generateContent", json=body)
    assert [variables for _, _, variables in prompts.rendered] == [
        {"enable_thinking": False, "thinking": False}, {}, {"reasoning_effort": "high"},
    ]  # fmt: skip


# --- replies --------------------------------------------------------------------------------------


async def test_a_whole_reply():
    _, reply = await posted({})
    told = reply.json()
    [one] = told["candidates"]
    assert one == {
        "content": {"role": "model", "parts": [{"text": "Hello, world!"}]},
        "finishReason": "STOP",
        "index": 0,
    }
    n_prompt = len("user: hi\nassistant: ")
    assert told["usageMetadata"] == {
        "promptTokenCount": n_prompt, "candidatesTokenCount": 13, "totalTokenCount": n_prompt + 13,
        "cachedContentTokenCount": 3, "thoughtsTokenCount": 0,
    }  # fmt: skip
    assert told["modelVersion"] == "demo"


@pytest.mark.parametrize("shown", [True, False])
async def test_thoughts_are_shown_to_who_wants_them(shown):
    config = {"thinkingConfig": {"includeThoughts": shown}}
    _, reply = await posted({"generationConfig": config}, script="<think>hm</think>yes")
    told = reply.json()
    thought = [{"text": "hm", "thought": True}] if shown else []
    assert told["candidates"][0]["content"]["parts"] == [*thought, {"text": "yes"}]
    usage = told["usageMetadata"]
    assert usage["thoughtsTokenCount"] > 0
    assert usage["totalTokenCount"] == sum(usage[f"{name}TokenCount"] for name in ("prompt", "candidates", "thoughts"))


async def test_a_call_leaves_whole_and_a_cut_one_not_at_all():
    path = "/v1beta/models/demo:streamGenerateContent?alt=sse"
    _, reply = await posted({"tools": TOOLS}, path, CALL)
    parts = [part for piece in pieces(reply) for part in piece["candidates"][0]["content"]["parts"]]
    assert "".join(part.get("text", "") for part in parts).strip() == "so"
    call = parts[-1]["functionCall"]
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Köln"})
    _, reply = await posted({"tools": TOOLS, "generationConfig": {"maxOutputTokens": 50}}, script=CALL)
    [one] = reply.json()["candidates"]
    assert one["finishReason"] == "MAX_TOKENS"
    assert [list(part) for part in one["content"]["parts"]] == [["text"]]


async def test_a_stream_has_the_text_in_pieces_and_its_end_in_the_last():
    _, reply = await posted({}, "/v1beta/models/demo:streamGenerateContent?alt=sse")
    *some, last = pieces(reply)
    assert "".join(piece["candidates"][0]["content"]["parts"][0]["text"] for piece in some) == "Hello, world!"
    assert all("finishReason" not in piece["candidates"][0] for piece in some)
    assert last["candidates"][0]["finishReason"] == "STOP"
    assert last["usageMetadata"]["candidatesTokenCount"] == 13
    assert len({piece["responseId"] for piece in (*some, last)}) == 1


@pytest.mark.parametrize("options", [{"resume_grace_s": 30.0}, {"keepalive_s": 0.001}], ids=["recorded", "silent"])
async def test_googles_client_finds_every_piece_of_a_stream(options):
    """It takes events off the front of what has come by an expression of its own; what does not begin with one
    is an error at the end.
    """
    told = anyio.Event()

    async def script(request):
        if "keepalive_s" in options:
            await told.wait()
        async for item in replies("Hello", per_item=1)(request):
            yield item

    async with exchange(
        app_of(served(FakeModel(script)), **options),
        "/v1beta/models/demo:streamGenerateContent?alt=sse",
        {"contents": HI},
    ) as talk:
        await talk.start()
        text = (await talk.chunk() if "keepalive_s" in options else b"").decode()
        told.set()
        text += (await talk.rest()).decode()
    found = []
    while event := re.match(r"\s*data: (.*)(?:\n\n|\r\r|\r\n\r\n)", text):
        found.append(json.loads(event[1]))
        text = text[event.end() :]
    assert text.strip() == ""
    assert found[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_without_sse_a_stream_is_an_array():
    _, reply = await posted({}, "/v1beta/models/demo:streamGenerateContent")
    [piece] = reply.json()
    assert piece["candidates"][0]["content"]["parts"] == [{"text": "Hello, world!"}]


async def test_log_probabilities():
    config = {"responseLogprobs": True, "logprobs": 2}
    _, reply = await posted({"generationConfig": config}, script="Hey")
    result = reply.json()["candidates"][0]["logprobsResult"]
    assert [token["token"] for token in result["chosenCandidates"]] == ["H", "e", "y"]
    assert [len(top["candidates"]) for top in result["topCandidates"]] == [2, 2, 2]


async def test_length_is_told():
    _, reply = await posted({}, model=FakeModel(replies("Hi", reason=FinishReason.LENGTH)))
    assert reply.json()["candidates"][0]["finishReason"] == "MAX_TOKENS"


# --- the other methods ----------------------------------------------------------------------------


async def test_tokens_are_counted_as_they_are_rendered():
    for fields in ({"contents": HI}, {"generateContentRequest": {"model": "models/demo", "contents": HI}}):
        async with http_client(app_of(served(FakeModel()))) as client:
            reply = await client.post("/v1beta/models/demo:countTokens", json=fields)
        assert reply.json() == {"totalTokens": len("user: hi\nassistant: ")}


async def test_embeddings():
    async with http_client(app_of(served(FakeModel()))) as client:
        one = await client.post("/v1beta/models/demo:embedContent", json={"content": {"parts": [{"text": "abc"}]}})
        asked = {"requests": [{"model": "models/demo", "content": {"parts": [{"text": text}]}} for text in ("a", "bc")]}
        two = await client.post("/v1beta/models/demo:batchEmbedContents", json=asked)
        cut = await client.post("/v1beta/models/demo:embedContent", json={"content": "a", "outputDimensionality": 2})
    assert one.json() == {"embedding": {"values": [3.0, 0.5, 0.5, 0.5]}}
    assert [vector["values"][0] for vector in two.json()["embeddings"]] == [1.0, 2.0]
    assert (cut.status_code, cut.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_models_come_in_pages_and_an_id_may_have_a_colon():
    models = [served(FakeModel(), id=id) for id in ("a:7b", "b", "c")]
    async with http_client(app_of(*models)) as client:
        page = (await client.get("/v1beta/models?pageSize=2")).json()
        rest = (await client.get(f"/v1beta/models?pageSize=2&pageToken={page['nextPageToken']}")).json()
        one = await client.get("/v1beta/models/a:7b")
        said = await client.post("/v1beta/models/a%3A7b%3AgenerateContent", json={"contents": HI})
    assert [model["name"] for model in page["models"] + rest["models"]] == ["models/a:7b", "models/b", "models/c"]
    assert "nextPageToken" not in rest
    assert one.json()["inputTokenLimit"] == 4096
    assert said.json()["modelVersion"] == "a:7b"


async def test_the_path_of_the_first_version_is_shared_with_other_dialects():
    async with http_client(app_of(served(FakeModel()))) as client:
        own = await client.get("/v1/models", headers={"x-goog-api-key": "k"})
        openai = await client.get("/v1/models")
        anthropic = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        said = await client.post("/v1/models/demo:generateContent", json={"contents": HI})
    assert "models" in own.json()
    assert openai.json()["object"] == "list"
    assert "has_more" in anthropic.json()
    assert said.json()["candidates"]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"contents": []}, "contents"),
        ({"contents": [{"role": "user", "parts": [{}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}]}, "inlineData"),
        ({"contents": [{"role": "nobody", "parts": []}]}, "contents[0].role"),
        ({"generationConfig": {"topP": 7}}, "generationConfig.topP"),
        ({"generationConfig": {"candidateCount": 99}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"logprobs": 2}}, "responseLogprobs"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "responseMimeType"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "enum"),
        ({"generationConfig": {"stopSequences": [""]}}, "stopSequences"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "mode ANY"),
        (
            {"tools": TOOLS, "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": ["f"]}}},
            "allowedFunctionNames",
        ),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_field(fields, field):
    _, reply = await posted(fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert field in error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"cachedContent": "cachedContents/1"}, {"generationConfig": {"responseModalities": ["IMAGE"]}}],
)
async def test_what_cannot_be_done_is_refused_by_name(fields):
    _, reply = await posted(fields)
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_a_prompt_that_is_too_long_is_told_in_googles_words():
    _, reply = await posted({"contents": [{"parts": [{"text": "h" * 5000}]}]})
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert message == "The input token count (5018) exceeds the maximum number of tokens allowed (4095)."


async def test_a_full_queue_says_how_long_to_wait():
    _, reply = await posted({}, model=FakeModel(replies("", error=QueueFull("full", retry_after_s=2))))
    error = reply.json()["error"]
    assert (reply.status_code, error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert error["details"][0]["retryDelay"] == "2s"


async def test_an_error_in_a_stream_is_a_piece_of_it():
    model = FakeModel(replies("Hello", error=DecodeFailed("broken")))
    _, reply = await posted({}, "/v1beta/models/demo:streamGenerateContent?alt=sse", model=model)
    assert pieces(reply)[-1]["error"]["status"] == "INTERNAL"


@pytest.mark.parametrize("path", ["/v1beta/models/nope:generateContent", "/v1beta/models/demo:sing", "/v1beta/files"])
async def test_unknown_paths_have_googles_shape(path):
    _, reply = await posted({}, path)
    assert (reply.status_code, reply.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_keys_are_googles():
    async with http_client(app_of(served(FakeModel()), api_keys=("sk",))) as client:
        refused = await client.get("/v1beta/models")
        passed = await client.get("/v1beta/models", headers={"x-goog-api-key": "sk"})
    assert (refused.status_code, passed.status_code) == (401, 200)
    assert "x-goog-api-key" in refused.json()["error"]["message"]


async def test_a_key_may_stand_in_the_query_and_is_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    keys = ("sk-1+/=", {"key": "sk-2", "name": "b"})
    async with http_client(app_of(served(FakeModel()), api_keys=keys)) as client:

        async def ask(path, key, **headers):
            url = httpx.URL(f"http://test{path}", params={"key": key, "alt": "json"})
            method = "POST" if ":" in path else "GET"
            return (await client.request(method, url, json={"contents": HI}, headers=headers)).status_code

        for path in (
            "/v1beta/models",
            "/v1/models",
            "/v1beta/models/demo:generateContent",
            "/v1/models/demo:countTokens",
        ):
            assert [await ask(path, key) for key in ("sk-1+/=", "sk-2", "sk-3", "")] == [200, 200, 401, 401], path
        assert await ask("/v1beta/models", "sk-3", **{"x-goog-api-key": "sk-2"}) == 200
        assert (await client.get("/v1beta/models?key=x&key=sk-2")).status_code == 200
        assert (await client.get("/v1beta/models?key=%ff%00&key")).status_code == 401
        assert (await client.get("/v1beta/models?" + "key=x&" * 1000 + "key=sk-2")).status_code == 401
        refused = await client.get("/v1beta/nothing?key=sk-2")
    assert (refused.status_code, "sk-" in refused.text) == (404, False)
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("deployments"))
    assert "tenant=b" in ours
    assert not [word for word in ("sk-", "key=", "?") if word in ours]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/api/tags", "/props", "/erllama/v1/prefixes"]
)
async def test_other_dialects_take_no_key_from_the_query(path):
    async with http_client(app_of(served(FakeModel()), api_keys=("sk",))) as client:
        assert (await client.get(path, params={"key": "sk"})).status_code == 401
