"""Models of a hub in every dialect: lists, names that are not there, llama.cpp's router routes, and the
defaults that hold whatever the dialect.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.http.model_library import ModelPhase
from erllama.errors import EngineStopped, InvalidParameter
from tests.support.http_fakes import FakeModel, app_of, http_client, openai_client, served
from tests.support.hub_fakes import LOADED, FakeLibrary, manifest

pytestmark = pytest.mark.anyio

KEYS = ({"key": "ops", "admin": True}, {"key": "guest", "name": "guest"})
HI = [{"role": "user", "content": "hi"}]


async def ask(library, method, path, body=None, *, configured=(), key=None, **options):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with http_client(app_of(*configured, library=library, **options)) as client:
        return await client.request(method, path, json=body, headers=headers)


# --- lists --------------------------------------------------------------------------------------------


async def test_openais_client_sees_all_models_with_what_is_known():
    library = FakeLibrary(manifest("a"), manifest("b"))
    library.standings = {"a": LOADED}
    async with openai_client(app_of(served(FakeModel()), library=library)) as client:
        demo, a, b = [model.model_dump() async for model in client.models.list()]
        again = (await client.models.retrieve("A")).model_dump()
    facts = {"n_ctx_train": 32768, "n_params": 494_032_768, "size": 1234}
    assert (demo["id"], demo["meta"], demo["status"]) == ("demo", {"n_ctx": 4096}, {"value": "loaded"})
    assert (a["id"], a["meta"], a["context_length"]) == ("a", {"n_ctx": 2048, **facts}, 2048)
    assert (b["id"], b["meta"], b["status"]) == ("b", {"n_ctx": 8192, **facts}, {"value": "unloaded"})
    assert again == a


@pytest.mark.parametrize(
    ("phase", "status"),
    [
        (ModelPhase.UNLOADED, {"value": "unloaded"}),
        (ModelPhase.WAITING, {"value": "loading"}),
        (ModelPhase.LOADING, {"value": "loading"}),
        (ModelPhase.LOADED, {"value": "loaded"}),
        (ModelPhase.SLEEPING, {"value": "sleeping"}),
        (ModelPhase.LEAVING, {"value": "loaded"}),
        (ModelPhase.FAILED, {"value": "unloaded", "failed": True}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_a_phase_has_the_words_of_llama_cpps_router(path, phase, status):
    library = FakeLibrary(manifest("a"))
    library.standings = {"a": replace(LOADED, phase=phase)}
    [card] = (await ask(library, "GET", path)).json()["data"]
    assert card["status"] == status


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (True, {"value": "loaded"}),
        (False, {"value": "loading"}),
        (None, {"value": "sleeping"}),
        (EngineStopped("gone"), {"value": "unloaded", "failed": True}),
    ],
)
async def test_a_configured_model_has_them_too(state, status):
    model = FakeModel(state=state)
    [card] = (await ask(None, "GET", "/v1/models", configured=[served(model)])).json()["data"]
    assert card["status"] == status


LISTS = {
    "/v1/models": lambda told: [model["id"] for model in told["data"]],
    "/models": lambda told: [model["id"] for model in told["data"]],
    "/v1/models?client_version=1": lambda told: [model["slug"] for model in told["models"]],
    "/v1beta/models": lambda told: [model["baseModelId"] for model in told["models"]],
    "/api/tags": lambda told: [model["name"].removesuffix(":latest") for model in told["models"]],
    "/api/v0/models": lambda told: [model["id"] for model in told["data"]],
    "anthropic": lambda told: [model["id"] for model in told["data"]],
}


async def listed(library, place, **more):
    headers = {"anthropic-version": "2023-06-01"} if place == "anthropic" else {}
    path = "/v1/models" if place == "anthropic" else place
    async with http_client(app_of(served(FakeModel()), library=library, **more), **headers) as client:
        reply = await client.get(path, headers={"authorization": "Bearer guest"})
    assert reply.status_code == 200, reply.text
    return LISTS[place](reply.json())


@pytest.mark.parametrize("place", LISTS)
async def test_every_list_has_the_models_of_the_hub_behind_the_configured_ones(place):
    assert await listed(FakeLibrary(manifest("a"), manifest("b")), place) == ["demo", "a", "b"]


@pytest.mark.parametrize("place", LISTS)
async def test_a_configured_model_hides_one_of_the_same_name(place):
    assert await listed(FakeLibrary(manifest("demo"), manifest("b")), place) == ["demo", "b"]


@pytest.mark.parametrize("place", LISTS)
async def test_a_list_has_what_its_key_may_use(place):
    keys = ({"key": "guest", "name": "guest", "models": ["b"]},)
    assert await listed(FakeLibrary(manifest("a"), manifest("b")), place, api_keys=keys) == ["b"]


@pytest.mark.parametrize("place", sorted(set(LISTS) - {"/api/tags", "/api/v0/models"}))  # these read manifests alone
async def test_one_model_that_cannot_be_served_does_not_empty_a_list(place):
    library = FakeLibrary(manifest("a"), manifest("b"))
    library.broken = {"a": InvalidParameter("a cannot be configured", param="model")}
    assert await listed(library, place) == ["demo", "b"]


async def test_lm_studios_list_has_what_is_loaded_and_with_how_much():
    library = FakeLibrary(manifest("a"), manifest("b"))
    library.standings = {"a": LOADED, "b": replace(LOADED, phase=ModelPhase.SLEEPING)}
    a, b = (await ask(library, "GET", "/api/v0/models")).json()["data"]
    assert (a["state"], a["max_context_length"], a["loaded_context_length"]) == ("loaded", 32768, 2048)
    assert (b["state"], b["loaded_context_length"], b["quantization"]) == ("not-loaded", None, "Q4_K_M")


# --- names that are not there -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", {"messages": HI}, lambda e: (e["error"]["code"], e["error"]["message"])),
        ("/v1/completions", {"prompt": "x"}, lambda e: (e["error"]["code"], e["error"]["message"])),
        ("/v1/embeddings", {"input": "x"}, lambda e: (e["error"]["code"], e["error"]["message"])),
        ("/v1/responses", {"input": "x"}, lambda e: (e["error"]["code"], e["error"]["message"])),
        ("/v1/messages", {"messages": HI, "max_tokens": 1}, lambda e: (e["error"]["type"], e["error"]["message"])),
        ("/completion", {"prompt": "x"}, lambda e: (e["error"]["type"], e["error"]["message"])),
        ("/models/load", {}, lambda e: (e["error"]["type"], e["error"]["message"])),
        ("/models/unload", {}, lambda e: (e["error"]["type"], e["error"]["message"])),
        ("/v1beta/models/tiny:generateContent", {"contents": [{"parts": [{"text": "x"}]}]},
         lambda e: (e["error"]["status"], e["error"]["message"])),
    ],
)  # fmt: skip
async def test_each_dialect_says_404_in_its_own_shape_with_near_names(path, body, said):
    reply = await ask(FakeLibrary(manifest("tiny:v1")), "POST", path, {"model": "tiny", **body})
    assert reply.status_code == 404, reply.text
    kind, message = said(reply.json())
    assert kind in ("model_not_found", "not_found_error", "NOT_FOUND")
    assert "tiny:v1" in message
    assert "'tiny'" in message


async def test_a_retrieved_name_that_is_not_there_is_a_404_and_no_pull():
    keys = ({"key": "k", "name": "k", "pull": True},)
    reply = await ask(FakeLibrary(manifest("tiny:v1")), "GET", "/v1/models/tiny", key="k", api_keys=keys)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert "tiny:v1" in reply.json()["error"]["message"]


async def test_a_model_that_is_being_fetched_is_a_503_that_says_when_to_come_again():
    keys = ({"key": "k", "name": "k", "pull": True},)
    body = {"model": "new", "messages": HI}
    reply = await ask(FakeLibrary(), "POST", "/v1/chat/completions", body, key="k", api_keys=keys)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


# --- llama.cpp's router -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_a_model_is_loaded_and_unloaded_by_name(what):
    library = FakeLibrary(manifest("tiny:v1"))
    reply = await ask(library, "POST", f"/models/{what}", {"model": "TINY:v1"})
    assert (reply.status_code, reply.json(), library.log) == (200, {"success": True}, [(what, "tiny:v1")])


async def test_a_model_in_use_is_not_unloaded():
    library = FakeLibrary(manifest("a"))
    library.in_use = {"a"}
    reply = await ask(library, "POST", "/models/unload", {"model": "a"})
    assert reply.status_code == 409
    assert reply.json()["error"]["code"] == 409


@pytest.mark.parametrize("what", ["load", "unload"])
@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"model": ""}, 400), ({"model": 3}, 400), ([], 400), ({"model": "demo"}, 400)]
)
async def test_what_cannot_be_loaded_or_unloaded_is_refused(what, body, status):
    reply = await ask(FakeLibrary(), "POST", f"/models/{what}", body, configured=[served(FakeModel())])
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, status), reply.text


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_loading_needs_an_admin_where_there_are_keys(what):
    for key, status in (("guest", 403), (None, 401), ("ops", 200)):
        library = FakeLibrary(manifest("a"))
        reply = await ask(library, "POST", f"/models/{what}", {"model": "a"}, key=key, api_keys=KEYS)
        assert (reply.status_code, bool(library.log)) == (status, status == 200)


# --- generating -------------------------------------------------------------------------------------


CHATS = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
    "/completion": {"prompt": "x"},
    "/api/generate": {"prompt": "x", "stream": False},
    "/v1beta/models/a:generateContent": {"contents": [{"parts": [{"text": "x"}]}]},
}


@pytest.mark.parametrize("path", CHATS)
async def test_every_dialect_reaches_a_model_of_the_hub(path):
    library = FakeLibrary(manifest("a"))
    reply = await ask(library, "POST", path, {"model": "a", **CHATS[path]})
    assert reply.status_code == 200, reply.text
    assert len(library.model.requests) == 1
