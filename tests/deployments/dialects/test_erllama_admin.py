"""Our own API over real replicas on the stub backend, without Ray: what operators do with stored
prefixes, and what they are told when it goes wrong.
"""

import asyncio

import pytest

from cache_store import CachedPrefix
from deployments.dialects.erllama_admin.shapes import merged
from deployments.model import prefixes as calls
from deployments.routing.prompt import prompt_of, session_hash
from tests.support.admin_site import TEXT, URL, site
from tests.support.http_fakes import FakeModel, app_of, http_client, served

pytestmark = pytest.mark.anyio

# --- the life of a prefix -------------------------------------------------------------------------


async def test_a_prefix_is_computed_listed_and_evicted(tmp_path):
    async with site(tmp_path) as one:
        kept = await one.kept()
        assert (kept["tokens"], kept["cached_tokens"]) == (900, 0)
        [card] = await one.listed()
        assert card["key"] == kept["key"]
        assert (card["tokens"], card["tiers"], card["pins"], card["text"]) == (900, ["disk"], [], TEXT[:48])
        assert card["bytes"] > 0
        assert (await one.http.get(f"{URL}/{kept['key']}")).json() == card | {"model": "demo"}
        gone = (await one.http.delete(f"{URL}/{kept['key']}")).json()
        assert (gone["deleted"], gone["bytes"] >= card["bytes"]) == (True, True)  # and the logits at its end
        assert await one.listed() == []
        assert (await one.kept())["cached_tokens"] == 0


async def test_lists_have_an_order_and_a_length(tmp_path):
    async with site(tmp_path) as one:
        for n in (300, 900, 600):
            await one.kept(TEXT[-n:])
        await one.kept(TEXT[-300:])
        lengths = {order: [card["tokens"] for card in await one.listed(order=order)] for order in ("tokens", "hits")}
        assert lengths["tokens"] == [900, 600, 300]
        assert lengths["hits"][0] == 300
        assert [card["tokens"] for card in await one.listed(order="bytes", limit=1)] == [900]


async def test_messages_are_kept_as_far_as_every_chat_has_them(tmp_path):
    async with site(tmp_path) as one:
        reply = await one.http.post(
            URL, json={"messages": [{"role": "system", "content": [{"type": "text", "text": TEXT}]}]}
        )
        rendered = f"system: {TEXT}\nuser: "
        assert reply.json()["tokens"] == len(rendered)


async def test_pins_come_and_go(tmp_path):
    async with site(tmp_path, n=2) as one:
        key = (await one.kept())["key"]
        pin = (await one.http.post(f"{URL}/{key}/pin", json={"ttl_s": 60, "name": "system"})).json()
        assert (pin["name"], pin["key"], pin["tokens"], pin["tiers"]) == ("system", key, 900, ["disk"])
        assert pin["replicas"] == {"answered": 2, "failed": []}
        assert [card["pins"] for card in await one.listed()] == [["system"]]
        assert [p["name"] for p in (await one.http.get(f"{URL}/pins")).json()["data"]] == ["system"]
        refused = await one.http.delete(f"{URL}/{key}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "'system'" in refused.json()["error"]["message"]
        assert (await one.http.delete(f"{URL}/{key}/pin")).status_code == 404
        assert (await one.http.delete(f"{URL}/{key}/pin", params={"name": "system"})).status_code == 200
        assert (await one.http.delete(f"{URL}/{key}")).status_code == 200


async def test_a_prefix_is_pinned_as_it_is_computed(tmp_path):
    async with site(tmp_path) as one:
        kept = await one.kept(pin={"ttl_s": 60})
        assert kept["pin"]["name"] == kept["key"]
        one.replicas[0]._model.store.evict_bytes("disk", 1 << 40)
        assert (await one.kept())["cached_tokens"] >= 899


async def test_a_file_carries_a_prefix_to_another_place(tmp_path):
    async with site(tmp_path, n=2) as one, site(tmp_path, n=2, store="elsewhere") as other:
        key = (await one.kept())["key"]
        file = await one.http.get(f"{URL}/{key}/export")
        assert (file.status_code, file.headers["content-type"]) == (200, "application/octet-stream")
        report = await other.http.post(f"{URL}/import", content=file.content)
        assert report.json()["key"] == key
        assert (await other.kept(TEXT + "x"))["cached_tokens"] == 900


async def test_a_file_is_imported_in_whatever_pieces_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "_BATCH_BYTES", 3000)
    async with site(tmp_path) as one, site(tmp_path, n=3, store="elsewhere") as other:
        data = (await one.http.get(f"{URL}/{(await one.kept())['key']}/export")).content

        async def pieces():
            for at in range(0, len(data), 777):
                yield data[at : at + 777]

        assert (await other.http.post(f"{URL}/import", content=pieces())).json()["tokens"] == 900
        assert other.handle.n_calls > 3


