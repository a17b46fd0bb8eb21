"""The OpenAPI document names every body by the type that a dialect reads it as, and no body that it
allows, or forbids, is answered with a 5xx.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator

from deployments.ingress.http_app import DIALECTS
from tests.support.http_fakes import FakeModel, app_of, http_client, served

APP = app_of(served(FakeModel()))
schema = schemathesis.openapi.from_asgi("/openapi.json", APP).include(method="POST")
schema.config.phases.coverage.enabled = False  # each property's bounds: minutes; test_fuzz_bodies.py has them


@pytest.mark.anyio
async def test_it_describes_every_body():
    async with http_client(APP) as client:
        document = (await client.get("/openapi.json")).json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    bodies = {path for dialect in DIALECTS for path in dialect.bodies}
    assert {path for path, item in paths.items() if "requestBody" in item.get("post", {})} == bodies
    for path in bodies:
        name = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/")[-1]
        assert schemas[name]["properties"]
    for one in schemas.values():
        Draft202012Validator.check_schema(one)
    assert {"openai.ChatBody", "ollama.ChatBody"} <= schemas.keys()


@schema.parametrize()
@settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_with_a_5xx(case):
    reply = case.call()
    assert reply.status_code < 500, reply.text
