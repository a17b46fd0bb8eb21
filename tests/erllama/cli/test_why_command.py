"""The command `why`, against the answers that the server's own code makes."""

import json
from urllib.parse import unquote

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

from deployments.dialects.erllama_admin.request_shapes import request_card, why_card
from erllama.cli.app import app
from erllama.diagnosis.record import NO_IDS, PromptRecord
from tests.support.http_fakes import FakePrompts
from tests.support.http_site import serving

BEFORE, PROMPT, STORED = "Today is 2026-11-2", "9\nBe\x1b[31m kind", "8\nBe kind"


def ids(text):
    return np.array(list(text.encode()), dtype=np.uint32)


def record(name="r1", **more):
    usual = {"n_prompt": 400, "n_cached": 100, "tier": "disk", "n_known": 100, "known_in": "store", "salt": ""}
    usual |= {"cause": "noise:date", "detail": "a rule", "time_s": 1.0, "prefill_tokens_per_s": 1000.0}
    sides = {"before": ids(BEFORE), "prompt": ids(PROMPT), "stored": ids(STORED)}
    return PromptRecord(request_id=f"{name}~1234", **{**usual, **sides, **more})


@pytest.fixture
def run():
    """Runs the command against a server that knows some requests."""
    known = {
        "a/b c": record("a/b c"),
        "new": record("new", n_cached=0, n_known=0, tier="", before=NO_IDS, stored=NO_IDS, prefill_tokens_per_s=0.0),
    }

    def one(request):
        found = known.get(unquote(request.path_params["id"]))
        if found is None:
            return JSONResponse({"error": {"message": "Nothing is remembered."}}, 404)
        return JSONResponse(why_card(found, "demo", "a", FakePrompts()))

    def all(request):
        return JSONResponse({"data": [request_card(found, "demo", "a") for found in known.values()]})

    routes = [Route("/erllama/v1/requests/{id:path}/why", one), Route("/erllama/v1/requests", all)]
    with serving(Starlette(routes=routes)) as url:

        def run(*words, status=0):
            result = CliRunner().invoke(app, ["why", *words], env={"COLUMNS": "200", "ERLLAMA_HOST": url})
            assert result.exit_code == status, (result.output, result.exception)
            return result.stderr if status else result.stdout

        yield run


def test_both_sides_are_shown_and_nothing_that_spoils_the_terminal(run):
    told = run("a/b c")
    for text in (
        "noise:date",
        "100 of 400 from disk",
        "300 tokens, 300 ms",
        "its first 100 tokens",
        BEFORE,
        "8\\nBe kind",
    ):
        assert text in told, text
    assert "9\\nBe\\x1b[31m kind" in told


def test_a_side_that_ends_says_so_and_an_unknown_cost_is_left_out(run):
    told = run("new")
    assert "(it ends here)" in told
    assert " ms" not in told


def test_without_an_id_the_last_requests_are_listed(run):
    lines = run().splitlines()
    assert [line.split()[0] for line in lines] == ["request", "a/b", "new"]
    assert "100 (25%)" in lines[1]


def test_as_json_it_is_what_the_server_said(run):
    assert json.loads(run("new", "--json"))["object"] == "request.why"
    assert len(json.loads(run("--json"))["data"]) == 2


def test_an_unknown_request_is_one_line(run):
    assert run("other", status=1) == "error: Nothing is remembered.\n"
