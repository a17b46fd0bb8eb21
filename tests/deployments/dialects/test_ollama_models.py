"""Ollama's routes for models, over a hub in memory: the official client, bodies by hand, and errors."""

from __future__ import annotations

import json
from dataclasses import replace

import ollama
import pytest

from erllama.errors import InvalidParameter
from erllama.events import FinishReason
from erllama.hub.errors import PullFailed
from erllama.hub.events import PullEvent
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, ollama_client, served
from tests.support.hub_fakes import DIGEST, LOADED, FakeLibrary, manifest

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
KEYS = (
    {"key": "ops", "admin": True},
    {"key": "fetch", "name": "fetch", "pull": True},
    {"key": "guest", "name": "guest"},
)
PULL = [
    PullEvent("pulling manifest"),
    PullEvent("pulling abababababab", DIGEST, 1000, 250, 50.0, 15.0),
    PullEvent("verifying sha256 digest", DIGEST, 1000),
    PullEvent("writing manifest"),
    PullEvent("success"),
]


def site(library=None, *configured, **options):
    return app_of(*configured, library=library or FakeLibrary(manifest()), **options)


async def post(library, path, body, *, method="POST", key=None, **options):
    async with http_client(site(library, **options)) as client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await client.request(method, path, json=body, headers=headers)


def lines(reply):
    return [json.loads(line) for line in reply.text.splitlines()]


# --- lists --------------------------------------------------------------------------------------------


async def test_the_client_lists_models_of_the_hub_beside_configured_ones():
    library = FakeLibrary(manifest(), manifest("me/other"))
    async with ollama_client(site(library, served(FakeModel()))) as client:
        demo, other, tiny = (await client.list()).models
    assert (demo.model, other.model, tiny.model) == ("demo:latest", "me/other:latest", "tiny:v1")
    assert (tiny.size, tiny.digest) == (1234, library.manifests["tiny:v1"].digest.removeprefix("sha256:"))
    assert tiny.modified_at is not None
    assert tiny.modified_at.isoformat() == "2026-11-28T01:02:03+00:00"
    assert tiny.details is not None
    assert (tiny.details.family, tiny.details.parameter_size, tiny.details.quantization_level) == (
        "qwen2",
        "494.03M",
        "Q4_K_M",
    )


async def test_ps_has_what_is_in_memory_with_its_place_and_its_end():
    library = FakeLibrary(manifest("a"), manifest("b"), manifest("c"))
    library.standings = {"a": LOADED, "c": replace(LOADED, expires_at=None)}
    async with ollama_client(site(library)) as client:
        first, second = (await client.ps()).models
    assert (first.model, first.size, first.size_vram, first.context_length) == ("a:latest", 3_000_000, 1_000_000, 2048)
    assert (first.expires_at.isoformat(), second.expires_at.year) == ("2026-11-28T01:07:03+00:00", 2300)
    told = (await post(library, "/api/ps", None, method="GET")).json()["models"]
    assert [(model["name"], model["node"]) for model in told] == [("a:latest", "n1"), ("c:latest", "n1")]


# --- show ---------------------------------------------------------------------------------------------


async def test_show_tells_what_manifest_and_header_say():
    library = FakeLibrary(
        manifest(system="Be brief.", parameters={"temperature": 0.5, "stop": ["<a>", "b c"]}), prompts=FakePrompts(None)
    )
    library.header = {"qwen2.block_count": 24, "general.name": "Tiny", "tokenizer.ggml.tokens": ["a"], "split.no": 1}
    async with ollama_client(site(library)) as client:
        shown = await client.show("TINY:v1")
    assert shown.parameters.splitlines() == [
        f"{'temperature':<30} 0.5",
        f'{"stop":<30} "<a>"',
        f'{"stop":<30} "b c"',
    ]
    assert shown.template == "{{ messages }}"  # the file's own
    assert shown.modelfile.splitlines() == [
        "FROM tiny:v1",
        'SYSTEM """Be brief."""',
        "PARAMETER temperature 0.5",
        'PARAMETER stop "<a>"',
        'PARAMETER stop "b c"',
    ]
    assert shown.modelinfo == {
        "qwen2.block_count": 24,
        "tokenizer.ggml.tokens": [],
        "general.architecture": "qwen2",
        "general.parameter_count": 494_032_768,
        "qwen2.context_length": 32768,
    }
    assert "completion" in shown.capabilities
    verbose = (await post(library, "/api/show", {"name": "tiny:v1", "verbose": True})).json()
    assert verbose["model_info"]["tokenizer.ggml.tokens"] == ["a"]
    assert verbose["system"] == "Be brief."


