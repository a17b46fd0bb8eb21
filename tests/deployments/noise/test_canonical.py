"""The same conversation is the same ids, in whatever form a client sends it (CC-12, row K13): in all
dialects, and through a template that shows all that it is given.
"""

import itertools
import json
import uuid

import pytest

from cache_store.format.keys import root_key
from deployments.ingress import prompts as prompts_module
from deployments.ingress.prompts import PromptSource
from deployments.noise.canonical import canonical_messages
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served

pytestmark = pytest.mark.anyio

# shows every field of every message, in the order of its keys, and tools as they are
SHOWS_ALL = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}{{ message | tojson }}\n{% endfor %}assistant:"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ARGUMENTS = {"city": "Ulm"}
CACHED = {"cache_control": {"type": "ephemeral"}}


def fresh(prefix):
    """A random id, as clients and servers make them."""
    return f"{prefix}_{uuid.uuid4().hex}"


def text(words, kind="text", **fields):
    return {"type": kind, "text": words, **fields}


def forms(words, kind="text"):
    """One text in the containers that clients have."""
    return [words, [text(words, kind)], [text(words, kind, **CACHED)]]


def bodies(name, build, *choices):
    """A body for each place in the lists of `choices`, in step: the longest list tells how many."""
    n = max(map(len, choices))
    rows = [[choice[i % len(choice)] for choice in choices] for i in range(n)]
    return [pytest.param(name, [build(*row) for row in rows], id=name)]


