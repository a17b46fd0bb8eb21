"""The pure parts of bench/agents.py: what it reads of our log, what it makes the model say, what it
takes for an error. No agent is run.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from agent_clients import AGENTS, Outcome, Place, _errors
from agents import AccessLog, Totals, app_args, reply_grammar, table

from deployments.config import BuildArgs
from erllama.chat.tool_formats.base import ToolSpec, collect_parts
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.tool_formats.splitter import reply_splitter
from tests.support.http_fakes import FakeModel, app_of, http_client, served

BY_NAME = {agent.name: agent for agent in AGENTS}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_the_log_is_read_as_our_server_writes_it(tmp_path):
    path = tmp_path / "replica_erllama_ingress_x.log"
    logger, handler = logging.getLogger("deployments.http"), logging.FileHandler(path)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        async with http_client(app_of(served(FakeModel()))) as client:
            log = AccessLog(tmp_path)
            await client.get("/health")
            await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
            first = log.totals()
            await client.post("/v1/messages", json={"messages": []})
            second = log.totals()
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert (first.requests, first.cached, first.refused) == (1, 3, 0)
    assert first.prompt > first.cached
    assert second == Totals(requests=1, refused=1)


def test_the_configuration_is_one_that_the_server_takes(tmp_path):
    args = app_args(Path("m.gguf"), tmp_path, list(AGENTS), 1, noise_rules=True)
    assert [model.id for model in BuildArgs.model_validate(args).models] == list(BY_NAME)


@pytest.mark.parametrize("agent", AGENTS, ids=BY_NAME)
def test_the_calls_that_the_model_writes_are_read_as_calls(agent, tmp_path):
    rule = next(line for line in reply_grammar(agent, tmp_path).splitlines() if line.startswith("call ::="))
    for text in map(json.loads, rule.removeprefix("call ::= ").split(" | ")):
        name, arguments = agent.call(tmp_path / "x")
        splitter = reply_splitter(HERMES, [ToolSpec(name, {"type": "object"})])
        assert splitter is not None
        [call] = collect_parts(splitter.push(text) + splitter.finish()).calls
        assert (call.name, json.loads(call.arguments_json).keys()) == (name, arguments.keys())


def test_errors_of_agents_are_told_from_their_warnings():
    lines = [
        '{"type":"item.completed","item":{"type":"error","message":"Model metadata for `codex` not found."}}',
        '{"type":"error","message":"stream closed before response.completed"}',
    ]
    assert list(_errors(BY_NAME["codex"], lines)) == [lines[1]]
    assert list(_errors(BY_NAME["claude"], ['{"type":"result","is_error":false}', '{"is_error":true}'])) == [
        '{"is_error":true}'
    ]


def test_the_table_shows_the_second_run():
    runs = {"x": [(Totals(2, 100, 0), Outcome(1)), (Totals(2, 100, 96), Outcome(1, ["bad"]))]}
    assert table(runs).splitlines()[-1] == "| x | 2 | 1 | 100 | 0 | 96 | 96.0% | 1 |"


def test_files_of_an_agent_lie_in_its_home():
    place = Place(Path("/h"), Path("/p"), "http://127.0.0.1:1")
    for agent in AGENTS:
        assert all(path.is_relative_to("/h") for path in agent.files(place))