async def test_the_modelfile_of_show_makes_the_same_model():
    library = FakeLibrary(manifest(system='Say "x".\nTwice.', template="{{ m }}\n", parameters={"stop": ["a", ' "b']}))
    shown = (await post(library, "/api/show", {"model": "tiny:v1"})).json()
    reply = await post(library, "/api/create", {"model": "again", "modelfile": shown["modelfile"], "stream": False})
    assert reply.json() == {"status": "success"}
    first, again = library.manifests["tiny:v1"], library.manifests["again"]
    assert (again.system, again.template, again.parameters) == (first.system, first.template, first.parameters)


async def test_where_a_file_came_from_is_told_only_of_places_outside():
    for source, told in (("/home/me/x.gguf", "tiny:v1"), ("file:///x.gguf", "tiny:v1"), ("https://a/b", "https://a/b")):
        reply = await post(FakeLibrary(manifest(source=source)), "/api/show", {"model": "tiny:v1"})
        assert reply.json()["modelfile"] == f"FROM {told}\n"


# --- pull ---------------------------------------------------------------------------------------------


async def test_the_client_sees_a_pull_in_ollamas_words_and_order():
    library = FakeLibrary()
    library.pulled = list(PULL)
    async with ollama_client(site(library)) as client:
        parts = [part async for part in await client.pull("hf.co/me/tiny", insecure=True, stream=True)]
        whole = await client.pull("hf.co/me/tiny")
    assert [part.status for part in parts] == [event.status for event in PULL]
    assert [(part.digest, part.total, part.completed) for part in parts[:3]] == [
        (None, None, None),
        (DIGEST, 1000, 250),
        (DIGEST, 1000, 0),
    ]
    assert whole.status == "success"
    assert library.log == [("pull", "hf.co/me/tiny", None)] * 2
    assert library.n_pulls_closed == 2


@pytest.mark.parametrize("body", [{"model": "x"}, {"name": "x"}, {"model": "x", "insecure": True, "keep_alive": "5m"}])
async def test_a_pull_takes_the_older_name_and_what_it_does_not_need(body):
    reply = await post(FakeLibrary(), "/api/pull", body)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
    assert lines(reply) == [{"status": "pulling manifest"}, {"status": "success"}]


@pytest.mark.parametrize("first", [True, False])
async def test_a_pull_that_fails_has_a_status_or_a_line(first):
    library = FakeLibrary()
    library.pulled = [*([] if first else PULL[:2]), PullFailed("the source is gone")]
    reply = await post(library, "/api/pull", {"model": "x"})
    if first:
        assert (reply.status_code, reply.json()) == (502, {"error": "the source is gone"})
    else:
        assert (reply.status_code, lines(reply)[-1]) == (200, {"error": "the source is gone"})
    whole = await post(library, "/api/pull", {"model": "x", "stream": False})
    assert (whole.status_code, whole.json()) == (502, {"error": "the source is gone"})


async def test_the_client_raises_what_a_pull_says_in_a_line():
    library = FakeLibrary()
    library.pulled = [*PULL[:2], PullFailed("the source is gone")]
    async with ollama_client(site(library)) as client:
        with pytest.raises(ollama.ResponseError, match="the source is gone"):
            [part async for part in await client.pull("x", stream=True)]


# --- create, copy, delete -----------------------------------------------------------------------------


async def test_the_client_creates_copies_and_deletes():
    library = FakeLibrary(manifest(parameters={"seed": 1}))
    async with ollama_client(site(library)) as client:
        made = [
            part.status
            async for part in await client.create(
                "pirate", from_="tiny:v1", system="Arr.", template="{{ m }}", parameters={"top_k": 3}, stream=True
            )
        ]
        assert made == ["using existing layer", "writing manifest", "success"]
        assert (await client.copy("pirate", "me/other")).status == "success"
        assert (await client.delete("pirate")).status == "success"
        with pytest.raises(ollama.ResponseError) as gone:
            await client.delete("pirate")
    assert gone.value.status_code == 404
    other = library.manifests["me/other"]
    assert (other.system, other.template, other.parameters) == ("Arr.", "{{ m }}", {"seed": 1, "top_k": 3})
    assert "pirate" not in library.manifests