@pytest.mark.parametrize("damage", ["cut", "flip", "nonsense", "empty"])
async def test_a_bad_file_is_refused_by_name(tmp_path, damage):
    async with site(tmp_path) as one, site(tmp_path, store="elsewhere") as other:
        data = bytearray((await one.http.get(f"{URL}/{(await one.kept())['key']}/export")).content)
        data[len(data) // 2] ^= damage == "flip"
        bad = {"cut": data[:-100], "flip": data, "nonsense": b"nonsense" * 9, "empty": b""}[damage]
        reply = await other.http.post(f"{URL}/import", content=bytes(bad))
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "file")
        assert "cannot be imported" in error["message"]


async def test_a_session_is_forked_where_it_is(tmp_path):
    async with site(tmp_path, n=2) as one:
        model = one.replicas[1]._model
        await asyncio.to_thread(lambda: model.infer(list(TEXT.encode()), session_id="old", response_tokens=3).result())
        reply = await one.http.post("/erllama/v1/sessions/old/fork", json={"new_session_id": "new"})
        assert reply.json() == {
            "object": "session",
            "id": "new",
            "model": "demo",
            "tenant": "anonymous",
            "kv_copied": True,
        }
        assert model.transcript("new") == model.transcript("old")
        again = await one.http.post("/erllama/v1/sessions/old/fork", json={"new_session_id": "new"})
        assert again.status_code in (400, 404)
        unknown = await one.http.post("/erllama/v1/sessions/nobody/fork", json={"new_session_id": "x"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "session_not_found")


async def test_the_state_of_a_model_is_that_of_each_replica(tmp_path):
    async with site(tmp_path, n=2) as one:
        state = (await one.http.get("/erllama/v1/models/demo/state")).json()
        assert [replica["status"] for replica in state["replicas"]] == ["idle", "idle"]
        assert state["replicas"][0]["store"]["tiers"][0]["label"] == "disk"
        assert state["replicas"][0]["stats"]["n_parallel"] == 3


# --- replicas that hang ---------------------------------------------------------------------------


async def test_a_replica_that_hangs_is_reported_and_waited_for_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "_READ_S", 0.3)
    async with site(tmp_path, hangs=True) as one:
        key = (await one.kept())["key"]
        reply = (await one.http.get(URL)).json()
        assert [card["key"] for card in reply["data"]] == [key]
        assert reply["replicas"]["answered"] == 1
        assert "did not answer within 0.3 s" in reply["replicas"]["failed"][0]["error"]["message"]
        assert [result.cancelled for result in one.handle.results] == [False, True]
        state = (await one.http.get("/erllama/v1/models/demo/state")).json()["replicas"]
        assert ["stats" in replica for replica in state] == [True, False]


async def test_no_replica_is_an_answer_too(tmp_path):
    async with site(tmp_path, n=0) as one:
        reply = await one.http.get(URL)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_stopped")


def test_the_parts_of_one_file_have_one_affinity():
    for method in ("export_object", "import_part"):
        prompt = prompt_of("answer", ("ref", method, ("file", 1), {}), 32)
        assert (prompt.affinity, prompt.request) == (session_hash("file"), "ref")
    assert prompt_of("answer", ("ref", "tokenize", ("text",), {}), 32).affinity is None


