"""What an HTTP request leaves behind: a log line, and numbers at `/metrics`."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.http.options import HttpOptions
from deployments.ingress.http_app import make_http_app
from deployments.metrics import METRICS, Source
from deployments.telemetry.access_log import JsonFormatter, as_text
from erllama.errors import EngineStopped, QueueFull
from erllama.events import CacheHitKind, Done, FinishReason, RequestStats, Tokens
from tests.support.cluster_fakes import FakeCluster, WatchedModel
from tests.support.http_fakes import FakeModel, app_of, exchange, http_client, replies, served

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def slow_reply(**times):
    """A reply of two tokens that was told to have taken so long."""

    async def script(request):
        yield [Tokens((65, 66), "AB")]
        stats = RequestStats(
            *(len(request.prompt_tokens), 2, 5, times.get("queue_ms", 1.0), times.get("prefill_ms", 30.0), 4.0),
            *(CacheHitKind.PARTIAL, FinishReason.STOP),
            cache_tier="disk",
            restore_ms=2.5,
        )
        yield [Done(stats, "key")]

    return script


def lines(caplog):
    return [record for record in caplog.records if "event=request " in record.getMessage()]


async def scraped(client, **headers):
    reply = await client.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(reply.text)
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_has_what_a_request_cost(stream, caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    keys = ({"key": "k", "name": "alice"},)
    async with http_client(app_of(served(FakeModel(slow_reply())), api_keys=keys)) as client:
        headers = {"authorization": "Bearer k", "x-request-id": "my-id"}
        await client.post(CHAT, json={**HI, "stream": stream}, headers=headers)
    [record] = lines(caplog)
    line = json.loads(JsonFormatter().format(record))
    assert {name: line[name] for name in ("event", "level", "request_id", "method", "path", "route", "status")} == {
        **{"event": "request", "level": "info", "request_id": "my-id", "method": "POST"},
        **{"path": CHAT, "route": CHAT, "status": 200},
    }
    assert {name: line[name] for name in ("tenant", "dialect", "model", "cache_tier", "slow")} == {
        **{"tenant": "alice", "dialect": "openai", "model": "demo", "cache_tier": "disk", "slow": None},
    }
    assert (line["queue_ms"], line["restore_ms"], line["prefill_ms"]) == (1.0, 2.5, 30.0)
    assert (line["cached_tokens"], line["completion_tokens"]) == (5, 2)
    assert 0 <= line["ttft_ms"] <= line["ms"]
    assert "exception" not in line
    assert as_text(record.fields) == record.getMessage()


async def test_a_slow_request_says_why(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    log = {"slow_first_token_s": 1e-6}
    async with http_client(app_of(served(FakeModel(slow_reply(queue_ms=9000.0))), log=log)) as client:
        await client.post(CHAT, json=HI)
        told = await scraped(client)
    assert " slow=queued " in lines(caplog)[0].getMessage()
    assert told["erllama_slow_requests_total", "queued"] == 1


async def test_a_client_cannot_forge_a_line(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    async with http_client(app_of(served(FakeModel()))) as client:
        await client.get("/erllama/v1/models/a/b/state")
        await client.get("/x%0Aevent=request status=200")
    known, record = lines(caplog)
    assert "route=/erllama/v1/models/{model_id}/state" in known.getMessage()
    assert "\n" not in record.getMessage()
    assert 'path="/x\\nevent=request status=200" status=404' in record.getMessage()


def test_json_lines_carry_messages_and_tracebacks():
    try:
        raise ValueError("it broke")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("deployments.http", logging.ERROR, "file", 1, "event=%s", ("bad",), info)
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["level"]) == ("event=bad", "error")
    assert "it broke" in line["exception"]
    assert "\n" not in JsonFormatter().format(record)


async def test_requests_are_counted_by_dialect_and_status():
    full = FakeModel(replies("", error=QueueFull("full")))
    async with http_client(app_of(served(FakeModel()), served(full, id="full"))) as client:
        for _ in range(3):
            await client.post(CHAT, json={**HI, "model": "demo"})
        await client.post(CHAT, json={**HI, "model": "full"})
        await client.post("/v1/messages", json={**HI, "model": "demo", "max_tokens": 9})
        await client.post("/api/chat", json={**HI, "model": "nobody"})
        await client.get("/health")
        await client.get("/nowhere")
        told = await scraped(client)
    counted = {key[1:]: value for key, value in told.items() if key[0] == "erllama_requests_total"}
    assert counted == {
        ("openai", "2xx"): 3,
        ("openai", "429"): 1,
        ("anthropic", "2xx"): 1,
        ("ollama", "4xx"): 1,
        ("none", "2xx"): 1,
        ("none", "4xx"): 1,
    }
    assert told["erllama_time_to_first_token_seconds_count", "openai", "demo"] == 3
    assert told["erllama_time_per_output_token_seconds_count", "demo"] == 4
    assert told["erllama_requests_open",] == 1  # this one


async def test_every_number_of_the_ingress_is_told():
    """All but those of rules against noise, which their own tests count."""
    async with http_client(app_of(served(FakeModel(slow_reply())), log={"slow_token_s": 1e-6})) as client:
        await client.post(CHAT, json=HI)
        names = {key[0] for key in await scraped(client)}
    declared = {m.name: m for m in METRICS if m.source is Source.INGRESS}
    assert [name for name, metric in declared.items() if names.isdisjoint(metric.series)] == ["erllama_prompt_noise"]


async def test_the_models_are_told_as_their_replicas_are():
    app = make_http_app([served(WatchedModel())], cluster=FakeCluster())
    async with http_client(app) as client:
        told = await scraped(client)
    assert told["erllama_cache_hits_total", "partial", "demo", "r1", "disk"] == 3
    assert told["erllama_cache_hits_total", "cold", "demo", "r1", "none"] == 4
    assert told["erllama_store_evicted_total", "budget", "demo", "r1"] == 3
    assert told["erllama_prefill_saved_seconds_total", "demo", "r1"] == 1.5
    assert told["llamacpp:prompt_tokens_total",] == 300
    assert (told["llamacpp:requests_processing",], told["llamacpp:requests_deferred",]) == (1, 1)


@pytest.mark.parametrize(
    ("who", "metrics", "status"),
    [
        (None, "admin", 401),
        ("guest", "admin", 403),
        ("ops", "admin", 200),
        (None, "open", 200),
        ("guest", "open", 200),
    ],
)
async def test_numbers_are_for_admins_unless_they_are_open(who, metrics, status):
    keys = ({"key": "ops", "admin": True}, {"key": "guest", "name": "guest"})
    app = make_http_app([served(WatchedModel())], HttpOptions(api_keys=keys, metrics=metrics))
    async with http_client(app, **({"authorization": f"Bearer {who}"} if who else {})) as client:
        assert (await client.get("/metrics")).status_code == status
        assert (await client.get("/erllama/v1/cluster")).status_code == {None: 401, "guest": 403, "ops": 200}[who]


async def test_a_stream_that_fails_counts_as_what_it_would_have_been(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    model = FakeModel(replies("Hello", error=EngineStopped("gone")))
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(CHAT, json={**HI, "stream": True})
        told = await scraped(client)
    assert reply.status_code == 200
    assert " status=200 " in lines(caplog)[0].getMessage()
    assert " error=engine_stopped" in lines(caplog)[0].getMessage()
    assert told["erllama_requests_total", "openai", "5xx"] == 1


@pytest.mark.parametrize("cancelled", [False, True])  # as Serve does, or as ASGI says it
async def test_a_client_that_leaves_its_stream_counts_as_one_that_left(cancelled, caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")

    async def endless(request):
        while True:
            yield [Tokens((65,), "A")]
            await asyncio.sleep(0)

    app = app_of(served(FakeModel(endless)))
    async with exchange(app, CHAT, {**HI, "stream": True}) as client:
        assert (await client.start())[0] == 200
        await client.chunk()
        if cancelled:
            client.task.cancel()
        else:
            client.disconnect()
        await asyncio.gather(client.task, return_exceptions=True)
    async with http_client(app) as other:
        told = await scraped(other)
    assert told["erllama_requests_total", "openai", "499"] == 1
    assert " status=200 " in lines(caplog)[0].getMessage()
    assert " error=client_disconnected" in lines(caplog)[0].getMessage()


class Broken:
    """A recorder whose system has gone."""

    def inc(self, *_):
        raise RuntimeError("gone")

    set = observe = inc


async def test_a_metrics_system_that_has_gone_costs_no_request(caplog):
    app = make_http_app([served(FakeModel())], recorder=Broken())
    async with http_client(app) as client:
        assert (await client.post(CHAT, json=HI)).status_code == 200
    assert "event=request_not_counted" in caplog.text
