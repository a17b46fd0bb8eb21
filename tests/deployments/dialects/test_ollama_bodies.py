"""What bodies of Ollama's API ask for: what passes, what is refused by its name, and what the engine
is asked in the end.
"""

import asyncio
import json

import pytest

from deployments.dialects.ollama.models import human_number
from deployments.dialects.ollama.options import NO_LIMIT
from deployments.dialects.ollama.params import chat_ask
from deployments.dialects.ollama.wire import ChatBody, GenerateBody, parse_body
from deployments.http.ports import ChatPrompt
from erllama.chat.tool_formats.choose import format_named
from erllama.errors import DecodeFailed, ErllamaError
from erllama.request import Prompt, SamplingParams
from erllama.testing.stub_backend import StubVocab
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, http_client, replies, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
CHAT, GENERATE = "/api/chat", "/api/generate"


async def post(path, body, model=None, prompts=None, **options):
    async with http_client(app_of(served(model or FakeModel(), prompts), **options)) as client:
        return await client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))


def lines(body):
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def parsed(**fields):
    return parse_body(ChatBody, json.dumps({"model": "demo", "messages": HI, **fields}).encode())


async def test_options_become_sampling_and_limits():
    model = FakeModel()
    given = {
        "num_predict": 5, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1,
        "repeat_last_n": 32, "seed": 42, "stop": ["\n", ""], "presence_penalty": 0.1, "frequency_penalty": -0.2,
    }  # fmt: skip
    for path, body in (
        (CHAT, {"messages": HI}),
        (GENERATE, {"prompt": "hi"}),
        (GENERATE, {"prompt": "hi", "raw": True}),
    ):
        reply = await post(path, {"model": "demo", "options": given, "stream": False, **body}, model)
        assert reply.status_code == 200, reply.text
    for request in model.requests:
        assert request.sampling == SamplingParams(
            temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.1, repeat_last_n=32, seed=42,
            presence_penalty=0.1, frequency_penalty=-0.2,
        )  # fmt: skip
        assert (request.max_tokens, request.stop) == (5, ("\n",))


async def test_what_is_left_out_or_off_keeps_the_defaults():
    model = FakeModel()
    machine = {
        "num_ctx": 32768, "num_gpu": 99, "num_thread": 8, "num_batch": 512, "main_gpu": 0, "use_mmap": True, "numa": False,
        "low_vram": False, "use_mlock": False, "num_keep": 4, "penalize_newline": True, "mirostat": 0, "mirostat_tau": 5.0,
        "mirostat_eta": 0.1, "tfs_z": 1, "typical_p": 1.0, "seed": None, "stop": None, "num_predict": -1, "made_up": [1],
    }  # fmt: skip
    for options in (machine, {}, None, {"num_predict": -2, "seed": -1}, {"num_predict": 0, "stop": "", "seed": -1.0}):
        body = {
            "model": "demo",
            "messages": HI,
            "options": options,
            "keep_alive": "5m",
            "unheard_of": 3,
            "truncate": True,
        }
        reply = await post(
            CHAT, body | {"think": None, "format": "", "tools": [], "shift": True, "logprobs": False}, model
        )
        assert reply.status_code == 200, reply.text
        limit = NO_LIMIT if (options or {}).get("num_predict") is not None else None  # said, or left to the model
        assert (model.requests[-1].sampling, model.requests[-1].max_tokens) == (SamplingParams(), limit)
        assert (model.requests[-1].stop, model.requests[-1].grammar, model.requests[-1].logprobs) == ((), None, None)