def test_what_replicas_know_is_one_list():
    def prefix(key, tiers, **more):
        return CachedPrefix("r", key, 10, tiers, 100, **{"hits": 0, **more})

    told = [
        [prefix("a", ("ram_file",), hits=3), prefix("b", ("disk",), last_used_s=2.0)],
        [prefix("a", ("disk",), hits=1, pins=("p",), last_used_s=1.0)],
    ]
    assert [(p.key, p.tiers, p.hits, p.pins) for p in merged(told, 5, "hits")] == [
        ("a", ("ram_file", "disk"), 3, ("p",)),
        ("b", ("disk",), 0, ()),
    ]
    assert [p.key for p in merged(told, 1, "recent")] == ["b"]


# --- who, and what is refused ---------------------------------------------------------------------


async def test_keys_are_needed_where_some_are_configured(tmp_path):
    keys = ("plain", {"name": "ops", "key": "secret", "admin": True, "salt": ""})
    async with site(tmp_path, api_keys=keys) as one:
        for method, path in (
            ("GET", URL), ("POST", URL), ("GET", f"{URL}/x"), ("DELETE", f"{URL}/x"), ("POST", f"{URL}/x/pin"),
            ("GET", f"{URL}/x/export"), ("POST", f"{URL}/import"), ("POST", "/erllama/v1/sessions/x/fork"),
            ("GET", "/erllama/v1/models/demo/state"),
        ):  # fmt: skip
            assert (await one.http.request(method, path)).status_code == 401
            assert (await one.http.request(method, path, headers={"x-api-key": "plain"})).status_code == 403
        for header in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert (await one.http.get(URL, headers=header)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("GET", f"{URL}?limit=0", None, 400, "limit"),
        ("GET", f"{URL}?limit=x", None, 400, "limit"),
        ("GET", f"{URL}?limit=99999999999999999999999999", None, 400, "limit"),
        ("GET", f"{URL}?order=name", None, 400, "order"),
        ("GET", f"{URL}?model=other", None, 404, "model"),
        ("GET", f"{URL}/{'0' * 64}", None, 404, "key"),
        ("GET", f"{URL}/nonsense/export", None, 404, "key"),
        ("DELETE", f"{URL}/nonsense", None, 404, "key"),
        ("POST", f"{URL}/{'0' * 64}/pin", {}, 404, "key"),
        ("POST", f"{URL}/{'0' * 64}/pin", {"ttl_s": 0}, 400, "ttl_s"),
        ("POST", f"{URL}/{'0' * 64}/pin", {"ttl_s": 1e300}, 400, "ttl_s"),
        ("POST", f"{URL}/{'0' * 64}/pin", {"name": "x" * 999}, 400, "name"),
        ("POST", f"{URL}/{'0' * 64}/pin", {"nam": "x"}, 400, "nam"),
        ("POST", URL, {}, 400, None),
        ("POST", URL, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, 400, None),
        ("POST", URL, {"prompt": [1, 2, 999]}, 400, "prompt"),
        ("POST", URL, {"prompt": "x" * 5000}, 400, "prompt"),
        ("POST", URL, {"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages[0].role"),
        ("POST", URL, {"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, None),
        ("POST", "/erllama/v1/sessions/x/fork", {}, 400, "new_session_id"),
        ("POST", "/erllama/v1/nothing", {}, 404, None),
    ],
)  # fmt: skip
async def test_bad_requests_are_told_what_is_wrong(tmp_path, method, path, body, status, param):
    async with site(tmp_path) as one:
        reply = await one.http.request(method, path, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text


async def test_a_model_that_keeps_no_prefixes_says_so():
    async with http_client(app_of(served(FakeModel()))) as http:
        reply = await http.get(URL)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "not_supported")


async def test_a_prefix_that_others_begin_with_is_not_deleted(tmp_path):
    async with site(tmp_path) as one:
        inner = await one.kept(TEXT[:512])
        await one.kept(TEXT)
        reply = await one.http.delete(f"{URL}/{inner['key']}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
