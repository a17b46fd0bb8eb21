"""A replica whose requests are read by several, or again: who joins, who comes back, and that the
tokens are those of an undisturbed run. The stub backend; no Ray.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from erllama.errors import EngineStopped, QueueFull
from erllama.events import Done, Event, Failed, FinishReason, Tokens
from tests.support.replica_kit import Fixture, events_of, first_events, ids, request

N = 24
KEPT = {"keep_s": 60.0, "head": "h", "max_tokens": N}
JOINS = {"keep_s": 60.0, "join_key": "same", "joins": True, "max_tokens": N}


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., None]:
    return lambda story: Fixture(tmp_path, stream_interval_ms=0).run(story)  # each token leaves at once


async def attached(it: Fixture, name: str = "req") -> list[Event]:
    return [event async for events in it.replica.attach("local", name) for event in events]


def whole_of(events: list[Event]) -> tuple[list[int], str, Event]:
    """Ids, text and the last event, however they were told."""
    return ids(events), "".join(event.text for event in events if isinstance(event, Tokens)), events[-1]


async def undisturbed(it: Fixture, **more: object) -> list[int]:
    return ids(await events_of(it.replica, request("alone", max_tokens=N, **more)))


async def cut_after(it: Fixture, n: int, **more: object) -> list[Event]:
    """What a client has that leaves after at least `n` tokens; the engine stands still meanwhile."""
    it.backend.hold(n_free=n)
    stream = it.replica.generate(request(**{**KEPT, **more}))
    assert await anext(stream) == []
    events: list[Event] = []
    while len(ids(events)) < n:
        events += await anext(stream)
    await it.held()
    await stream.aclose()
    it.backend.release()
    return events


@pytest.mark.parametrize("n", [1, 2, 7, N - 2])
def test_who_comes_back_to_a_request_that_was_cancelled_gets_all_of_it_and_the_rest_is_computed(serve, n):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        seen = await cut_after(it, n)
        assert (await it.idle_now())[0], "nobody reads it: it was cancelled"
        n_steps = len(it.backend.plans)
        events = await attached(it)
        assert events[: len(seen)] == seen, "the same events, not only the same text"
        assert ids(events) == whole
        last = events[-1]
        assert isinstance(last, Done)
        assert (last.stats.completion_tokens, last.stats.finish_reason) == (N, FinishReason.LENGTH)
        assert len(it.backend.plans) - n_steps <= N - n, "what was sampled is not computed again"

    serve(story)


def test_one_may_leave_and_come_back_again_and_again(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        await cut_after(it, 3)
        for n in (6, 9):
            it.backend.hold(n_free=3)
            stream = it.replica.attach("local", "req")
            events = []
            while len(ids(events)) < n:
                events += await anext(stream)
            await it.held()
            await stream.aclose()
            it.backend.release()
            await it.idle_now()
        assert ids(await attached(it)) == whole

    serve(story)


def test_who_comes_back_before_the_cancelled_request_has_ended_waits_for_that_and_goes_on(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        it.backend.hold(n_free=2)
        stream = it.replica.generate(request(**KEPT))
        await first_events(stream)
        await it.held()
        await stream.aclose()
        back = asyncio.create_task(attached(it))
        await asyncio.sleep(0)
        assert not back.done()
        it.backend.release()
        assert ids(await back) == whole

    serve(story)


def test_who_comes_to_one_that_runs_is_a_further_reader_and_both_read_the_same(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        _, n_steps = await it.idle_now()
        it.backend.hold(n_free=4)
        first = asyncio.create_task(events_of(it.replica, request(**KEPT)))
        await it.held()
        second = asyncio.create_task(attached(it))
        await asyncio.sleep(0)
        it.backend.release()
        assert await first == await second
        assert ids(await first) == whole
        assert (await it.idle_now())[1] - n_steps <= N, "it was computed once"

    serve(story)


def test_one_that_has_ended_is_read_again_as_it_was(serve):
    async def story(it: Fixture) -> None:
        events = await events_of(it.replica, request(**KEPT))
        n_steps = len(it.backend.plans)
        assert await attached(it) == events
        assert len(it.backend.plans) == n_steps

    serve(story)


def test_text_that_was_held_back_comes_once(serve):
    """A stop string that may be beginning when the client leaves."""

    async def story(it: Fixture) -> None:
        text = "".join(
            e.text for e in await events_of(it.replica, request("probe", max_tokens=N)) if isinstance(e, Tokens)
        )
        stop = (text[4:7] + "\x00",)  # begins in the reply and is never completed
        await cut_after(it, 6, stop=stop)
        await it.idle_now()
        again = await attached(it)
        assert "".join(event.text for event in again if isinstance(event, Tokens)) == text

    serve(story)


def test_what_is_recorded_says_how_to_go_on_elsewhere(serve):
    async def story(it: Fixture) -> None:
        await events_of(it.replica, request("req~r2", **KEPT))
        found = await it.replica.recorded("req")
        assert found is not None
        assert (found.replica_id, found.request_id, found.attempt) == ("local", "req~r2", 2)
        assert (found.head, found.seed) == ("h", 1)
        assert await it.replica.recorded("other") is None

    serve(story)


@pytest.mark.parametrize("more", [{"keep_s": 0.0}, {"head": ""}], ids=str)
def test_nothing_is_kept_of_a_reply_that_nobody_can_come_back_to(serve, more):
    async def story(it: Fixture) -> None:
        await events_of(it.replica, request(**{**KEPT, **more}))
        assert await it.replica.recorded("req") is None
        (event,) = await attached(it)
        assert isinstance(event, Failed)
        assert (event.error.http_status, event.error.code) == (404, "stream_not_resumable")

    serve(story)


def test_a_second_attempt_records_what_the_first_one_gave(serve):
    async def story(it: Fixture) -> None:
        whole = await events_of(it.replica, request("req", **KEPT))
        given = whole[:1]
        rest = ids(whole[1:])
        second = request("req~r2", resumed=tuple(ids(given)), **KEPT)
        stream = it.replica.generate(second, given)
        got = [event async for events in stream for event in events]
        assert ids(got) == rest, "the caller has what the first one gave"
        again = [event async for events in it.replica.attach("local", "req~r2") for event in events]
        assert ids(again) == ids(whole)
        assert again[0] == given[0]

    serve(story)


def test_an_engine_that_cannot_take_the_rest_says_so_and_the_request_may_be_tried_again(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        await cut_after(it, 3)
        await it.idle_now()
        it.backend.hold()
        others = [asyncio.create_task(events_of(it.replica, request(str(i)))) for i in range(4)]
        await it.held()
        *_, last = await attached(it)
        assert isinstance(last, Failed)
        assert isinstance(last.error, QueueFull)
        it.backend.release()
        await asyncio.gather(*others)
        assert ids(await attached(it)) == whole

    serve(story)


def test_a_replica_that_goes_away_takes_up_nothing(serve):
    async def story(it: Fixture) -> None:
        await cut_after(it, 3)
        await it.idle_now()
        await asyncio.to_thread(it.replica.drain, 0.0)
        *_, last = await attached(it)
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineStopped)
        assert last.error.resumable

    serve(story)


# --- joining --------------------------------------------------------------------------------------


def test_identical_requests_are_computed_once_and_end_when_the_last_reader_leaves(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        _, n_steps = await it.idle_now()
        it.backend.hold(n_free=3)
        streams = [it.replica.generate(request(f"r{i}", **JOINS)) for i in range(3)]
        for stream in streams:
            await first_events(stream)
        await it.held()
        await streams[0].aclose()
        it.backend.release()
        rests = await asyncio.gather(*(events_to_the_end(stream) for stream in streams[1:]))
        assert [isinstance(events[-1], Done) for events in rests] == [True, True]
        assert all(ids(events) == whole[len(whole) - len(ids(events)) :] for events in rests)
        assert (await it.idle_now())[1] - n_steps <= N, "it was computed once"

    serve(story)


async def events_to_the_end(stream) -> list[Event]:
    return [event async for events in stream for event in events]


def test_when_all_who_joined_have_left_the_request_is_cancelled(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        streams = [it.replica.generate(request(f"r{i}", **{**JOINS, "max_tokens": None})) for i in range(2)]
        for stream in streams:
            await first_events(stream)
        await it.held()
        for stream in streams:
            await stream.aclose()
        it.backend.release()
        assert await it.idle_now() == (True, 2)

    serve(story)


def test_a_request_sent_again_after_its_client_gave_up_goes_on_where_it_was(serve):
    async def story(it: Fixture) -> None:
        whole = await undisturbed(it)
        await cut_after(it, 7, head="", join_key="same")
        _, n_steps = await it.idle_now()
        assert ids(await events_of(it.replica, request("again", **JOINS))) == whole
        assert (await it.idle_now())[1] - n_steps <= N - 7

    serve(story)


def test_constrained_requests_that_are_compiled_at_the_same_time_join_as_well(serve):
    async def story(it: Fixture) -> None:
        asked = [request(f"r{i}", grammar="root ::= [a-z]+", **JOINS) for i in range(3)]
        first, *others = await asyncio.gather(*(events_of(it.replica, one) for one in asked))
        # who joined later than the first token has the first ones in one event
        assert [whole_of(events) for events in others] == [whole_of(first)] * 2, "its statistics, too"

    serve(story)