async def test_copy_and_delete_answer_with_nothing():
    library = FakeLibrary(manifest())
    copied = await post(library, "/api/copy", {"source": "tiny:v1", "destination": "b"})
    deleted = await post(library, "/api/delete", {"name": "b"}, method="DELETE")
    assert [(reply.status_code, reply.content) for reply in (copied, deleted)] == [(200, b"")] * 2


async def test_a_configured_model_may_be_the_base_under_the_name_that_tags_has():
    library = FakeLibrary()
    app = site(library, served(FakeModel(), aliases=("nick", "dem*")))
    bases = []
    library.create = lambda name, base, **rest: _noted(bases, base)
    async with http_client(app) as client:
        for base in ("demo", "demo:latest", "nick"):
            reply = await client.post("/api/create", json={"model": "x", "from": base, "stream": False})
            assert reply.status_code == 200, reply.text
        nobody = await client.post("/api/create", json={"model": "x", "from": "demo:v2"})
    assert bases == ["demo"] * 3
    assert (nobody.status_code, nobody.json()["error"]) == (404, "model 'demo:v2' not found")


async def _noted(log, what):
    log.append(what)


MODELFILE = '''# a comment
FROM tiny:v1

SYSTEM """You are
a pirate."""
template "{{ messages }}"
PARAMETER temperature 0.5
PARAMETER stop <end>
PARAMETER stop "two words"
PARAMETER num_ctx 8192
'''


async def test_an_older_client_says_it_with_a_modelfile():
    library = FakeLibrary(manifest())
    reply = await post(library, "/api/create", {"name": "x", "modelfile": MODELFILE})
    assert lines(reply)[-1] == {"status": "success"}
    made = library.manifests["x"]
    assert (made.system, made.template) == ("You are\na pirate.", "{{ messages }}")
    assert made.parameters == {"temperature": 0.5, "stop": ["<end>", "two words"], "num_ctx": 8192}


FROM = {"model": "x", "from": "tiny:v1"}
IMPOSSIBLE = [
    ({"model": "x"}, "from"),
    ({"from": "tiny:v1"}, "model"),
    ({**FROM, "files": {"a.gguf": DIGEST}}, "files"),
    ({**FROM, "adapters": {"a.gguf": DIGEST}}, "adapters"),
    ({**FROM, "messages": HI}, "messages"),
    ({**FROM, "license": "MIT"}, "license"),
    ({**FROM, "quantize": "q4_K_M"}, "quantize"),
    ({**FROM, "template": "{{ .System }} {{ .Prompt }}"}, "Jinja"),
    ({**FROM, "template": "{{- $x := 1 }}"}, "Jinja"),
    ({**FROM, "template": 3}, "template"),
    ({**FROM, "template": "/etc/passwd"}, "template"),
    ({**FROM, "template": "{% for %}"}, "template"),
    ({"model": "x", "modelfile": "FROM tiny:v1\nTEMPLATE /etc/passwd"}, "template"),
    ({**FROM, "system": ["x"]}, "system"),
    ({**FROM, "parameters": [1]}, "parameters"),
    ({**FROM, "parameters": {"temperature": "hot"}}, "parameters.temperature"),
    ({**FROM, "parameters": {"temperature": -1}}, "parameters.temperature"),
    ({**FROM, "parameters": {"repeat_penalty": -1}}, "parameters.repeat_penalty"),
    ({**FROM, "parameters": {"num_ctx": "much"}}, "parameters.num_ctx"),
    ({**FROM, "parameters": {"stop": [1]}}, "parameters.stop"),
    ({"model": "x", "modelfile": "ADAPTER ./lora.gguf"}, "ADAPTER"),
    ({"model": "x", "modelfile": "FROM tiny:v1\nMESSAGE user hi"}, "MESSAGE"),
    ({"model": "x", "modelfile": "FROM tiny:v1\nLICENSE MIT"}, "LICENSE"),
    ({"model": "x", "modelfile": "FROM tiny:v1\nnonsense"}, "nonsense"),
    ({"model": "x", "modelfile": 'SYSTEM """no end'}, '"""'),
    ({"model": "x", "modelfile": 'FROM tiny:v1\nTEMPLATE """{{ .Prompt }}"""'}, "Jinja"),
    ({"model": "x", "modelfile": "FROM tiny:v1\nPARAMETER temperature hot"}, "parameters.temperature"),
    ({"model": "x", "modelfile": "PARAMETER temperature 1"}, "from"),
]


