"""Bodies with something wrong in them, on every route that takes one: an answer or a refusal in the
dialect's own shape, never a 5xx, never a hang, never a logged bug. With the demo model's real
vocabulary and template, so that rendering and grammars are under test, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from cache_store.format.keys import root_key
from deployments.ingress.prompts import PromptSource
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from tests.support.http_fakes import FakeModel, app_of, replies, served
from tests.support.hub_fakes import FakeLibrary, manifest
from tests.support.json_mutations import mutated

PATIENCE_S = 30
N_EXAMPLES = 120
SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 1, "maxLength": 80, "pattern": "^[a-z]+$"},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "mode": {"enum": ["r", "w", None]},
        "more": {"anyOf": [{"type": "null"}, {"const": 3}]},
    },
    "required": ["path"],
    "additionalProperties": False,
}
FUNCTION = {"name": "read", "description": "Reads a file", "parameters": SCHEMA, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "name": "u", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "text"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        "stop": ["x", "y"],
        "logit_bias": {"5": 1.0},
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 5,
        "n": 2,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": True},
        "metadata": {"a": "b"},
        **SAMPLING,
    },
    "/v1/completions": {
        "model": "demo", "prompt": ["Hi", "there"], "max_tokens": 3, "n": 1, "echo": True, "stop": "x", "stream": False,
        "grammar": 'root ::= "a" | "b"', "logit_bias": {"5": -1}, "seed": 3, **SAMPLING,
    },
    "/v1/embeddings": {"model": "demo", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4},
    "/v1/responses": {
        "model": "demo",
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "x"}]},
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "eA=="},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "y"}]},
            {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": "text"},
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        ],
        "tools": [
            {"type": "function", **FUNCTION},
            {"type": "custom", "name": "patch", "description": "d", "format": {"type": "text"}},
            {"type": "namespace", "name": "ns", "description": "d", "tools": [{"type": "function", **FUNCTION}]},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "metadata": {"a": "b"},
        "max_output_tokens": 5,
        "stream": True,
        "store": True,
        "prompt_cache_key": "k",
        **SAMPLING,
    },
    "/v1/messages": {
        "model": "demo",
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"path": "a"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": [{"type": "text", "text": "y"}]}],
            },
            {"role": "system", "content": "15 tokens left"},
        ],
        "tools": [{"name": "read", "description": "d", "input_schema": SCHEMA, "strict": True}, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "tool", "name": "read", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low"},
        "metadata": {"user_id": '{"session_id": "s"}'},
        "stop_sequences": ["x"],
        "max_tokens": 5,
        "stream": True,
        **SAMPLING,
    },
    "/v1beta/models/demo:streamGenerateContent?alt=sse": {
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "hm", "thought": True}, {"functionCall": {"name": "read", "args": {"path": "a"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "read", "response": {"result": "text"}}}]},
        ],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "tools": [{"functionDeclarations": [{"name": "read", "description": "d", "parametersJsonSchema": SCHEMA}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
        "generationConfig": {
            "temperature": 0.5, "topP": 0.9, "topK": 5, "maxOutputTokens": 5, "candidateCount": 2, "seed": 1, "stopSequences": ["x"],
        },
    },
    "/api/chat": {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": {"name": "read", "arguments": {"path": "a"}}}]},
            {"role": "tool", "tool_name": "read", "content": "text"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "format": SCHEMA,
        "options": {**SAMPLING, "num_predict": 4, "seed": 1, "stop": ["x"], "repeat_penalty": 1.1, "num_ctx": 99, "mirostat": 0},
        "think": False,
        "keep_alive": "5m",
        "stream": True,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/api/generate": {
        "model": "demo", "prompt": "Hi", "system": "Be brief.", "raw": False, "format": "json", "options": {"num_predict": 4},
        "keep_alive": 3, "suffix": "", "context": [], "images": [], "stream": False,
    },
    "/api/embed": {"model": "demo", "input": ["a", "b"], "truncate": True, "dimensions": 3},
    "/api/embeddings": {"model": "demo", "prompt": "a"},
    "/api/show": {"model": "demo", "name": "demo", "verbose": True},
    "/api/pull": {"model": "hf.co/me/tiny:Q4_K_M", "name": "x", "insecure": True, "stream": True},
    "/api/create": {
        "model": "pirate", "from": "tiny:v1", "system": "Arr.", "template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "parameters": {**SAMPLING, "num_ctx": 4096, "stop": ["x"], "mirostat": 0}, "stream": False, "messages": [], "files": {},
        "modelfile": "FROM tiny:v1\nSYSTEM \"\"\"Arr.\"\"\"\nPARAMETER stop x\nTEMPLATE {{ messages }}",
    },
    "/api/copy": {"source": "tiny:v1", "destination": "me/other"},
    "/models/load": {"model": "tiny:v1"},
    "/models/unload": {"model": "tiny:v1"},
    "/erllama/v1/hub/pull": {"source": "hf.co/me/tiny", "name": "tiny", "stream": True},
    "/completion": {
        "prompt": ["Hi", 5, "there"], "n_predict": 4, "stream": True, "n_probs": 2, "post_sampling_probs": True, "seed": -1,
        "logit_bias": [[5, 1.0], ["a", False]], "stop": ["x"], "samplers": ["top_k", "temperature"], "json_schema": SCHEMA,
        "cache_prompt": True, "id_slot": 0, "return_progress": True, "timings_per_token": True, "n_keep": 3, "mirostat": 0,
        "response_fields": ["content", "timings/prompt_n"], "t_max_predict_ms": 0, **SAMPLING,
    },
    "/infill": {
        "input_prefix": "def f(", "input_suffix": "return 1", "input_extra": [{"filename": "a.py", "text": "x = 1"}], "prompt": "a",
        "n_predict": 3, "stream": False, "t_max_predict_ms": 5, "n_indent": 4,
    },
    "/tokenize": {"content": "Hi", "add_special": True, "parse_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 5, 7]},
    "/apply-template": {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"enable_thinking": False}},
    "/embedding": {"content": ["a", "b"], "embd_normalize": 2},
    "/v1/rerank": {"model": "demo", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True, "max_tokens_per_doc": 9},
    "/v1/score": {"model": "demo", "text_1": "a", "text_2": ["b", "c"], "truncate_prompt_tokens": -1},
    "/erllama/v1/prefixes": {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "pin": {"ttl_s": 60, "name": "p"}},
}  # fmt: skip
_LLAMA_SERVER = {
    "/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/embedding", "/models/load", "/models/unload",
}  # fmt: skip
_NOT_HERE = {
    "/infill",
    "/v1/rerank",
    "/v1/score",
    "/erllama/v1/prefixes",
}  # the demo model and the fake cannot do these
BODIES["/v1/messages/count_tokens"] = BODIES["/v1/messages"]
BODIES["/v1/responses/input_tokens"] = BODIES["/v1/responses"]


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    source = PromptSource(EngineConfig(path="demo", n_ctx=8192), root=root_key("fuzz"), book=TranscriptBook())
    source.load()
    yield app_of(served(FakeModel(replies('{"path": "a"}')), source), library=FakeLibrary(manifest("tiny:v1")))
    source.close()


async def answer(app: Any, path: str, body: bytes) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await asyncio.wait_for(client.post(path, content=body), PATIENCE_S)


def check_error(path: str, reply: httpx.Response) -> None:
    """It has the shape that this dialect's clients read."""
    body = reply.json()
    if path in _LLAMA_SERVER:
        assert set(body["error"]) >= {"code", "message", "type"}
    elif path.startswith("/api"):
        assert isinstance(body["error"], str)
    elif path.startswith("/v1beta"):
        assert set(body["error"]) >= {"code", "message", "status"}
    elif path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert isinstance(body["error"]["type"], str)
        assert isinstance(body["error"]["message"], str)
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_valid_body_is_answered(app, path):
    reply = asyncio.run(answer(app, path, json.dumps(BODIES[path]).encode()))
    assert reply.status_code == 200 or path in _NOT_HERE, reply.text


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_body_with_a_fault_is_answered_or_refused(app, path, caplog):
    @settings(
        max_examples=N_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(BODIES[path]))
    def check(body: bytes) -> None:
        caplog.clear()
        reply = asyncio.run(answer(app, path, body))
        assert reply.status_code < 500 or reply.status_code == 501, reply.text
        if reply.status_code != 200:
            check_error(path, reply)
        bugs = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert not bugs, bugs[0].exc_info

    check()


@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "\\ud800"}',
        b"{}",
    ],
    ids=lambda body: repr(body[:8]),
)
def test_what_is_no_body_is_refused(app, path, body):
    reply = asyncio.run(answer(app, path, body))
    assert 400 <= reply.status_code < 500 or (path, body) in _EMPTY_IS_FINE or path == "/infill"
    if reply.status_code != 200:
        check_error(path, reply)


_EMPTY_IS_FINE = {(path, b"{}") for path in BODIES if path.startswith("/api")}  # a model is loaded, nothing embedded
