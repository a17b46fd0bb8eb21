"""Tokens, templates, vectors, and what the server tells of itself in the words of llama.cpp's server,
vLLM and LM Studio.
"""

import pytest

from erllama.errors import EngineStopped
from erllama.stats import EngineStats
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
RENDERED = "user: hi\nassistant: "


def with_bos():
    prompts = FakePrompts()
    prompts.adds_bos = True
    return prompts


async def ask(path, body=None, model=None, prompts=None, method=None, headers=None, **options):
    async with http_client(app_of(served(model or FakeModel(), prompts), **options), **(headers or {})) as client:
        return await client.request(method or ("GET" if body is None else "POST"), path, json=body)


async def answer(path, body=None, **more):
    reply = await ask(path, body, **more)
    assert reply.status_code == 200, reply.text
    return reply.json()


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [97, 98]),
        ({"content": "ab", "add_special": True}, [2, 97, 98]),
        ({"content": "a<x>"}, [97, 1]),
        ({"content": "a<x>", "parse_special": False}, list(b"a<x>")),
        ({"content": ["a", 98, "<x>"], "add_special": True}, [2, 97, 98, 1]),
        ({"content": ["a", 98, "<x>"], "parse_special": False}, [97, 98, *b"<x>"]),
        ({"content": ""}, []),
    ],
)
async def test_tokens_of_a_text(body, tokens):
    assert await answer("/tokenize", body, prompts=with_bos()) == {"tokens": tokens}


async def test_pieces_are_texts_or_bytes():
    told = await answer("/tokenize", {"content": "a<x>é", "with_pieces": True})
    assert told["tokens"] == [
        {"id": 97, "piece": "a"}, {"id": 1, "piece": "<x>"}, {"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]},
    ]  # fmt: skip


async def test_vllms_form_counts_a_prompt_or_a_chat():
    counted = {"count": 3, "max_model_len": 4096, "tokens": [2, 97, 98], "token_strs": None}
    assert await answer("/tokenize", {"model": "demo", "prompt": "ab"}, prompts=with_bos()) == counted
    bare = await answer("/tokenize", {"prompt": "ab", "add_special_tokens": False}, prompts=with_bos())
    assert bare["tokens"] == [97, 98]
    shown = await answer("/tokenize", {"prompt": "a<x>", "return_token_strs": True})
    assert shown["token_strs"] == ["a", "<x>"]
    chat = await answer("/tokenize", {"model": "demo", "messages": HI, "add_generation_prompt": True})
    assert bytes(chat["tokens"]).decode() == RENDERED
    closed = await answer("/tokenize", {"messages": HI, "add_generation_prompt": False})
    assert bytes(closed["tokens"]).decode() == "user: hi\n"


async def test_text_of_tokens_shows_control_tokens():
    assert await answer("/detokenize", {"tokens": [97, 1, 98.0]}) == {"content": "a<x>b"}
    assert await answer("/detokenize", {"tokens": [97], "model": "demo"}) == {"content": "a", "prompt": "a"}
    assert await answer("/detokenize", {"tokens": []}) == {"content": ""}


async def test_a_template_is_applied_with_tools_and_variables():
    prompts = FakePrompts()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"messages": HI, "tools": [tool], "chat_template_kwargs": {"x": 1}, "reasoning_effort": "low"}
    assert await answer("/apply-template", body, prompts=prompts) == {"prompt": RENDERED}
    [(messages, tools, variables)] = prompts.rendered
    assert (messages, tools[0]["function"]["name"], variables) == (HI, "f", {"reasoning_effort": "low", "x": 1})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": [300]}, "content"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "messages"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}, "with_pieces"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "300"),
        ("/detokenize", {"tokens": [-1]}, "-1"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": [{"role": "king"}]}, "messages[0].role"),
        ("/apply-template", {"messages": HI, "chat_template": "mine"}, "chat_template"),
        ("/embedding", {}, "content"),
        ("/embedding", {"content": ""}, "content"),
        ("/embedding", {"content": "x" * 5000}, "5000"),
        ("/embedding", {"content": "a", "embd_normalize": 0}, "embd_normalize"),
        ("/embeddings", {"content": [1.5]}, "content"),
    ],
)
async def test_what_is_wrong_is_named(path, body, words):
    reply = await ask(path, body)
    assert reply.status_code == 400, reply.text
    assert words in reply.json()["error"]["message"]
    assert reply.json()["error"]["code"] == 400


# --- vectors --------------------------------------------------------------------------------------


async def test_vectors_come_in_a_list_of_lists():
    assert await answer("/embedding", {"content": "abc"}) == [{"index": 0, "embedding": [[3.0, 0.5, 0.5, 0.5]]}]
    told = await answer("/embeddings", {"input": ["a", [97, "b"]], "embd_normalize": 2})
    assert [(one["index"], one["embedding"][0][0]) for one in told] == [(0, 1.0), (1, 2.0)]
    openai = await answer("/v1/embeddings", {"input": "abc"})
    assert openai["object"] == "list"


async def test_the_document_tells_which_form_a_path_takes():
    told = await answer("/openapi.json")
    for path, kind in (("/embeddings", "llama_server.EmbeddingBody"), ("/v1/embeddings", "openai.EmbeddingBody")):
        body = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].endswith(f"/{kind}")


# --- the server itself ----------------------------------------------------------------------------


