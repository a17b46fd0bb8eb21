"""bench/conformance.py against the app in this process, with a fake model that keeps to what it is
asked for.
"""

import asyncio
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import conformance
from conformance_kit import Target, expect

from erllama.events import Done, FinishReason, Progress
from erllama.grammar.constraint import ConstraintKind
from tests.support.grammar_kit import COMPILER, drawn
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, replies, served

NAMES = ("get_weather", "get_time", "home.light-1_on")


def obedient(request):
    """The text of a reply that follows the constraint of the request."""
    constraint = request.constraint
    if constraint is None:
        return "Hello, world! How are you?"
    whole = constraint.text + "".join(part.text for _, part in constraint.parts)
    if constraint.kind is ConstraintKind.LARK:
        name = next((name for name in NAMES if name in whole), "")
        call = f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "Ulm"}}}}\n</tool_call>'
        return call if "start: calls\n" in whole else "Hello."
    return next(filter(None, (drawn(constraint, random.Random(seed)) for seed in range(20))))


class ToolPrompts(FakePrompts):
    """Shows offered tools, as a template does, and refuses what cannot be followed."""

    def check_constraint(self, constraint):
        COMPILER.check(constraint)

    def render_chat(self, messages, tools, template_kwargs, ending="opened"):
        shown = [{"role": "system", "content": json.dumps(tools)}] if tools else []
        return super().render_chat([*shown, *messages], tools, template_kwargs, ending)


async def script(request):
    total = len(request.prompt_tokens)
    if request.report_progress:
        yield [Progress(total, 3, 3, "live", 0.5)]
        yield [Progress(total, 3, total, "live", 1.5)]
    text = obedient(request)
    cut, stop = min(((text.index(stop), stop) for stop in request.stop if stop in text), default=(len(text), None))
    async for [event] in replies(text[:cut], per_item=1)(request):
        if isinstance(event, Done) and event.stats.finish_reason is FinishReason.STOP:
            event = replace(event, stats=replace(event.stats, stop_sequence=stop))
        yield [event]


class Loopback(httpx.BaseTransport):
    """A blocking client's way into an ASGI app."""

    def __init__(self, app):
        self._app = httpx.ASGITransport(app)

    def handle_request(self, request):
        async def ask():
            answer = await self._app.handle_async_request(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            )
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def target():
    with httpx.Client(
        transport=Loopback(app_of(served(FakeModel(script), ToolPrompts(n_ctx=65_536)))), base_url="http://test/v1"
    ) as http:
        yield Target(http, "demo")


def test_there_are_many_cases():
    assert len(conformance.CASES) >= 60


@pytest.mark.parametrize("name", conformance.CASES)
def test_our_app_passes(target, name):
    assert conformance.reason_of_failure(conformance.CASES[name], target) == ""


def test_failures_are_told_in_one_line(target, capsys):
    def wrong(target):
        expect(False, "a thing", "another\nthing")

    def odd(target):
        target.chat()["nothing"]

    results = list(conformance.outcomes(target, {"wrong": wrong, "odd": odd, "fine": lambda target: None}))
    assert [result.line(5) for result in results] == [
        "wrong  fail  wanted a thing, saw 'another\\nthing'",
        "odd    fail  KeyError: 'nothing'",
        "fine   pass",
    ]
    figures = conformance.figures_of(results)
    assert (figures.get("cases"), figures.get("failed")) == (3, 2)
    assert json.loads(json.dumps(figures.document()))["cases"][2] == {"name": "fine", "failure": None}
