"""A client that finds what replicas have recorded and reads it again. No Ray runs."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from deployments.config import FailoverPolicy
from deployments.http.errors import StreamNotResumable
from deployments.http.ports import RecordedReply
from deployments.model import client as client_module
from deployments.model.client import ModelClient
from erllama.errors import EngineStopped
from erllama.events import CacheHitKind, Done, Event, Failed, FinishReason, RequestStats, Tokens
from erllama.request import GenerationRequest, SamplingParams

LIMITS = FailoverPolicy(max_attempts=4, timeout_s=30, backoff_s=0.001)
WHOLE: list[Event] = [
    *(Tokens((n,), str(n)) for n in range(6)),
    Done(RequestStats(1, 6, 0, 0.0, 1.0, 1.0, CacheHitKind.COLD, FinishReason.STOP), "key"),
]
FOUND = RecordedReply("replica-7", "r~r2", 2, "head", 99)


class Response:
    def __init__(self, messages: list[Any]) -> None:
        self._messages = iter(messages)

    def cancel(self) -> None:
        pass

    async def __anext__(self) -> Any:
        message = next(self._messages, StopAsyncIteration())
        if isinstance(message, BaseException):
            raise message
        return message


class Handle:
    """`script` gives what each call gets; `calls` are their methods and arguments."""

    def __init__(self, *script: list[Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._script = iter(script)

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            def remote(self, *args: Any) -> Response:
                handle.calls.append((method, *args))
                return Response(next(handle._script))

        return Method()


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest("other", (1,), SamplingParams(), max_tokens=6, keep_s=60.0, head="head", **more)


def singly(events: list[Event]) -> list[list[Event]]:
    return [[event] for event in events]


def resumed(handle: Handle) -> list[Event]:
    async def story() -> list[Event]:
        lists = ModelClient.of(handle, failover=LIMITS).resume(FOUND, request())
        return [event async for events in lists for event in events]

    return asyncio.run(story())


def test_what_is_recorded_is_read_from_the_replica_that_has_it():
    handle = Handle([[], *singly(WHOLE)])
    assert resumed(handle) == WHOLE
    assert handle.calls == [("attach", "replica-7", "r~r2")]


def test_when_that_replica_dies_the_rest_is_generated_elsewhere_as_the_next_attempt_of_the_first_request():
    handle = Handle([[], *singly(WHOLE[:3]), ActorDiedError()], [[], *singly(WHOLE[3:])])
    assert [event for event in resumed(handle) if isinstance(event, Tokens)] == WHOLE[:-1]
    method, sent, delivered = handle.calls[1]
    assert (method, sent.request_id, sent.resumed, sent.sampling.seed) == ("generate", "r~r3", (0, 1, 2), 99)
    assert delivered == tuple(WHOLE[:3])


def test_a_call_that_chance_brought_to_another_replica_is_made_again():
    elsewhere = [[Failed(StreamNotResumable("not here"))]]
    handle = Handle(elsewhere, elsewhere, [[], *singly(WHOLE)])
    assert resumed(handle) == WHOLE
    assert len(handle.calls) == 3


def test_but_not_forever():
    handle = Handle(*[[[Failed(StreamNotResumable("not here"))]]] * 99)
    (last,) = resumed(handle)
    assert isinstance(last, Failed)
    assert isinstance(last.error, StreamNotResumable)
    assert len(handle.calls) < 20


@pytest.mark.parametrize("keep_s", [0.0, 60.0])
def test_the_next_attempt_of_a_reply_that_is_kept_gets_the_events_of_the_first_and_of_another_the_ids_alone(keep_s):
    handle = Handle([[], *singly(WHOLE[:2]), ActorDiedError()], [[], *singly(WHOLE[2:])])

    async def story() -> None:
        one = GenerationRequest("r", (1,), SamplingParams(), keep_s=keep_s)
        async for _ in ModelClient.of(handle, failover=LIMITS).generate(one):
            pass

    asyncio.run(story())
    assert handle.calls[1][1].resumed == (0, 1)
    assert handle.calls[1][2:] == ((tuple(WHOLE[:2]),) if keep_s else ())


class Broadcast:
    """`answers` of replicas: None for nothing recorded, "hang" for one that does not answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []

    def options(self, **_: Any) -> "Broadcast":
        return self

    def broadcast(self, *call: Any) -> "Broadcast":
        self.asked.append(call)
        return self

    async def _fetch_replica_results_async(self) -> list[Any]:
        return [Answer(answer) for answer in self.answers]


class Answer:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def cancel(self) -> None:
        pass

    async def get_async(self) -> Any:
        if self.answer == "hang":
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], None),
        ([None, None], None),
        ([None, FOUND, RecordedReply("a", "r", 1, "head", 99)], FOUND),
        (["hang", FOUND, EngineStopped("gone")], FOUND),
        (["hang", ActorDiedError()], None),
    ],
    ids=str,
)
def test_the_last_attempt_is_found_whatever_hangs_or_dies(answers, expected, monkeypatch):
    monkeypatch.setattr(client_module, "FIND_S", 0.05)
    handle = Broadcast(*answers)
    assert asyncio.run(ModelClient.of(handle).find("r")) == expected
    assert handle.asked == [("recorded", "r")]
