"""What the server tells of the last requests, over real replicas on the stub backend: to an admin of
all tenants, to everybody else of the own.
"""

import asyncio

import pytest

from tests.support.admin_site import TEXT, site
from tests.support.http_fakes import FakeModel, app_of, http_client, served

pytestmark = pytest.mark.anyio

URL = "/erllama/v1/requests"
KEYS = ({"key": "ops", "name": "ops", "admin": True}, {"key": "a", "name": "a"}, {"key": "b", "name": "b"})
DAY = "You are an agent.\nToday's date: 2026-11-{}\n" + TEXT


async def chat(one, request_id, *contents, system=TEXT, key=None):
    """A chat whose roles alternate; the answer's text."""
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    headers = {"x-request-id": request_id} | ({"authorization": f"Bearer {key}"} if key else {})
    body = {"messages": [{"role": "system", "content": system}, *roles], "max_tokens": 8, "temperature": 0}
    reply = await one.http.post("/v1/chat/completions", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-request-id"] == request_id
    return reply.json()["choices"][0]["message"]["content"]


async def why(one, request_id, key=None, **query):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    reply = await one.http.get(f"{URL}/{request_id}/why", params=query, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_conversation_and_what_breaks_it(tmp_path):
    async with site(tmp_path) as one:
        said = await chat(one, "first", "Hello", system=DAY.format(28))
        await chat(one, "second", "Hello", said, "And now?", system=DAY.format(28))
        await chat(one, "next/day", "Hello", said, "And now?", system=DAY.format(29))
        told = {name: await why(one, name) for name in ("first", "second", "next/day")}
        assert [card["cause"] for card in told.values()] == ["first_seen", "extended", "noise:date"]
        first, second, third = told.values()
        assert (first["cached_tokens"], first["position"]) == (0, 0)
        assert second["stored"]["text"] == ""
        assert second["cached_tokens"] == second["position"] - 1  # the last token of a reply is not computed
        assert third["before"]["text"].endswith("You are an agent.\nToday's date: 2026-11-2")
        assert (third["prompt"]["text"][:3], third["stored"]["text"][:3]) == ("9\n" + TEXT[0], "8\n" + TEXT[0])
        assert third["computed_tokens"] == third["prompt_tokens"] - third["cached_tokens"]
        assert third["prompt"]["tokens"] == list(third["prompt"]["text"].encode())
        assert third["cost_ms"] > 0


async def test_the_list_has_the_newest_first_and_no_text(tmp_path):
    async with site(tmp_path) as one:
        for name in ("r1", "r2", "r3"):
            await chat(one, name, f"Hello {name}")
        listed = (await one.http.get(URL)).json()
        assert [card["id"] for card in listed["data"]] == ["r3", "r2", "r1"]
        assert listed["replicas"] == {"answered": 1, "failed": []}
        assert all({"cause", "cached_share", "cost_ms"} <= card.keys() for card in listed["data"])
        assert not any({"before", "prompt", "stored"} & card.keys() for card in listed["data"])
        assert [card["id"] for card in (await one.http.get(URL, params={"limit": 1})).json()["data"]] == ["r3"]
        assert len((await one.http.get(URL, params={"model": "demo"})).json()["data"]) == 3
        assert (await one.http.get(URL, params={"model": "other"})).status_code == 404
        refused = await one.http.get(URL, params={"limit": "many"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


async def test_what_was_evicted_is_told_with_what_it_cost(tmp_path):
    async with site(tmp_path) as one:
        said = await chat(one, "first", "Hello")
        model = one.replicas[0]._model
        await one.replicas[0].evict()
        for prefix in model.list_cached_prefixes():
            assert model.evict_prefix(prefix.key) > 0
        await chat(one, "second", "Hello", said, "And now?")
        card = await why(one, "second")
        assert (card["cause"], card["cached_tokens"], card["stored"]["text"]) == ("evicted", 0, "")
        assert card["position"] > len(TEXT)


async def test_a_choice_and_an_id_of_the_servers_own_are_found_by_what_the_client_saw(tmp_path):
    async with site(tmp_path) as one:
        body = {"prompt": TEXT, "n": 2, "max_tokens": 2}
        reply = await one.http.post("/v1/completions", json=body)
        name = reply.headers["x-request-id"]
        assert (await why(one, name))["id"] == name
        assert {card["id"] for card in (await one.http.get(URL)).json()["data"]} == {name}


async def test_tenants_see_their_own_and_an_admin_all(tmp_path):
    async with site(tmp_path, api_keys=KEYS) as one:
        for key in ("a", "b"):
            await chat(one, f"of-{key}", "Hello", key=key)

        async def ids(key, **query):
            reply = await one.http.get(URL, headers={"authorization": f"Bearer {key}"}, params=query)
            assert reply.status_code == 200, reply.text
            return [(card["id"], card["tenant"]) for card in reply.json()["data"]]

        assert await ids("a") == [("of-a", "a")]
        assert await ids("ops") == [("of-b", "b"), ("of-a", "a")]
        assert await ids("ops", tenant="a") == [("of-a", "a")]
        assert (await why(one, "of-a", key="a"))["cause"] == "first_seen"
        assert (await why(one, "of-b", key="ops"))[
            "cause"
        ] == "first_seen"  # the same text of another tenant is no prefix
        for key, path, query, status in [
            ("a", "of-b/why", {}, 404),
            ("a", "of-b/why", {"tenant": "b"}, 403),
            ("ops", "of-b/why", {"tenant": "a"}, 404),
            ("ops", "never/why", {}, 404),
            ("none", "of-a/why", {}, 401),
        ]:
            reply = await one.http.get(f"{URL}/{path}", params=query, headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == status, (key, path, query)
            assert TEXT[:20] not in reply.text


async def test_another_replica_that_had_more_of_it_is_the_cause(tmp_path):
    async with site(tmp_path, n=2) as one:
        first, second = one.replicas
        one.handle.replicas = (first,)
        said = await chat(one, "here", "Hello")
        await asyncio.to_thread(first._model.requests)
        for prefix in first._model.list_cached_prefixes():
            first._model.evict_prefix(prefix.key)
        one.handle.replicas = (second,)
        await chat(one, "there", "Hello", said, "And now?")
        assert (await why(one, "there"))["cause"] == "first_seen"  # as far as that replica knows
        one.handle.replicas = (first, second)
        card = await why(one, "there")
        assert card["cause"] == "other_replica"
        assert "768 tokens" in card["detail"]
        assert (await why(one, "here"))["cause"] == "first_seen"  # what came later is no cause


async def test_a_model_that_keeps_no_requests_and_replicas_that_hang(tmp_path, monkeypatch):
    async with http_client(app_of(served(FakeModel()))) as http:
        assert (await http.get(URL)).json()["data"] == []
        assert (await http.get(f"{URL}/x/why")).status_code == 404
    monkeypatch.setattr("deployments.model.prefixes._READ_S", 0.2)
    async with site(tmp_path, hangs=True) as one:
        await chat(one, "r1", "Hello")
        listed = (await one.http.get(URL)).json()
        assert ([card["id"] for card in listed["data"]], listed["replicas"]["answered"]) == (["r1"], 1)
        assert (await why(one, "r1"))["cause"] == "first_seen"
