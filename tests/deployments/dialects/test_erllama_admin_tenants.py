"""Stored prefixes, pins and sessions of several tenants: an admin manages those of each, and none of
them is in another's way.
"""

import asyncio

import pytest

from cache_store import TokenChain, tenant_root
from deployments.access.tenant import owner_of, salt_of
from deployments.model.client import ModelClient
from erllama.request import GenerationRequest
from tests.support.admin_site import TEXT, URL, site
from tests.support.local_handle import LocalHandle

pytestmark = pytest.mark.anyio

KEYS = ({"key": "ops", "name": "ops", "admin": True}, {"key": "a", "name": "a"}, {"key": "b", "name": "b"}, "plain")
FORK = "/erllama/v1/sessions/old/fork"


def tenants(folder, **more):
    """A site whose client is the admin."""
    return site(folder, headers={"x-api-key": "ops"}, api_keys=KEYS, **more)


async def status(one, method, path, **more):
    reply = await one.http.request(method, path, **more)
    return reply.status_code


async def test_a_prefix_is_computed_under_the_salt_of_the_tenant_that_is_meant(tmp_path):
    async with tenants(tmp_path) as one:
        kept = await one.kept(tenant="a")
        root = tenant_root(one.replicas[0]._model.kv_root, salt_of("a"))
        assert (kept["tenant"], kept["key"]) == ("a", TokenChain(root, list(TEXT.encode())).key_at(900))
        for other in ("ops", "b", "default"):
            assert (await one.kept(tenant=other))["cached_tokens"] == 0
        assert (await one.kept(tenant="a"))["cached_tokens"] >= 899
        said = await one.http.post("/completion", json={"prompt": TEXT + "x"}, headers={"authorization": "Bearer a"})
        assert said.json()["timings"]["cache_n"] == 900  # what its own requests find


async def test_each_tenant_has_a_list_of_its_own_and_the_key_says_which_without_a_name(tmp_path):
    async with tenants(tmp_path) as one:
        keys = {name: (await one.kept(TEXT, tenant=name))["key"] for name in ("ops", "a", "b")}
        assert len(set(keys.values())) == 3
        for query, name in (({}, "ops"), ({"tenant": "a"}, "a"), ({"tenant": "b"}, "b")):
            reply = (await one.http.get(URL, params=query)).json()
            assert (reply["tenant"], [(c["tenant"], c["key"]) for c in reply["data"]]) == (name, [(name, keys[name])])
        assert await one.listed(tenant="default") == []


async def test_what_is_a_tenants_is_not_found_as_anothers(tmp_path):
    async with tenants(tmp_path) as one:
        path = f"{URL}/{(await one.kept(tenant='a'))['key']}"
        calls = [("GET", path), ("DELETE", path), ("POST", f"{path}/pin"), ("GET", f"{path}/export")]
        for method, url in calls:
            for query in ({}, {"tenant": "b"}):
                assert await status(one, method, url, params=query) == 404, (method, url, query)
        for method, url in (calls[0], calls[3], calls[1]):
            assert await status(one, method, url, params={"tenant": "a"}) == 200, (method, url)
        assert await one.listed(tenant="a") == []


async def test_a_file_of_one_tenant_is_refused_for_another(tmp_path):
    async with tenants(tmp_path, n=2) as one, tenants(tmp_path, n=2, store="elsewhere") as other:
        key = (await one.kept(tenant="a"))["key"]
        data = (await one.http.get(f"{URL}/{key}/export", params={"tenant": "a"})).content
        for query in ({"tenant": "b"}, {}):
            refused = await other.http.post(f"{URL}/import", params=query, content=data)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "file")
            assert "tenant" in refused.json()["error"]["message"]
        for name in ("a", "b", "ops"):
            assert await other.listed(tenant=name) == []
        report = (await other.http.post(f"{URL}/import", params={"tenant": "a"}, content=data)).json()
        assert (report["tenant"], report["key"], report["tokens"]) == ("a", key, 900)
        assert (await other.kept(TEXT + "x", tenant="a"))["cached_tokens"] == 900
        assert (await other.kept(TEXT + "x", tenant="b"))["cached_tokens"] == 0