async def test_numbers_with_a_point_are_numbers():
    model = FakeModel()
    body = {
        "model": "demo",
        "messages": HI,
        "options": {"num_predict": 5.0, "top_k": 40.0, "seed": 7.0, "temperature": 1},
    }
    assert (await post(CHAT, body, model)).status_code == 200
    [request] = model.requests
    assert (request.max_tokens, request.sampling.top_k, request.sampling.seed) == (5, 40, 7)
    await post(CHAT, body | {"options": {"top_k": -1}}, model)
    assert model.requests[-1].sampling.top_k == 0


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (CHAT, {"options": {"mirostat": 1}}, "mirostat"),
        (CHAT, {"options": {"tfs_z": 0.5}}, "tfs_z"),
        (CHAT, {"options": {"typical_p": True}}, "typical_p"),
        (CHAT, {"options": {"temperature": "hot"}}, "options.temperature"),
        (CHAT, {"options": {"temperature": -1}}, "options.temperature"),
        (CHAT, {"options": {"repeat_penalty": 1000}}, "options.repeat_penalty"),
        (CHAT, {"options": {"num_predict": 1.5}}, "options.num_predict"),
        (CHAT, {"options": {"num_predict": 2**31}}, "options.num_predict"),
        (CHAT, {"options": {"num_predict": 1e300}}, "options.num_predict"),
        (CHAT, {"options": {"seed": 2**70}}, "options.seed"),
        (CHAT, {"options": {"stop": [1]}}, "options.stop"),
        (CHAT, {"options": {"stop": ["x"] * 65}}, "64"),
        (CHAT, {"options": []}, "options"),
        (CHAT, {"options": "x"}, "options"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": 3}}]}]}, "arguments"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[{"}}]}]}, "arguments"),
        (CHAT, {"messages": 5}, "messages"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0]"),
        (CHAT, {"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        (CHAT, {"tools": [{"function": {"name": "x", "parameters": []}}]}, "tools[0].function.parameters"),
        (CHAT, {"format": "yaml"}, "format"),
        (CHAT, {"format": 5}, "format"),
        (CHAT, {"format": {"type": "bad"}}, "the JSON schema is refused"),
        (CHAT, {"think": "a lot"}, "think"),
        (CHAT, {"think": 1}, "think"),
        (CHAT, {"stream": "no"}, "stream"),
        (CHAT, {"keep_alive": True}, "keep_alive"),
        (CHAT, {"top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"_debug_render_only": True}, "_debug_render_only"),
        (CHAT, {"model": 5}, "model"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "4096"),
        (GENERATE, {"suffix": "x", "raw": True}, "suffix"),
        (GENERATE, {"suffix": "x" * 5000}, "4096"),
        (GENERATE, {"template": "{{ .Prompt }}"}, "template"),
        (GENERATE, {"raw": True, "context": [1, 2]}, "context"),
        (GENERATE, {"suffix": "x", "context": [1, 2]}, "context"),
        (GENERATE, {"context": [1, 300]}, "token id 300"),
        (GENERATE, {"context": [1] * 5000}, "4096"),
        (GENERATE, {"context": ["a"]}, "context[0]"),
        (GENERATE, {"images": ["aGk="]}, "images"),
        (GENERATE, {"raw": True, "system": "x"}, "system"),
        (GENERATE, {"raw": True, "think": True}, "think"),
        (GENERATE, {"raw": True, "prompt": "x" * 5000}, "4096"),
        (GENERATE, {"raw": True, "format": {"type": "bad"}}, "the JSON schema is refused"),
        (GENERATE, {"prompt": 5}, "prompt"),
        ("/api/embed", {"input": 5}, "input"),
        ("/api/embed", {"input": [1, 2]}, "input"),
        ("/api/embed", {"input": ["x"] * 2049}, "2048"),
        ("/api/embed", {"input": "x", "dimensions": -1}, "dimensions"),
        ("/api/embeddings", {"prompt": ["x"]}, "prompt"),
        ("/api/show", {"model": []}, "model"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(path, fields, words):
    said = {CHAT: {"messages": HI}, GENERATE: {"prompt": "hi"}}.get(path, {})
    reply = await post(path, {"model": "demo", **said, **fields})
    assert (reply.status_code, set(reply.json())) == (400, {"error"}), reply.text
    assert words in reply.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "\\ud800"}', b"[" * 100_000, b"\xff"])
@pytest.mark.parametrize("path", [CHAT, GENERATE, "/api/embed", "/api/embeddings", "/api/show"])
async def test_what_is_no_body_is_400(path, body):
    reply = await post(path, body)
    assert (reply.status_code, set(reply.json())) == (400, {"error"})


async def test_fields_that_say_nothing_pass():
    body = {
        "model": "demo",
        "prompt": "hi",
        "suffix": "",
        "template": "",
        "context": [],
        "images": [],
        "system": "",
        "raw": False,
    }
    assert (await post(GENERATE, body)).status_code == 200


async def test_without_a_word_about_streaming_a_reply_is_streamed():
    reply = await post(CHAT, {"model": "demo", "messages": HI})
    assert reply.headers["content-type"] == "application/x-ndjson"
    told = lines(reply.content)
    assert all(line["model"] == "demo" and line["created_at"].endswith("Z") for line in told)
    assert [line["message"]["role"] for line in told] == ["assistant"] * len(told)
    assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
    told = lines((await post(GENERATE, {"model": "demo", "prompt": "hi"})).content)
    assert not any("message" in line or "tool_calls" in line for line in told)
    assert told[-1]["response"] == ""


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("demo", "demo"), ("demo:latest", "demo"), ("qwen3:8b", "qwen3:8b"), ("llama:latest", "llama:latest"), ("llama", "llama:latest"),
        ("small", "demo"), ("small:latest", "demo"), ("gpt-5", "qwen3:8b"), ("gpt-5:latest", "qwen3:8b"), ("qwen3", None),
        ("demo:8b", None), ("nobody:latest", None),
    ],
)  # fmt: skip
async def test_latest_is_the_tag_of_a_name_without_one(asked, found):
    models = {"demo": FakeModel(), "qwen3:8b": FakeModel(), "llama:latest": FakeModel()}
    aliases = {"demo": ("small",), "qwen3:8b": ("gpt-*",), "llama:latest": ()}
    app = app_of(*(served(model, id=id, aliases=aliases[id]) for id, model in models.items()))
    async with http_client(app) as client:
        reply = await client.post(CHAT, json={"model": asked, "messages": HI, "stream": False})
    assert [id for id, model in models.items() if model.requests] == ([found] if found else [])
    if found is None:
        assert (reply.status_code, reply.json()) == (404, {"error": f"model '{asked}' not found"})
    else:
        assert reply.json()["model"] == asked


async def test_a_last_message_of_the_assistant_is_gone_on_with():
    ask = chat_ask(parsed(messages=[*HI, {"role": "assistant", "content": "Hel"}]))
    assert ask.ending == "continued"
    call = {"function": {"name": "x", "arguments": {}}}
    for last in ({"role": "assistant", "content": "x", "tool_calls": [call]}, {"role": "assistant", "content": ""}):
        assert chat_ask(parsed(messages=[*HI, last])).ending == "opened"


def test_results_find_their_calls():
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("a", "b", "a")] + [
        {"id": "own", "function": {"name": "c", "arguments": {"x": 1}}}
    ]
    results = [
        {"role": "tool", "content": "1", "tool_name": "b"},
        {"role": "tool", "content": "2", "name": "a"},
        {"role": "tool", "content": "3", "tool_call_id": "own"},
        {"role": "tool", "content": "4"},
        {"role": "tool", "content": "5", "tool_name": "b"},
    ]
    messages = chat_ask(parsed(messages=[*HI, {"role": "assistant", "tool_calls": calls}, *results])).messages
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert ids == ["call_1_0", "call_1_1", "call_1_2", "own"]
    assert [(message.get("tool_call_id"), message.get("name")) for message in messages[2:]] == [
        (ids[1], "b"),
        (ids[0], "a"),
        ("own", "c"),
        (ids[2], "a"),
        (None, "b"),
    ]
    assert chat_ask(parsed(messages=[*HI, {"role": "assistant", "tool_calls": calls}])).messages[1] == messages[1]


def test_tools_are_shown_in_one_order():
    one = {"function": {"parameters": {"type": "object"}, "name": "x", "description": "d"}, "type": "function"}
    other = {"function": {"description": "d", "name": "x", "parameters": {"type": "object"}, "strict": None}}
    [first], [second] = (chat_ask(parsed(tools=[tool])).tools for tool in (one, other))
    assert json.dumps(first.shown) == json.dumps(second.shown)
    [bare] = chat_ask(parsed(tools=[{"function": {"name": "x"}}])).tools
    assert bare.parameters == {"type": "object"}


async def test_a_model_that_cannot_think_is_not_asked_to():
    prompts = FakePrompts(tool_format=format_named("firefunction"))
    reply = await post(CHAT, {"model": "demo", "messages": HI, "think": True}, prompts=prompts)
    assert (reply.status_code, reply.json()) == (400, {"error": '"demo" does not support thinking'})
    assert (await post(CHAT, {"model": "demo", "messages": HI, "think": False}, prompts=prompts)).status_code == 200


async def test_a_suffix_makes_the_reply_fill_the_gap():
    model, prompts, fim = FakeModel(), FakePrompts(), StubVocab.specials.fim
    for more in ({}, {"stream": False, "system": "no part of it"}, {"prompt": ""}):
        reply = await post(GENERATE, {"model": "demo", "prompt": "a", "suffix": "z", **more}, model, prompts)
        assert reply.status_code == 200, reply.text
    gap = (fim.prefix, *b"a", fim.suffix, *b"z", fim.middle)
    assert [request.prompt_tokens for request in model.requests] == [gap, gap, (gap[0], *gap[2:])]
    assert "insert" in (await post("/api/show", {"name": "demo"}, prompts=prompts)).json()["capabilities"]

    prompts.fills_gaps = False
    reply = await post(GENERATE, {"model": "demo", "prompt": "a", "suffix": "z"}, model, prompts)
    assert (reply.status_code, reply.json()) == (400, {"error": '"demo" does not support insert'})
    assert "insert" not in (await post("/api/show", {"name": "demo"}, prompts=prompts)).json()["capabilities"]


async def test_a_model_whose_template_heeds_the_switch_can_think():
    class Switched(FakePrompts):
        def render_chat(self, messages, tools, template_kwargs, ending="opened"):
            return ChatPrompt(Prompt.of(repr(sorted(template_kwargs.items())).encode()))

    for prompts, thinks in ((Switched(), True), (FakePrompts(), False), (FakePrompts(template=False), False)):
        shown = (await post("/api/show", {"name": "demo", "verbose": True}, prompts=prompts)).json()
        assert ("thinking" in shown["capabilities"]) is thinks


async def test_arguments_with_half_a_character_leave_as_escapes():
    said = '<tool_call>\n{"name": "x", "arguments": {"a": "\\ud800é"}}\n</tool_call>'
    for stream in (False, True):
        body = {"model": "demo", "messages": HI, "tools": [{"function": {"name": "x"}}], "stream": stream}
        reply = await post(CHAT, body, FakeModel(replies(said)))
        [call] = lines(reply.content + b"\n" * (not stream))[0]["message"]["tool_calls"]
        assert call["function"] == {"index": 0, "name": "x", "arguments": {"a": "\ud800é"}}


async def test_a_long_input_is_cut_unless_that_is_forbidden():
    async with http_client(app_of(served(FakeModel(), FakePrompts(n_ctx=8)))) as client:
        cut = await client.post("/api/embed", json={"model": "demo", "input": ["x" * 20, "y"]})
        whole = await client.post("/api/embed", json={"model": "demo", "input": ["x" * 20, "y"], "truncate": False})
    assert (cut.json()["prompt_eval_count"], whole.json()["prompt_eval_count"]) == (9, 21)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:00"), ("HEAD", "/api/blobs/sha256:00"),
    ],
)  # fmt: skip
async def test_what_would_change_the_models_is_501(method, path):
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.request(method, path, content=b"whatever")
    assert reply.status_code == 501
    assert method == "HEAD" or path.split("/")[2] in reply.json()["error"]


