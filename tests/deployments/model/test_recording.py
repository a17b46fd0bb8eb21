"""A recording loses nothing, keeps the order, and is the same for all its readers; the collection
keeps within its bounds.
"""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.model.recording import Recording, RecordingState
from deployments.model.recordings import Recordings
from erllama.errors import EngineStopped
from erllama.events import CacheHitKind, Done, Event, Failed, FinishReason, RequestStats, Tokens
from erllama.request import GenerationRequest, SamplingParams

A, B, C = (Tokens((i,), str(i)) for i in range(3))


def request(name: str = "r", *, keep_s: float = 60.0, head: str = "h", n_prompt: int = 1, **more) -> GenerationRequest:
    return GenerationRequest(name, (1,) * n_prompt, SamplingParams(seed=1), keep_s=keep_s, head=head, **more)


def done(reason: FinishReason = FinishReason.STOP) -> Done:
    return Done(RequestStats(1, 1, 0, 0.0, 1.0, 1.0, CacheHitKind.COLD, reason), "key")


CANCELLED = done(FinishReason.CANCELLED)


def ids(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.ids]


# --- one reader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_s", [0.0, 60.0])
def test_a_reader_gets_what_came_before_it_looked_in_order_and_once(keep_s):
    async def main() -> None:
        recording = Recording(request(keep_s=keep_s))
        reader = recording.open(0)
        recording.push(A)
        recording.push(B)
        assert await reader.take() == [Tokens((0, 1), "01")]
        waiting = asyncio.create_task(reader.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        recording.push(C)
        recording.push(done())
        assert await waiting == [C, done()]
        assert reader.at_end

    asyncio.run(main())


def test_a_reader_that_gives_up_loses_nothing():
    async def main() -> None:
        recording = Recording(request())
        reader = recording.open(0)
        for woken in (False, True):
            waiting = asyncio.create_task(reader.take())
            await asyncio.sleep(0)
            if woken:
                recording.push(A)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await reader.take() == [A]

    asyncio.run(main())


def test_what_is_only_passed_on_takes_no_memory_once_it_is_read():
    async def main() -> None:
        recording = Recording(request(keep_s=0.0))
        reader, idle = recording.open(0), recording.n_bytes
        for _ in range(3):
            recording.push(A)
            await reader.take()
        assert recording.n_bytes == idle

    asyncio.run(main())


# --- the states -----------------------------------------------------------------------------------


def test_the_last_reader_that_leaves_a_running_request_has_it_cancelled_and_no_other():
    recording = Recording(request())
    first, second = recording.open(0), recording.open(0)
    assert [recording.close(first), recording.close(first), recording.close(second), recording.close(second)] == [
        False,
        False,
        True,
        False,
    ]
    assert recording.state is RecordingState.STOPPING
    ended = Recording(request())
    reader = ended.open(0)
    ended.push(done())
    assert not ended.close(reader)


def test_a_cancelled_request_goes_on_after_its_tokens_without_the_text_that_it_held_back():
    recording = Recording(request(resumed=(7, 8)), [Tokens((8,), "8")])
    reader = recording.open(1)
    recording.push(A)
    assert recording.close(reader)
    recording.push(B)
    recording.push(Tokens((), "held back"))
    recording.push(CANCELLED)
    assert recording.state is RecordingState.STOPPED
    rest = recording.rest()
    assert rest.resumed == (7, 8, 0, 1)
    assert rest.request_id != "r"
    recording.went_on(rest)
    recording.push(C)
    recording.push(done())

    async def whole() -> list[Event]:
        return await recording.open(0).take()

    assert asyncio.run(whole()) == [Tokens((8,), "8"), Tokens((0, 1, 2), "012"), done()]


def test_a_reader_of_a_request_that_is_being_cancelled_learns_that_it_has_stopped():
    async def main() -> None:
        recording = Recording(request())
        recording.push(A)
        recording.close(recording.open(0))
        late = recording.open(0)
        assert await late.take() == [A]
        waiting = asyncio.create_task(late.take())
        await asyncio.sleep(0)
        recording.push(CANCELLED)
        assert await waiting == []
        assert not late.at_end
        assert recording.state is RecordingState.STOPPED

    asyncio.run(main())


@pytest.mark.parametrize("last", [CANCELLED, done()])
def test_a_cancel_that_somebody_asked_for_and_an_end_that_came_first_are_ends(last):
    recording = Recording(request())
    recording.close(recording.open(0))
    if last is CANCELLED:
        recording.end_for_good()
    recording.push(last)
    assert recording.state is RecordingState.ENDED


STEPS = st.lists(
    st.one_of(st.just("push"), st.just("open"), st.tuples(st.sampled_from(["take", "close"]), st.integers(0, 9))),
    max_size=40,
)


@given(STEPS)
def test_every_reader_sees_the_same_events_and_the_request_is_cancelled_when_none_is_left(steps):
    async def main() -> None:
        recording = Recording(request())
        readers = [(recording.open(0), [])]
        n_pushed = 0
        for step in steps:
            if step == "push":
                recording.push(Tokens((n_pushed,), "x"))
                n_pushed += 1
            elif step == "open":
                readers.append((recording.open(0), []))
            else:
                reader, seen = readers[step[1] % len(readers)]
                if step[0] == "take":
                    if reader._has_news:
                        seen += await reader.take()
                else:
                    readers.remove((reader, seen))
                    assert recording.close(reader) == (not readers)
                    if not readers:
                        break
        recording.push(Tokens((n_pushed,), "x"))
        late = recording.open(0)
        whole = await late.take()
        for reader, seen in readers:
            seen += await reader.take()
            assert seen == whole, "the events have the same borders for all"
        assert ids(whole) == list(range(n_pushed + 1))

    asyncio.run(main())


# --- the collection -------------------------------------------------------------------------------


def ended(recordings: Recordings, name: str, last: Event | None = None, **more) -> Recording:
    recording = Recording(request(name, **more))
    recordings.add(recording)
    reader = recordings.open(recording)
    recordings.push(name, A)
    recordings.push(name, last or done())
    assert not recordings.close(recording, reader)
    return recording


def stopped(recordings: Recordings, name: str, **more) -> Recording:
    recording = Recording(request(name, **more))
    recordings.add(recording)
    reader = recordings.open(recording)
    recordings.push(name, A)
    assert recordings.close(recording, reader)
    recordings.push(name, CANCELLED)
    return recording


def test_what_is_kept_goes_a_while_after_its_last_reader():
    now = 0.0
    recordings = Recordings(clock=lambda: now)
    one = ended(recordings, "one")
    two = stopped(recordings, "two", keep_s=90.0)
    now = 59.0
    reader = recordings.open(one)
    now = 61.0
    assert (recordings.find("one"), recordings.find("two")) == (one, two)
    recordings.close(one, reader)
    now = 120.0
    assert (recordings.find("one"), recordings.find("two")) == (one, None)
    now = 121.5
    assert recordings.find("one") is None
    assert (len(recordings), recordings.n_bytes, recordings.n_running) == (0, 0, 0)


@pytest.mark.parametrize(
    "more",
    [{"keep_s": 0.0}, {"head": ""}, {"last": Failed(EngineStopped("gone"))}],
    ids=["unasked", "unnamed", "failed"],
)
def test_what_nobody_can_ask_for_is_dropped_when_it_ends(more):
    recordings = Recordings()
    ended(recordings, "r", **more)
    assert (len(recordings), recordings.n_bytes, recordings.n_running) == (0, 0, 0)


def test_of_several_attempts_the_last_one_is_found_by_the_requests_id():
    recordings = Recordings()
    ended(recordings, "r~r2")
    last = ended(recordings, "r~r10")
    ended(recordings, "r")
    assert recordings.find("r") is last
    assert recordings.find("x") is None


def test_ended_replies_go_first_then_what_could_go_on_then_what_is_read():
    recordings = Recordings(max_bytes=100_000)
    running = Recording(request("running", n_prompt=300))
    recordings.add(running)
    reader = recordings.open(running)
    stopped(recordings, "stopped", n_prompt=300)
    for name in ("old", "new"):
        ended(recordings, name, n_prompt=300)
    gone = []
    for number in range(9):
        ended(recordings, f"more{number}", n_prompt=600, keep_s=1000.0)
        gone += [n for n in ("running", "stopped", "old", "new") if recordings.find(n) is None and n not in gone]
        assert recordings.n_bytes <= 100_000
    assert gone == ["old", "new"]
    for number in range(9):
        stopped(recordings, f"last{number}", n_prompt=600)
        assert recordings.n_bytes <= 100_000
    assert recordings.find("stopped") is None
    assert recordings.find("running") is running, "it is read"
    recordings.push("running", A)
    assert asyncio.run(reader.take()) == [A]


def test_one_that_grows_too_large_is_passed_on_without_being_kept():
    async def main() -> None:
        recordings = Recordings(max_bytes=40_000)
        recording = Recording(request())
        recordings.add(recording)
        reader = recordings.open(recording)
        got = []
        for number in range(100):
            recordings.push("r", Tokens((number,), "x"))
            got += await reader.take()
        assert ids(got) == list(range(100))
        assert recordings.find("r") is None
        assert recordings.n_bytes == 0
        assert recording.n_bytes < 1000, "what was read is forgotten"
        assert recordings.close(recording, reader), "and the end of its reader cancels it all the same"

    asyncio.run(main())


# --- joining --------------------------------------------------------------------------------------

KEY = {"join_key": "k", "head": ""}


def asks(**more) -> GenerationRequest:
    return request("second", **{**KEY, "joins": True, **more})


def test_a_request_joins_what_runs_or_could_go_on_under_its_key():
    recordings = Recordings()
    assert recordings.joinable(asks()) is None
    read = Recording(request("first", **KEY))
    recordings.add(read)
    recordings.open(read)
    assert recordings.joinable(asks()) is read
    left = stopped(recordings, "left", **KEY)
    assert recordings.joinable(asks()) is left, "its client may be the one who asks again"


@pytest.mark.parametrize(
    "more", [{"joins": False}, {"join_key": "other"}, {"join_key": None}, {"resumed": (1,)}], ids=str
)
def test_no_other_request_joins(more):
    recordings = Recordings()
    stopped(recordings, "first", **KEY)
    assert recordings.joinable(asks(**more)) is None


def test_nobody_joins_a_reply_that_has_ended():
    recordings = Recordings()
    ended(recordings, "first", join_key="k")
    assert recordings.joinable(asks()) is None


def test_a_cancel_by_name_ends_what_runs_and_what_could_go_on():
    recordings = Recordings()
    stopped(recordings, "r~r2")
    running = Recording(request("r"))
    recordings.add(running)
    recordings.close(running, recordings.open(running))
    assert list(recordings.cancel("r")) == ["r"]
    recordings.push("r", CANCELLED)
    assert running.state is RecordingState.ENDED
    assert recordings.find("r") is running
