"""What lists say of the context of a model of the hub: the one it has, else the one that it is configured with."""

from dataclasses import replace

import pytest

from deployments.http.model_library import ModelStanding
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served
from tests.support.hub_fakes import LOADED, FakeLibrary, manifest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "headers", "listed", "field"),
    [
        ("/v1/models", {}, "data", "context_length"),
        ("/v1/models?client_version=1", {}, "models", "context_window"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "data", "max_input_tokens"),
        ("/v1beta/models", {}, "models", "inputTokenLimit"),
    ],
)
@pytest.mark.parametrize("standing", [ModelStanding(), replace(LOADED, n_ctx=2048)], ids=["unloaded", "loaded"])
async def test_each_dialect_tells_it(path, headers, listed, field, standing):
    library = FakeLibrary(manifest("tiny:v1"), prompts=FakePrompts(None))
    library.standings["tiny:v1"] = standing
    async with http_client(app_of(served(FakeModel()), library=library), **headers) as http:
        cards = (await http.get(path)).json()[listed]
    [card] = [card for card in cards if "tiny" in str(card.get("id") or card.get("slug") or card.get("name"))]
    assert card[field] == (2048 if field == "context_length" and standing.n_ctx else 8192)