async def test_version_greeting_and_unknown_paths():
    async with http_client(app_of(served(FakeModel()))) as client:
        assert (await client.get("/api/version")).json()["version"].count(".") == 2
        assert (await client.get("/")).text == "Ollama is running"
        assert (await client.head("/")).status_code == 200
        for reply, status in ((await client.get("/api/nope"), 404), (await client.get(CHAT), 405)):
            assert (reply.status_code, set(reply.json())) == (status, {"error"})


async def test_a_silent_stream_says_nothing_in_a_line_and_fails_in_one():
    async def script(request):
        await gate.wait()
        raise DecodeFailed("lost")
        yield

    gate = asyncio.Event()
    app = app_of(served(FakeModel(script)), keepalive_s=0.01)
    async with exchange(app, CHAT, {"model": "demo", "messages": HI}) as client:
        assert (await client.start())[0] == 200
        silent = json.loads(await client.chunk())
        assert (silent["message"], silent["done"]) == ({"role": "assistant", "content": ""}, False)
        gate.set()
        assert lines(await client.rest())[-1] == {"error": "lost"}


def test_numbers_of_parameters():
    assert [human_number(n) for n in (999, 1_500, 494_032_768, 7_615_616_512, 1_000_000_000_000)] == [
        "999", "1.5K", "494.03M", "7.6B", "1.0T",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [(0, True), (0.0, True), ("0", True), ("0s", True), ("0m", True), ("-1", False), (-1, False), ("5m", False), ("", False), (None, False), ("1h0m", False)],
)  # fmt: skip
def test_a_keep_alive_of_nothing_unloads(keep_alive, unloads):
    assert parse_body(GenerateBody, json.dumps({"keep_alive": keep_alive}).encode()).unloads is unloads


def test_the_fault_of_a_body_is_one_of_ours():
    with pytest.raises(ErllamaError):
        parse_body(ChatBody, b'{"messages": [{}]}')