async def test_a_session_is_forked_for_its_tenant_alone(tmp_path):
    async with tenants(tmp_path) as one:
        model = one.replicas[0]._model
        request = GenerationRequest("r", tuple(TEXT.encode()), max_tokens=3, session_id="old", salt=salt_of("a"))
        await asyncio.to_thread(lambda: model.submit(request).result())
        for query in ({}, {"tenant": "b"}):
            refused = await one.http.post(FORK, params=query, json={"new_session_id": "new"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
            assert salt_of("b") not in refused.text
            assert "\\u0000" not in refused.text
        done = await one.http.post(FORK, json={"new_session_id": "new", "tenant": "a"})
        assert (done.status_code, done.json()["tenant"], done.json()["kv_copied"]) == (200, "a", True)
        assert model.transcript("new", salt=salt_of("a")) == model.transcript("old", salt=salt_of("a"))


async def test_the_name_of_a_session_does_not_lead_to_another_salts(tmp_path):
    async with tenants(tmp_path) as one:
        refused = await one.http.post(f"/erllama/v1/sessions/{salt_of('a')}%00old/fork", json={"new_session_id": "n"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "session_id")


# --- pins -----------------------------------------------------------------------------------------


async def pinned_by_requests(one, *keys):
    """Whose requests mark their system text."""
    system = [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}]
    body = {"model": "demo", "max_tokens": 1, "system": system, "messages": [{"role": "user", "content": "hi"}]}
    store = one.replicas[0]._model.store
    for key in keys:
        reply = await one.http.post("/v1/messages", json=body, headers={"x-api-key": key})
        assert reply.status_code == 200, reply.text
        await asyncio.to_thread(lambda: one.replicas[0]._model.live_prefixes().result())  # after the step that asks
    store._pins.make_wanted()  # what a thread of the store does every second
    store.flush(5)


async def pins(one, tenant):
    reply = await one.http.get(f"{URL}/pins", params={"tenant": tenant})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


async def test_a_pin_of_a_request_is_its_tenants(tmp_path):
    async with tenants(tmp_path) as one:
        await pinned_by_requests(one, "a", "b", "plain")
        store = one.replicas[0]._model.store
        assert {pin.owner for pin in store.pins()} == {owner_of("a"), owner_of("b"), ""}
        assert not {"a", "b", salt_of("a"), salt_of("b")} & {pin.owner for pin in store.pins()}
        for name in ("a", "b", "default"):
            assert [(pin["tenant"], pin["owner"]) for pin in await pins(one, name)] == [(name, name)]
        assert await pins(one, "ops") == []


async def test_the_quota_of_one_tenant_is_not_used_up_by_another(tmp_path):
    async with tenants(tmp_path) as free:
        await pinned_by_requests(free, "a")
        [pin] = await pins(free, "a")
    quota = pin["bytes"] * 3 // 2  # one such pin, and no second one
    async with tenants(tmp_path, store="tight", settings={"pin_quota_bytes": quota}) as one:
        await pinned_by_requests(one, "a", "b")
        held = {name: [pin["tiers"] for pin in await pins(one, name)] for name in ("a", "b")}
        assert held == {"a": [["disk"]], "b": [["disk"]]}
        key = (await one.kept(TEXT[::-1], tenant="a"))["key"]
        assert await status(one, "POST", f"{URL}/{key}/pin", params={"tenant": "a"}) == 200
        held = {name: sorted(pin["tiers"] for pin in await pins(one, name)) for name in ("a", "b")}
        assert held == {"a": [[], ["disk"]], "b": [["disk"]]}  # its own older one goes


async def test_pins_of_one_name_are_each_tenants_own(tmp_path):
    async with tenants(tmp_path) as one:
        for name in ("a", "b"):
            key = (await one.kept(tenant=name))["key"]
            pinned = await one.http.post(f"{URL}/{key}/pin", json={"name": "system", "tenant": name})
            assert (pinned.json()["tenant"], pinned.json()["owner"]) == (name, name)
        for query, expected in (({}, 404), ({"tenant": "a"}, 200), ({"tenant": "a"}, 404)):
            assert await status(one, "DELETE", f"{URL}/{key}/pin", params={"name": "system", **query}) == expected
        assert [pin["name"] for pin in await pins(one, "b")] == ["system"]


async def test_a_pin_made_with_its_prefix_has_its_tenant_as_owner(tmp_path):
    async with tenants(tmp_path) as one:
        kept = await one.kept(tenant="b", pin={"ttl_s": 60})
        assert (kept["pin"]["tenant"], kept["pin"]["owner"]) == ("b", "b")
        one.replicas[0]._model.store._pins.make_wanted()
        assert [(pin["owner"], pin["key"]) for pin in await pins(one, "b")] == [("b", kept["key"])]


# --- who is meant, and who may --------------------------------------------------------------------

ROUTES = (
    ("GET", URL, None), ("GET", f"{URL}/pins", None), ("POST", URL, {"prompt": "x" * 99}),
    ("GET", f"{URL}/{'0' * 64}", None), ("DELETE", f"{URL}/{'0' * 64}", None), ("POST", f"{URL}/x/pin", {}),
    ("DELETE", f"{URL}/x/pin", None), ("GET", f"{URL}/x/export", None), ("POST", f"{URL}/import", None),
    ("POST", FORK, {"new_session_id": "x"}),
)  # fmt: skip


async def test_an_unknown_tenant_is_named_beside_those_that_there_are_but_to_admins_only(tmp_path):
    async with tenants(tmp_path) as one:
        for method, path, body in ROUTES:
            unknown = await one.http.request(method, path, params={"tenant": "nobody"}, json=body)
            error = unknown.json()["error"]
            assert (unknown.status_code, error["code"], error["param"]) == (404, "tenant_not_found", "tenant"), path
            assert "'nobody'" in error["message"]
            assert error["message"].endswith("there are: ops, a, b, default")
            for name in ("nobody", "a", "b"):
                refused = await one.http.request(
                    method, path, params={"tenant": name}, json=body, headers={"x-api-key": "a"}
                )
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")


@pytest.mark.parametrize("at", [2, 5, 9])
async def test_a_body_may_name_the_tenant_but_no_other_one_than_the_query(tmp_path, at):
    method, path, body = ROUTES[at]
    async with tenants(tmp_path) as one:
        unknown = await one.http.request(method, path, json=body | {"tenant": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "tenant_not_found")
        both = await one.http.request(method, path, params={"tenant": "a"}, json=body | {"tenant": "b"})
        assert (both.status_code, both.json()["error"]["param"]) == (400, "tenant")
        same = await one.http.request(method, path, params={"tenant": "a"}, json=body | {"tenant": "a"})
        assert same.json().get("error", {}).get("param") != "tenant"


async def test_without_keys_there_is_everybody(tmp_path):
    async with site(tmp_path) as one:
        kept = await one.kept(tenant="anonymous", pin={})
        assert (kept["tenant"], kept["pin"]["owner"]) == ("anonymous", "anonymous")
        assert [card["key"] for card in await one.listed()] == [kept["key"]]
        refused = await one.http.get(URL, params={"tenant": "a"})
        assert refused.json()["error"]["message"] == "There is no tenant 'a'; there are: anonymous"


async def test_an_admin_meets_its_own_models_also_for_a_tenant_that_may_use_none(tmp_path):
    keys = ({"key": "ops", "name": "ops", "admin": True}, {"key": "a", "name": "a", "models": []})
    async with site(tmp_path, headers={"x-api-key": "ops"}, api_keys=keys) as one:
        assert (await one.kept(tenant="a"))["tenant"] == "a"
        own = {"json": {"prompt": "x", "model": "demo"}, "headers": {"authorization": "Bearer a"}}
        assert await status(one, "POST", "/completion", **own) == 404


async def test_the_python_client_has_the_salt_of_all_calls(tmp_path):
    async with site(tmp_path, n=2) as one:
        client = ModelClient.of(one.handle)
        key = (await client.prefill_only(list(TEXT.encode()), session_id="old", salt="s")).finish_key
        for replica in one.replicas:
            await replica.evict()
        for replica in one.replicas:
            await asyncio.to_thread(replica._model.store.rescan)
        assert [prefix.key for prefix in await client.list_cached_prefixes(salt="s")] == [key]
        assert await client.list_cached_prefixes() == ()
        assert await client.fork_session("old", "new", salt="s") is False  # its KV was evicted
        home = next(replica for replica in one.replicas if replica._model.stats().sessions)
        alone = ModelClient.of(LocalHandle(home))
        events = [event async for event in alone.continue_("new", [1], salt="s", response_tokens=2)]
        assert events[-1].stats.prompt_tokens == 901
        await asyncio.gather(home.end_session("new"), home.reset_session("old"))
        assert home._model.stats().sessions == 2
        await asyncio.gather(home.end_session("new", salt="s"), home.reset_session("old", salt="s"))
        assert home._model.stats().sessions == 0
