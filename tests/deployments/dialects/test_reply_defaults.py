"""What a model's configuration says of sampling and of the form of replies holds in every dialect, for
what a request does not say.
"""

from __future__ import annotations

import pytest

from deployments.http.ports import ReplyDefaults
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.request import SamplingParams
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served

SAMPLING = SamplingParams(temperature=0.25, top_k=5, seed=7, logit_bias=((65, 1.5),))
GRAMMAR = Constraint(ConstraintKind.GBNF, 'root ::= "yes" | "no"', "reply_grammar")
pytestmark = pytest.mark.anyio

MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
GEMINI = "/v1beta/models/demo:generateContent"
CHATS = {
    "/v1/chat/completions": MESSAGES,
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**MESSAGES, "max_tokens": 9},
    "/api/chat": MESSAGES,
    GEMINI: {"contents": [{"parts": [{"text": "Hi"}]}]},
}
RAW = {"/v1/completions": {"prompt": "Hi"}, "/api/generate": {"prompt": "Hi", "raw": True}}
RAW["/completion"] = {"prompt": "Hi"}
BODIES = {**CHATS, **RAW}
DRAWN = ReplyDefaults(SAMPLING, GRAMMAR)
ENDS = ReplyDefaults(stop=("<end>",), max_tokens=7)
LIMITS = {  # how each says a limit and a stop text of its own
    "/v1/chat/completions": {"max_tokens": 5, "stop": ["x"]},
    "/v1/responses": {"max_output_tokens": 16},
    "/v1/messages": {"max_tokens": 5, "stop_sequences": ["x"]},
    "/api/chat": {"options": {"num_predict": 5, "stop": ["x"]}},
    "/api/generate": {"options": {"num_predict": 5, "stop": ["x"]}},
    GEMINI: {"generationConfig": {"maxOutputTokens": 5, "stopSequences": ["x"]}},
    "/v1/completions": {"max_tokens": 5, "stop": ["x"]},
    "/completion": {"n_predict": 5, "stop": ["x"]},
}
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {}}}


async def asked(path, defaults=DRAWN, **more):
    """The engine's request that a body of `path` with `more` becomes."""
    prompts, model = FakePrompts(), FakeModel()
    prompts.defaults = defaults
    async with http_client(app_of(served(model, prompts))) as client:
        reply = await client.post(path, json={"model": "demo", "stream": False, **BODIES[path], **more})
    assert reply.status_code == 200, reply.text
    return model.requests[0]


@pytest.mark.parametrize("path", BODIES)
async def test_a_request_that_says_nothing_is_sampled_as_configured(path):
    assert (await asked(path)).sampling == SAMPLING


@pytest.mark.parametrize("path", BODIES)
async def test_what_a_request_says_wins(path):
    said = {"temperature": 1.0, "top_k": 9} if path in CHATS else {"temperature": 1.0, "top_k": 9, "seed": 3}
    if path == GEMINI:
        request = await asked(path, generationConfig={"temperature": 1.0, "topK": 9})
    else:
        request = await asked(path, **({"options": said} if path.startswith("/api") else said))
    assert (request.sampling.temperature, request.sampling.top_k) == (1.0, 9)
    assert request.sampling.seed == said.get("seed", 7)
    assert request.sampling.logit_bias == SAMPLING.logit_bias


async def test_a_logit_bias_stands_for_the_configured_one():
    assert (await asked("/v1/completions", logit_bias={"66": -2})).sampling.logit_bias == ((66, -2.0),)


@pytest.mark.parametrize("path", CHATS)
async def test_a_chat_follows_the_configured_grammar(path):
    assert (await asked(path)).constraint == GRAMMAR


@pytest.mark.parametrize("path", RAW)
async def test_a_raw_prompt_does_not(path):
    assert (await asked(path)).constraint is None


async def test_a_chat_with_tools_that_may_be_called_follows_it_too():
    tools = [{"type": "function", "function": TOOL}]
    assert (await asked("/v1/chat/completions", tools=tools)).constraint == GRAMMAR


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
        {"grammar": 'root ::= "x"'},
    ],
)
async def test_a_form_that_a_request_asks_for_wins(more):
    constraint = (await asked("/v1/chat/completions", **more)).constraint
    assert constraint is not None
    assert constraint != GRAMMAR


@pytest.mark.parametrize("path", BODIES)
async def test_a_reply_ends_where_its_model_does(path):
    request = await asked(path, ENDS)
    asks_itself = path == "/v1/messages"  # its bodies must
    assert (request.stop, request.max_tokens) == (("<end>",), 9 if asks_itself else 7)


@pytest.mark.parametrize("path", BODIES)
async def test_a_request_that_says_where_it_ends_ends_there(path):
    request = await asked(path, ENDS, **LIMITS[path])
    says_no_stop = path == "/v1/responses"  # its bodies cannot
    assert (request.stop, request.max_tokens) == ((("<end>",), 16) if says_no_stop else (("x",), 5))


@pytest.mark.parametrize("path", BODIES)
async def test_a_model_that_says_nothing_of_ends_leaves_them_to_the_dialect(path):
    known = {"/v1/messages": 9, "/v1/completions": 16}
    assert ((request := await asked(path)).stop, request.max_tokens) == ((), known.get(path))