async def test_props_tell_what_a_client_needs_to_know():
    told = await answer("/props")
    defaults = told["default_generation_settings"]
    assert (defaults["n_ctx"], told["total_slots"], told["model_alias"]) == (4096, 4, "demo")
    assert (defaults["params"]["temperature"], defaults["params"]["n_predict"]) == (0.8, -1)
    assert (told["bos_token"], told["eos_token"], told["chat_template"]) == ("<s>", "</s>", "{{ messages }}")
    assert told["modalities"] == {"vision": False, "audio": False, "video": False}
    assert told["build_info"].startswith("erllama-")
    assert told["is_sleeping"] is False
    assert told["model_path"] == "/models/secret/demo.gguf", "without keys everyone may see all"


async def test_props_of_a_model_that_sleeps_do_not_wake_it():
    class Sleeping(FakeModel):
        async def model_info(self):
            raise AssertionError("it was woken")

    told = await answer("/props", model=Sleeping(state=None))
    assert (told["is_sleeping"], told["default_generation_settings"]["n_ctx"]) == (True, 4096)
    assert await answer("/slots", model=Sleeping(state=None)) == []


async def test_which_model_is_asked_for_where_there_are_several():
    app = app_of(served(FakeModel()), served(FakeModel(), id="other"))
    async with http_client(app) as client:
        assert (await client.get("/props?model=other")).json()["model_alias"] == "other"
        unnamed = await client.get("/props")
        assert (unnamed.status_code, unnamed.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await client.get("/slots?model=nope")).status_code == 404


async def test_slots_tell_how_many_compute():
    told = await answer("/slots")
    assert [slot["is_processing"] for slot in told] == [True, True, False, False]
    assert [slot["id"] for slot in told] == [0, 1, 2, 3]
    assert (await ask("/slots?fail_on_no_slot=1")).status_code == 200

    class Busy(FakeModel):
        async def stats(self):
            return [EngineStats(1, 0, n_generating=1), EngineStats(1, 0, n_prefilling=1)]

    reply = await ask("/slots?fail_on_no_slot=1", model=Busy())
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "unavailable_error")
    assert len(await answer("/slots", model=Busy())) == 2


async def test_load_counts_what_runs_and_waits():
    assert await answer("/load") == {"server_load": 5}

    class Gone(FakeModel):
        async def stats(self):
            raise EngineStopped("none runs")

    assert await answer("/load", model=Gone()) == {"server_load": 0}


async def test_probes_are_open_and_all_else_is_not():
    closed = {"api_keys": ("secret",)}
    assert (await ask("/v1/health", **closed)).json() == {"status": "ok"}
    for method in ("GET", "POST"):
        ping = await ask("/ping", method=method, **closed)
        assert (ping.status_code, ping.content) == (200, b"")
    for path in ("/props", "/slots", "/version", "/load", "/api/v0/models"):
        assert (await ask(path, **closed)).status_code == 401
        expected = 403 if path == "/slots" else 200  # those are an admin's
        assert (await ask(path, headers={"authorization": "Bearer secret"}, **closed)).status_code == expected


async def test_lm_studios_list_and_its_chats():
    [card] = (await answer("/api/v0/models"))["data"]
    assert card == {
        "id": "demo", "object": "model", "type": "llm", "publisher": "erllama", "arch": "qwen3", "compatibility_type": "gguf",
        "quantization": "Q8_0", "state": "loaded", "max_context_length": 4096, "loaded_context_length": 4096,
        "capabilities": ["tool_use"],
    }  # fmt: skip
    asleep = (await answer("/api/v0/models", model=FakeModel(state=None)))["data"][0]
    assert (asleep["state"], asleep["loaded_context_length"], asleep["arch"]) == ("not-loaded", None, None)
    chat = await answer("/api/v0/chat/completions", {"model": "demo", "messages": HI})
    assert chat["object"] == "chat.completion"


# --- paths without /v1 ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "mark"),
    [
        ("/chat/completions", {"messages": HI}, {"object": "chat.completion"}),
        ("/completions", {"prompt": "x"}, {"object": "text_completion"}),
        ("/messages", {"messages": HI, "max_tokens": 5}, {"type": "message"}),
        ("/messages/count_tokens", {"messages": HI}, {"input_tokens": 20}),
        ("/responses", {"input": "hi"}, {"object": "response"}),
        ("/responses/input_tokens", {"input": "hi"}, {"object": "response.input_tokens"}),
    ],
)
async def test_routes_of_other_dialects_also_answer_without_v1(path, body, mark):
    bare, full = await answer(path, body), await answer("/v1" + path, body)
    assert mark.items() <= bare.items()
    assert mark.items() <= full.items()


@pytest.mark.parametrize(
    ("path", "keys"),
    [("/messages", {"type", "error", "request_id"}), ("/responses", {"error"}), ("/detokenize", {"error"})],
)
async def test_errors_without_v1_have_the_shape_of_their_dialect(path, keys):
    reply = await ask(path, {"model": "nope", "messages": HI, "input": "x", "tokens": [1], "max_tokens": 1})
    assert (reply.status_code, set(reply.json())) == (404, keys)


async def test_a_stored_response_is_found_under_both_paths():
    async with http_client(app_of(served(FakeModel()))) as client:
        made = (await client.post("/responses", json={"input": "hi"})).json()["id"]
        assert (await client.get(f"/v1/responses/{made}")).json()["id"] == made
        assert (await client.delete(f"/responses/{made}")).json()["deleted"] is True


@pytest.mark.parametrize("path", ["/apply-template", "/tokenize", "/chat/completions/input_tokens"])
async def test_rules_against_noise_hold_where_a_prompt_is_shown(path):
    reply = await ask(path, {"messages": HI}, headers={"x-erllama-noise": "perhaps"})
    assert (reply.status_code, "x-erllama-noise" in reply.text) == (400, True)