def anthropic(system, said, replied, result, asked):
    call = fresh("toolu")
    reply = [text(replied)] if isinstance(replied, str) else replied
    return "/v1/messages", {
        "max_tokens": 5,
        "system": system,
        "metadata": {"user_id": fresh("user")},
        "tools": [dict(shuffled(name="get", description="It gets.", input_schema=SCHEMA), **CACHED)],
        "messages": [
            {"role": "user", "content": said},
            {
                "role": "assistant",
                "content": [*reply, {"type": "tool_use", "id": call, "name": "get", "input": ARGUMENTS}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": result}]},
            {"role": "user", "content": asked},
        ],
    }


def shuffled(**fields):
    """The fields in another order each time."""
    names = list(fields)
    turn = next(_TURNS) % len(names)
    return {name: fields[name] for name in names[turn:] + names[:turn]}


_TURNS = itertools.count()


def openai(system, said, replied, result, asked):
    call = fresh("call")
    function = shuffled(name="get", arguments=json.dumps(ARGUMENTS))
    return "/v1/chat/completions", {
        "user": fresh("u"),
        "tools": [{"type": "function", "function": shuffled(name="get", description="It gets.", parameters=SCHEMA)}],
        "messages": [
            shuffled(role="system", content=system),
            shuffled(content=said, role="user"),
            shuffled(
                role="assistant",
                content=replied,
                tool_calls=[shuffled(id=call, type="function", function=function)],
                **({"reasoning_content": ""} if next(_TURNS) % 2 else {"refusal": None}),
            ),
            shuffled(role="tool", tool_call_id=call, content=result),
            shuffled(role="user", content=asked),
        ],
    }


def responses(system, said, replied, result, asked):
    call = fresh("call")

    def item(**fields):
        return shuffled(id=fresh("item"), status="completed", **fields)

    return "/v1/responses", {
        "store": False,
        "prompt_cache_key": fresh("key"),
        "tools": [shuffled(type="function", name="get", description="It gets.", parameters=SCHEMA)],
        "input": [
            item(type="message", role="developer", content=system),
            item(type="message", role="user", content=said),
            item(type="message", role="assistant", content=replied),
            item(type="function_call", call_id=call, name="get", arguments=json.dumps(ARGUMENTS)),
            item(type="function_call_output", call_id=call, output=result),
            item(type="message", role="user", content=asked),
        ],
    }


def ollama(system, said, replied, result, asked):
    call = fresh("call")
    function = shuffled(name="get", arguments=ARGUMENTS)
    return "/api/chat", {
        "stream": False,
        "tools": [{"type": "function", "function": shuffled(name="get", description="It gets.", parameters=SCHEMA)}],
        "messages": [
            shuffled(role="system", content=system),
            shuffled(role="user", content=said, images=[]),
            shuffled(role="assistant", content=replied, tool_calls=[shuffled(id=call, function=function)], thinking=""),
            shuffled(role="tool", content=result, tool_call_id=call),
            shuffled(role="user", content=asked),
        ],
    }


TEXTS = ("Be brief.", "hi", "Let me see.", "sunny", "and now?")
IN, OUT = "input_text", "output_text"
DIALECTS = [
    *bodies("anthropic", anthropic, *map(forms, TEXTS)),
    *bodies("openai", openai, *map(forms, TEXTS)),
    *bodies(
        "responses", responses, *(forms(words, kind) for words, kind in zip(TEXTS, (IN, IN, OUT, IN, IN), strict=True))
    ),
    *bodies("ollama", ollama, *([words] * 3 for words in TEXTS)),
]


class ByteVocab:
    """A vocabulary whose tokens are bytes."""

    n_vocab = 256
    bos_text, eos_text, adds_bos, pointer = "", "", False, 0
    chat_template, named_templates = SHOWS_ALL, {}

    def control_texts(self):
        return ()

    cut_texts = control_texts

    @classmethod
    def load(cls, path):
        return cls()

    def tokenize(self, text, *, add_special=True, parse_special=True):
        return list(text.encode())

    def piece(self, token):
        return bytes([token])

    def detokenize(self, ids, *, special=False):
        return bytes(ids).decode(errors="replace")

    def close(self):
        pass


@pytest.fixture
def prompt_of(monkeypatch):
    """What the engine is asked to compute, as text."""
    monkeypatch.setattr(prompts_module, "LlamaVocab", ByteVocab)

    async def prompt(path, body):
        model = FakeModel()
        source = PromptSource(EngineConfig(path="x"), root=root_key("test"), book=TranscriptBook())
        async with http_client(app_of(served(model, source))) as client:
            reply = await client.post(path, json={"model": "demo", **body})
        assert reply.status_code == 200, reply.text
        return bytes(model.requests[0].prompt_tokens).decode()

    return prompt


@pytest.mark.parametrize(("name", "sent"), DIALECTS)
async def test_cc_12_the_same_message_in_another_container_is_the_same_ids(prompt_of, name, sent):
    first, *others = [await prompt_of(path, body) for path, body in sent]
    assert others == [first] * 2
    for words in (*TEXTS, "It gets.", "Ulm"):
        assert words in first
    assert '"call_0"' in first  # the template shows ids, but not the client's


async def test_nothing_random_reaches_a_template(prompt_of):
    """Neither the ids of calls and items nor keys, sessions and users: two runs of one conversation."""
    for _, sent in (param.values for param in DIALECTS):
        path, body = sent[0]
        told = json.dumps(body)
        shown = await prompt_of(path, body)
        ids = {word.strip('",') for word in told.split() if "_" in word and len(word.strip('",')) > 32}
        assert ids
        assert not [id for id in ids if id in shown]


async def test_the_parts_of_a_system_text_are_one_text_in_every_dialect(prompt_of):
    two = [text("Be brief."), text("Be kind.", **CACHED)]
    shown = []
    for build in (anthropic, openai, responses):
        path, body = build(two, *TEXTS[1:])
        shown.append((await prompt_of(path, body)).count("Be brief.\\nBe kind."))
    assert shown == [1, 1, 1]


# --- the form itself ------------------------------------------------------------------------------


def call(id, name="f"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def calling(*ids):
    return {"role": "assistant", "content": "", "tool_calls": [call(id) for id in ids]}


def result(id):
    return {"role": "tool", "content": "4", "tool_call_id": id}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([calling("a", "b"), result("b"), result("a")], ["call_0", "call_1", "call_1", "call_0"]),
        ([calling("a"), result("a"), calling("a"), result("a")], ["call_0", "call_0", "call_1", "call_1"]),
        ([calling("a"), result("lost"), calling("b")], ["call_0", "call_1", "call_2"]),
        ([result("cut"), calling("a"), result("a")], ["call_0", "call_1", "call_1"]),
        ([calling("functions.f:0", "x"), result("functions.f:0"), result("x")],
         ["functions.f:0", "call_1", "functions.f:0", "call_1"]),
        ([calling("call_1", "call_0"), result("call_0"), result("call_1")], ["call_0", "call_1", "call_1", "call_0"]),
    ],
)  # fmt: skip
def test_calls_are_named_by_their_order(given, named):
    shown = []
    for message in canonical_messages(given):
        shown += [one["id"] for one in message.get("tool_calls", ())] or [message["tool_call_id"]]
    assert shown == named


def test_a_call_without_an_id_stays_without():
    bare = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}, call(None)]}
    assert canonical_messages([bare]) == [bare]


def test_keys_come_in_one_order_and_empty_fields_not_at_all():
    fields = {"tool_calls": [], "thinking": None, "name": "n", "reasoning_content": "t", "content": "", "role": "user"}
    shown = [canonical_messages([dict(order)])[0] for order in (fields.items(), reversed(fields.items()))]
    expected = [("role", "user"), ("content", ""), ("name", "n"), ("reasoning_content", "t")]
    assert [list(one.items()) for one in shown] == [expected, expected]
    assert "tool_calls" in fields


async def test_canonical_form_does_not_depend_on_the_rules():
    prompts = FakePrompts()
    _, body = openai(*TEXTS)
    async with http_client(app_of(served(FakeModel(), prompts), noise={"enabled": False})) as client:
        await client.post("/v1/chat/completions", json=body)
    assert prompts.rendered[0][0][2]["tool_calls"][0]["id"] == "call_0"
