"""A model of the hub that ends under a request: it is loaded anew, and the reply goes on where it was."""

import asyncio

import pytest

from deployments.config import FailoverPolicy
from deployments.hub.place import HubPlace
from deployments.model.client import ModelClient
from deployments.model.handles import ModelHandles
from deployments.model.states import LoadState, Phase
from erllama.errors import EngineStopped
from erllama.events import Done, Failed, Tokens
from tests.deployments.model.test_model_client import REPLY, Handle, breaking, request, rest
from tests.support.hub_fakes import FakeLink

pytestmark = pytest.mark.anyio

LIMITS = FailoverPolicy(max_attempts=4, timeout_s=30, backoff_s=0.001)
ENDED = LoadState(Phase.ENDED, "its process has ended")


class Site:
    """A model whose n-th load is served by the n-th of `handles`. All of its applications have ended by
    the time that somebody asks for their state.
    """

    def __init__(self, *handles):
        self.link = FakeLink(moves=True)
        self._handles = iter(handles)
        place = HubPlace("m", "digest", self.link, lambda granted: ModelHandles(next(self._handles), self.state, 0.001))
        self.client = ModelClient(place, sleeps=True, failover=LIMITS)

    def state(self):
        return ENDED


def silent(sent, number):
    return ["hang"]


@pytest.mark.parametrize("said", [0, 1, 5], ids=["silent", "one-token", "some"])
async def test_a_reply_goes_on_where_the_model_is_loaded_anew(said):
    first, second = Handle(breaking(said, by=asyncio.CancelledError)), Handle(lambda sent, number: rest(sent))
    site = Site(first, second)
    events = [event async for events in site.client.generate(request()) for event in events]
    assert [token for event in events if isinstance(event, Tokens) for token in event.ids] == list(REPLY)
    assert isinstance(events[-1], Done)
    assert second.requests[0].resumed == REPLY[:said]
    assert site.link.n_admitted == site.link.n_released == 2


async def test_a_model_whose_application_is_gone_is_loaded_anew_for_every_kind_of_call():
    site = Site(Handle(silent), Handle(answers=[[[0.5]]]))
    assert await site.client.embed([[1]]) == [[0.5]]
    assert site.link.n_released == 2


async def test_what_ends_each_time_that_it_is_loaded_is_given_up():
    site = Site(*[Handle(silent) for _ in range(LIMITS.max_attempts)])
    [[failed]] = [events async for events in site.client.generate(request())]
    assert isinstance(failed, Failed)
    assert "its process has ended" in failed.error.message
    assert site.link.n_released == LIMITS.max_attempts


async def test_what_was_never_loaded_is_asked_nothing_and_not_loaded_for_it():
    site = Site()
    assert await site.client.ready() is None
    assert await site.client.find("r") is None
    with pytest.raises(EngineStopped, match="nothing of m runs"):
        await site.client.stats()
    assert site.link.n_admitted == 0
