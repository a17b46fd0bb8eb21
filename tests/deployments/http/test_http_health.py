"""Models and health."""

import asyncio

import openai
import pytest

from erllama.errors import EngineStopped
from tests.support.http_fakes import FakeModel, app_of, http_client, openai_client, served

pytestmark = pytest.mark.anyio


async def test_models_are_listed_and_found_by_id_or_alias():
    async with openai_client(app_of(served(FakeModel(), aliases=("gpt-x",)))) as client:
        [model] = [model async for model in client.models.list()]
        assert (model.id, model.object, model.created, model.owned_by) == ("demo", "model", 1_700_000_000, "erllama")
        assert (await client.models.retrieve("gpt-x")).id == "demo"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_health_does_not_ask_the_models():
    async with http_client(app_of(served(FakeModel(state=RuntimeError("dead"))))) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}


async def test_ready_needs_every_model_that_is_awake():
    async with http_client(app_of(served(FakeModel()), served(FakeModel(state=None), id="asleep"))) as client:
        reply = await client.get("/health/ready")
        assert (reply.status_code, reply.json()) == (
            200,
            {"status": "ready", "models": {"demo": "ready", "asleep": "unknown"}},
        )
    for state in (False, RuntimeError("dead")):
        async with http_client(app_of(served(FakeModel()), served(FakeModel(state=state), id="b"))) as client:
            reply = await client.get("/health/ready")
            assert (reply.status_code, reply.json()["models"]) == (503, {"demo": "ready", "b": "not_ready"})


async def test_a_model_that_does_not_answer_in_time_is_not_ready():
    class Hanging(FakeModel):
        async def ready(self):
            await asyncio.Event().wait()

    async with http_client(app_of(served(Hanging()), ready_timeout_s=0.01)) as client:
        assert (await client.get("/health/ready")).status_code == 503


async def test_whoever_is_not_ready_has_a_reason():
    gone = FakeModel(state=EngineStopped("/m/x.gguf: there is no such file"))
    models = (served(FakeModel()), served(gone, id="gone"), served(FakeModel(state=False), id="new"))
    async with http_client(app_of(*models)) as client:
        reply = await client.get("/health/ready")
        assert reply.json()["reasons"] == {"gone": "/m/x.gguf: there is no such file", "new": "it is loading"}
    async with http_client(app_of(served(FakeModel()))) as client:
        assert "reasons" not in (await client.get("/health/ready")).json()


async def test_without_a_key_an_error_says_nothing_of_the_machine():
    reason = "/m/x.gguf: there is no such file"
    models = (served(FakeModel(state=EngineStopped(reason)), id="gone"), served(FakeModel(state=False), id="new"))
    async with http_client(app_of(*models, api_keys=("k1",))) as client:
        with_key = await client.get("/health/ready", headers={"authorization": "Bearer k1"})
        assert with_key.json()["reasons"] == {"gone": reason, "new": "it is loading"}
        for headers in ({}, {"authorization": "Bearer wrong"}):
            reply = await client.get("/health/ready", headers=headers)
            assert (reply.status_code, reply.json()["models"]) == (503, {"gone": "not_ready", "new": "not_ready"})
            assert reply.json()["reasons"]["new"] == "it is loading"
            told = reply.json()["reasons"]["gone"]
            assert told
            assert "/" not in told
            assert "\n" not in told
