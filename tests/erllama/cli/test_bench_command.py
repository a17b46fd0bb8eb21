"""`erllama bench` against our HTTP app and against a server of another maker that tells less."""

import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from erllama.cli.app import app
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, replies, served
from tests.support.http_site import serving

REPLY = "and so on and so on and so on"


class OtherServer:
    """Counts words as tokens, remembers prompts, and tells what it is made to tell."""

    def __init__(self, *, tells_cached=True, fails_at=None):
        self.bodies = []
        self._tells_cached = tells_cached
        self._fails_at = fails_at
        self._seen = []

    def app(self):
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def models(self, request):
        return JSONResponse({"object": "list", "data": [{"id": "other"}]})

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        if len(self.bodies) == self._fails_at:
            return JSONResponse({"error": {"message": "no more"}}, status_code=429)
        return StreamingResponse(self.stream(body), media_type="text/event-stream")

    async def stream(self, body):
        prompt = " ".join(message["content"] for message in body["messages"])
        cached = max((len(seen.split()) for seen in self._seen if prompt.startswith(seen)), default=0)
        self._seen.append(prompt)
        words = REPLY.split()[: body["max_tokens"]]
        for word in words:
            yield event({"choices": [{"delta": {"content": f"{word} "}}]})
        details = {"prompt_tokens_details": {"cached_tokens": cached}} if self._tells_cached else {}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(words), **details}
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def event(body):
    return f"data: {json.dumps(body)}\n\n"


def invoke(url, *words):
    return CliRunner().invoke(app, ["bench", "--host", url, *words], env={"COLUMNS": "160", "ERLLAMA_API_KEY": None})


def test_a_run_tells_cached_tokens_by_turn():
    server = OtherServer()
    with serving(server.app()) as url:
        done = invoke(url, "--prompt-tokens", "120", "--turns", "3", "--reply-tokens", "6", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["model"], told["errors"]) == ("other", [])
    assert [turn["number"] for turn in told["turns"]] == [1, 2, 3]
    first, second, third = told["turns"]
    assert abs(first["n_prompt"] - 120) <= 2
    assert first["n_cached"] == 0
    assert second["n_cached"] == first["n_prompt"]
    assert third["n_cached"] == second["n_prompt"]
    assert told["warm"]["n_turns"] == 2
    assert told["cold"]["ttft_s"] > 0


def test_conversations_run_at_once_with_prompts_of_their_own():
    server = OtherServer()
    with serving(server.app()) as url:
        done = invoke(
            url, "--prompt-tokens", "60", "--turns", "2", "--concurrency", "3", "--reply-tokens", "4", "--json"
        )
    assert done.exit_code == 0, done.output
    assert [turn["n_turns"] for turn in json.loads(done.stdout)["turns"]] == [3, 3]
    firsts = [body["messages"][0]["content"] for body in server.bodies[2:] if len(body["messages"]) == 1]
    assert len({first[:40] for first in firsts}) == 3
    assert all(body["max_tokens"] == 4 and body["temperature"] == 0 for body in server.bodies[2:])


def test_people_are_told_what_is_not_known():
    with serving(OtherServer(tells_cached=False).app()) as url:
        done = invoke(url, "--prompt-tokens", "60", "--turns", "1", "--reply-tokens", "4")
    assert done.exit_code == 0, done.output
    assert "does not tell cached tokens" in done.stderr
    assert "no timings of its own" in done.stderr
    [row] = [line for line in done.stdout.splitlines() if line.startswith("1 ")]
    assert row.split()[2] == "?"


def test_a_refusal_is_told_and_the_other_turns_count():
    with serving(OtherServer(fails_at=4).app()) as url:
        done = invoke(url, "--prompt-tokens", "60", "--turns", "3", "--reply-tokens", "4", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, len(told["turns"])) == (1, 1)
    assert "429" in told["errors"][0]
    assert "no more" in told["errors"][0]


def test_our_server_has_its_own_clock_and_its_context_is_kept():
    prompts = FakePrompts(n_ctx=4096)  # a token is a byte
    with serving(app_of(served(FakeModel(replies(REPLY)), prompts))) as url:
        done = invoke(url, "--prompt-tokens", "500", "--turns", "2", "--json")
        refused = invoke(url, "--prompt-tokens", "4000")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert abs(told["cold"]["n_prompt"] - 500) <= 50
    assert told["cold"]["server_decode_tok_s"] is not None
    assert refused.exit_code == 1
    assert "the model's context has 4096" in refused.stderr


@pytest.mark.parametrize(("words", "exit_code"), [(["--turns", "0"], 1), (["--model", "nobody"], 1)])
def test_what_is_wrong_is_told_before_anything_is_asked(words, exit_code):
    server = OtherServer()
    with serving(server.app()) as url:
        refused = invoke(url, *words)
    assert (refused.exit_code, server.bodies) == (exit_code, [])


def test_without_a_server_the_exit_code_says_so():
    assert invoke("http://127.0.0.1:1").exit_code == 3
