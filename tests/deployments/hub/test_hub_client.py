"""A model of the hub that ends under a request: it is asked for once more, and what was said is not said
again.
"""

from dataclasses import dataclass, field

import pytest

from deployments.hub.client import OnDemandClient
from deployments.model.ray_errors import ModelUnavailable
from deployments.model.states import ModelEnded
from erllama.events import Failed, Tokens
from erllama.request import GenerationRequest, Prompt
from tests.support.hub_fakes import FakeLink

pytestmark = pytest.mark.anyio

SAID = [Tokens((104,), "h")]
GONE = [Failed(ModelEnded("the model is gone: its process has ended"))]
BROKEN = [Failed(ModelUnavailable("it cannot be loaded"))]


@dataclass
class Scripted:
    """A client whose requests say, one after the other, what is in `scripts`."""

    scripts: list[list[list]]
    asked: list[str] = field(default_factory=list)

    async def generate(self, request):
        self.asked.append(request.request_id)
        for events in self.scripts.pop(0):
            yield events


@pytest.mark.parametrize(
    ("scripts", "said", "n_asked"),
    [
        ([[SAID]], [SAID], 1),
        ([[GONE], [SAID]], [SAID], 2),
        ([[GONE], [GONE], [SAID]], [GONE], 2),
        ([[SAID, GONE], [SAID]], [SAID, GONE], 1),
        ([[BROKEN], [SAID]], [BROKEN], 1),
    ],
    ids=["well", "gone-before-it-spoke", "gone-twice", "gone-while-it-spoke", "broken"],
)
async def test_what_ends_before_it_has_said_anything_is_asked_for_once_more(scripts, said, n_asked):
    link, model = FakeLink(), Scripted(scripts)
    client = OnDemandClient("m", "digest", link, lambda granted: model)
    assert [events async for events in client.generate(GenerationRequest("r", Prompt.of([1, 2])))] == said
    assert (len(model.asked), link.n_admitted) == (n_asked, n_asked)