@pytest.mark.parametrize(("body", "named"), IMPOSSIBLE)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_create_cannot_do_is_a_400_that_names_it(body, named, stream):
    library = FakeLibrary(manifest())
    reply = await post(library, "/api/create", {**body, "stream": stream})
    assert (reply.status_code, set(reply.json())) == (400, {"error"}), reply.text
    assert named in reply.json()["error"]
    assert list(library.manifests) == ["tiny:v1"]


@pytest.mark.parametrize("empty", [{"files": {}}, {"messages": []}, {"license": ""}, {"adapters": None}])
async def test_fields_that_say_nothing_are_no_fault(empty):
    assert (await post(FakeLibrary(manifest()), "/api/create", {**FROM, **empty})).status_code == 200


async def test_parameters_that_only_this_server_cannot_do_are_kept():
    library = FakeLibrary(manifest())
    parameters = {"mirostat": 2, "num_gpu": 9, "num_keep": 4}
    reply = await post(library, "/api/create", {**FROM, "parameters": parameters})
    assert lines(reply)[-1] == {"status": "success"}
    assert library.manifests["x"].parameters == parameters


async def test_a_create_that_fails_late_says_so_in_a_line():
    library = FakeLibrary(manifest())

    async def create(*_, **__):
        raise InvalidParameter("no room", param="model")

    library.create = create
    assert lines(await post(library, "/api/create", FROM))[-1] == {"error": "no room"}
    whole = await post(library, "/api/create", {**FROM, "stream": False})
    assert (whole.status_code, whole.json()) == (400, {"error": "no room"})


async def test_a_model_in_use_is_not_deleted():
    library = FakeLibrary(manifest())
    library.in_use = {"tiny:v1"}
    reply = await post(library, "/api/delete", {"model": "tiny:v1"}, method="DELETE")
    assert reply.status_code == 409
    assert "in use" in reply.json()["error"]
    assert "tiny:v1" in library.manifests


# --- names that are not there, keys, what no hub does ---------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/chat", {"model": "tiny", "messages": HI}),
        ("POST", "/api/generate", {"model": "tiny", "prompt": "x"}),
        ("POST", "/api/embed", {"model": "tiny", "input": "x"}),
        ("POST", "/api/show", {"model": "tiny"}),
        ("POST", "/api/create", {"model": "x", "from": "tiny"}),
        ("POST", "/api/copy", {"source": "tiny", "destination": "x"}),
        ("DELETE", "/api/delete", {"model": "tiny"}),
    ],
)
async def test_a_name_that_is_not_there_is_a_404_with_near_names(method, path, body):
    reply = await post(FakeLibrary(manifest()), path, body, method=method)
    assert (reply.status_code, set(reply.json())) == (404, {"error"})
    assert "'tiny'" in reply.json()["error"]
    assert "did you mean tiny:v1?" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/pull", {"model": "a b"}),
        ("POST", "/api/copy", {"source": "tiny:v1", "destination": "a//b/c/d"}),
        ("POST", "/api/copy", {"source": "tiny:v1"}),
        ("DELETE", "/api/delete", {"model": "a b"}),
        ("DELETE", "/api/delete", {}),
        ("POST", "/api/show", {"model": "a b"}),
    ],
)
async def test_what_is_no_name_is_a_400(method, path, body):
    library = FakeLibrary(manifest())
    if path == "/api/pull":
        library.pulled = [InvalidParameter("model name 'a b' is none", param="model")]
    reply = await post(library, path, body, method=method)
    assert (reply.status_code, set(reply.json())) == (400, {"error"}), reply.text


