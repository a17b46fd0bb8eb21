"""The hub over our own API."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from erllama.hub.errors import PullFailed
from erllama.hub.events import PullEvent
from tests.support.http_fakes import app_of, http_client
from tests.support.hub_fakes import DIGEST, LOADED, FakeLibrary, manifest

pytestmark = pytest.mark.anyio

HUB = "/erllama/v1/hub"
KEYS = (
    {"key": "ops", "admin": True},
    {"key": "fetch", "name": "fetch", "pull": True},
    {"key": "guest", "name": "guest"},
)
PROGRESS = PullEvent("pulling ab", DIGEST, 1000, 250, 50.0, 15.0)


async def ask(library, method, path=HUB, body=None, *, key=None, **options):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with http_client(app_of(library=library, **options)) as client:
        return await client.request(method, path, json=body, headers=headers)


def events(reply):
    return [
        (name.removeprefix("event: ") if name.startswith("event: ") else "", json.loads(data.removeprefix("data: ")))
        for frame in reply.text.strip().split("\n\n")
        for name, _, data in [frame.rpartition("\n")]
    ]


async def test_all_that_is_known_is_told():
    library = FakeLibrary(manifest("a", parameters={"seed": 1}), manifest("b"))
    library.standings = {"a": LOADED}
    a, b = (await ask(library, "GET")).json()["data"]
    assert a["standing"] == asdict(LOADED)
    assert (b["standing"]["phase"], b["standing"]["reason"]) == ("unloaded", "")
    assert (a["id"], a["size"], a["parameters"], a["architecture"]) == ("a", 1234, {"seed": 1}, "qwen2")
    assert a["digest"] == library.manifests["a"].digest


async def test_a_pull_streams_bytes_rate_and_time_left():
    library = FakeLibrary()
    library.pulled = [PullEvent("pulling manifest"), PROGRESS, PullEvent("success")]
    reply = await ask(library, "POST", f"{HUB}/pull", {"source": "hf://me/tiny", "name": "tiny"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply)
    assert [name for name, _ in told] == ["", "", ""]
    assert told[1][1] == asdict(PROGRESS)
    assert told[-1][1]["status"] == "success"
    assert library.log == [("pull", "hf://me/tiny", "tiny")]
    assert library.n_pulls_closed == 1


async def test_a_pull_without_a_stream_answers_when_it_has_ended():
    library = FakeLibrary()
    reply = await ask(library, "POST", f"{HUB}/pull", {"source": "x", "stream": False})
    assert reply.json() == {"object": "hub.pull", "status": "success"}
    assert library.n_pulls_closed == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_pull_that_fails_at_once_has_a_status(stream):
    library = FakeLibrary()
    library.pulled = [PullFailed("gone")]
    reply = await ask(library, "POST", f"{HUB}/pull", {"source": "x", "stream": stream})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "pull_failed")


async def test_a_pull_that_fails_later_ends_with_an_error_event():
    library = FakeLibrary()
    library.pulled = [PROGRESS, PullFailed("gone")]
    name, last = events(await ask(library, "POST", f"{HUB}/pull", {"source": "x"}))[-1]
    assert (name, last["error"]["code"], last["error"]["message"]) == ("error", "pull_failed", "gone")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "source"),
        ({"source": ""}, "source"),
        ({"source": "x", "name": ""}, "name"),
        ({"source": "x", "to": "y"}, "to"),
    ],
)
async def test_a_body_that_is_wrong_is_a_400_that_names_the_field(body, param):
    reply = await ask(FakeLibrary(), "POST", f"{HUB}/pull", body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_a_model_is_deleted_and_one_in_use_by_force_alone():
    library = FakeLibrary(manifest("me/tiny:v1"), manifest("b"))
    library.in_use = {"b"}
    assert (await ask(library, "DELETE", f"{HUB}/me/tiny:v1")).json()["deleted"] is True
    kept = await ask(library, "DELETE", f"{HUB}/b")
    assert (kept.status_code, kept.json()["error"]["code"]) == (409, "model_in_use")
    assert (await ask(library, "DELETE", f"{HUB}/b?force=true")).status_code == 200
    assert library.manifests == {}
    assert (await ask(library, "DELETE", f"{HUB}/b")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "who"),
    [
        ("GET", HUB, None, {"ops"}),
        ("DELETE", f"{HUB}/a", None, {"ops"}),
        ("POST", f"{HUB}/pull", {"source": "x", "stream": False}, {"ops", "fetch"}),
    ],
)
async def test_who_may(method, path, body, who):
    for key in ("ops", "fetch", "guest"):
        reply = await ask(FakeLibrary(manifest("a")), method, path, body, key=key, api_keys=KEYS)
        assert reply.status_code == (200 if key in who else 403), key