WRITES = [
    ("POST", "/api/pull", {"model": "x", "stream": False}),
    ("POST", "/api/create", {**FROM, "stream": False}),
    ("POST", "/api/copy", {"source": "tiny:v1", "destination": "b"}),
    ("DELETE", "/api/delete", {"model": "tiny:v1"}),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
async def test_who_may_change_models(method, path, body):
    allowed = {"guest": 403, "ops": 200, "fetch": 200 if path == "/api/pull" else 403}
    for key, status in allowed.items():
        library = FakeLibrary(manifest())
        reply = await post(library, path, body, method=method, key=key, api_keys=KEYS)
        assert (reply.status_code, key) == (status, key), reply.text
        if status == 403:
            assert set(reply.json()) == {"error"}
            assert library.log == []
    assert (await post(FakeLibrary(manifest()), path, body, method=method, api_keys=KEYS)).status_code == 401


async def test_to_ask_for_a_model_fetches_none():
    """`ollama run` asks `show`, and pulls on a 404; a request that generates may fetch."""
    library = FakeLibrary(manifest())
    shown = await post(library, "/api/show", {"model": "new"}, key="fetch", api_keys=KEYS)
    asked = await post(library, "/api/chat", {"model": "new", "messages": HI}, key="fetch", api_keys=KEYS)
    assert (shown.status_code, asked.status_code) == (404, 503)


async def test_models_of_others_do_not_exist():
    keys = ({"key": "k", "name": "k", "models": ["b"]},)
    library = FakeLibrary(manifest("a"), manifest("b"))
    library.standings = {"a": LOADED, "b": LOADED}
    for path in ("/api/tags", "/api/ps"):
        told = (await post(library, path, None, method="GET", key="k", api_keys=keys)).json()["models"]
        assert [model["name"] for model in told] == ["b:latest"]
    reply = await post(library, "/api/show", {"model": "a"}, key="k", api_keys=keys)
    assert (reply.status_code, reply.json()["error"]) == (404, "model 'a' not found")


async def test_a_blob_can_be_asked_for_and_not_sent():
    async with http_client(site()) as client:
        assert (await client.head(f"/api/blobs/{DIGEST}")).status_code == 200
        assert (await client.head("/api/blobs/sha256:00")).status_code == 404
        for method, path in (("POST", f"/api/blobs/{DIGEST}"), ("POST", "/api/push")):
            reply = await client.request(method, path, content=b"x")
            assert (reply.status_code, set(reply.json())) == (501, {"error"})


# --- keep_alive ---------------------------------------------------------------------------------------


KEPT = [
    ("10m", 600.0),
    ("1h30m", 5400.0),
    (90, 90.0),
    ("90", 90.0),
    (0.5, 0.5),
    (-1, None),
    ("-1", None),
    ("-1m", None),
    (0, 0.0),
]


@pytest.mark.parametrize(("given", "seconds"), KEPT)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": HI}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/embed", {"input": "x"}),
        ("/api/embeddings", {"prompt": "x"}),
    ],
)
async def test_a_keep_alive_is_told_before_the_reply(path, body, given, seconds):
    library = FakeLibrary(manifest())
    reply = await post(library, path, {"model": "tiny:v1", "keep_alive": given, "stream": False, **body})
    assert reply.status_code == 200, reply.text
    assert library.log == [("keep", "tiny:v1", seconds)]


@pytest.mark.parametrize("given", ["soon", "5 m", "1d", "m", True, [], "nan"])
async def test_a_keep_alive_that_is_none_is_a_400(given):
    library = FakeLibrary(manifest())
    reply = await post(library, "/api/chat", {"model": "tiny:v1", "messages": HI, "keep_alive": given})
    assert reply.status_code == 400
    assert "keep_alive" in reply.json()["error"]
    assert (library.log, library.model.requests) == ([], [])


async def test_without_a_keep_alive_nothing_is_told():
    library = FakeLibrary(manifest())
    await post(library, "/api/chat", {"model": "tiny:v1", "messages": HI})
    assert library.log == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_an_empty_prompt_loads_or_unloads(path):
    library = FakeLibrary(manifest())
    loaded = (await post(library, path, {"model": "tiny:v1", "keep_alive": "1h"})).json()
    library.in_use = {"tiny:v1"}  # it goes after its last reply
    gone = (await post(library, path, {"model": "tiny:v1", "keep_alive": 0})).json()
    assert (loaded["done_reason"], gone["done_reason"], loaded["model"]) == ("load", "unload", "tiny:v1")
    assert library.log == [
        ("keep", "tiny:v1", 3600.0),
        ("load", "tiny:v1"),
        ("keep", "tiny:v1", 0.0),
        ("unload", "tiny:v1"),
    ]
    assert library.model.requests == []


async def test_the_client_chats_with_a_model_of_the_hub():
    library = FakeLibrary(manifest())
    async with ollama_client(site(library)) as client:
        reply = await client.chat("TINY:v1", HI, keep_alive="10m")
    assert (reply.message.content, reply.done_reason) == ("Hello, world!", FinishReason.STOP)
    assert library.log == [("keep", "tiny:v1", 600.0)]
