"""The clients over a handle that breaks in every way that Ray's do. No Ray runs."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from deployments.config import FailoverPolicy
from deployments.generation.fan_out import fan_out
from deployments.jobs.loop_thread import LoopThread
from deployments.jobs.remote_model import RemoteModel
from deployments.model.client import ModelClient
from deployments.model.ray_errors import ModelUnavailable
from deployments.model.states import LoadState, Phase
from deployments.routing.prompt import prompt_of
from erllama.errors import EngineStopped, InvalidParameter, QueueFull
from erllama.events import CacheHitKind, Done, Event, Failed, FinishReason, RequestStats, Tokens
from erllama.request import GenerationRequest, SamplingParams
from tests.support.http_fakes import app_of, http_client, served

LIMITS = FailoverPolicy(max_attempts=4, timeout_s=30, backoff_s=0.001)
REPLY = tuple(range(100, 112))

GONE: list[Callable[[], BaseException]] = [
    ActorDiedError,
    lambda: ActorUnavailableError("unavailable", b"\0" * 16),
    asyncio.CancelledError,
    lambda: RequestCancelledError("id"),
    grpc.RpcError,
    lambda: RuntimeError("Unexpected error (StatusCode.CANCELLED): CANCELLED."),
    lambda: RayTaskError("generate", "traceback", asyncio.CancelledError()),  # type: ignore[arg-type]
    lambda: EngineStopped("shutting down"),
]
NAMES = ["died", "unavailable", "cancelled", "request cancelled", "grpc", "unexpected", "task cancelled", "stopped"]


class Response:
    """A streaming response: the messages of a replica, then what it ends with. At "hang" it says
    nothing more until it is cancelled, which ends it with Serve's error.
    """

    def __init__(self, messages: list[Any]) -> None:
        self._messages = iter(messages)
        self._no_more = asyncio.Event()
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self._no_more.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            message = next(self._messages)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(message, BaseException):
            raise message
        if message == "hang":
            await self._no_more.wait()
            raise RequestCancelledError("id")
        return message


class Handle:
    """`script(request, number)` gives the messages of each attempt. `answers` are those of calls for
    one, in order, after a heartbeat; "hang" comes never, at "mute" there is no heartbeat either.
    """

    def __init__(
        self, script: Callable[[GenerationRequest, int], list[Any]] | None = None, answers: list[Any] | None = None
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.responses: list[Response] = []
        self.refs: list[str] = []  # of calls for one answer
        self._script = script
        self._answers = iter(answers or [])

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, method: str) -> Any:
        return self

    def remote(self, *args: Any) -> Any:
        if self._script is None:
            answer = next(self._answers)
            self.refs.append(args[0])
            last = answer if isinstance(answer, BaseException) or answer in ("hang", "mute") else [answer]
            self.responses.append(Response(["hang"] if last == "mute" else [[], last]))
            return self.responses[-1]
        self.requests.append(args[0])
        self.responses.append(Response(self._script(args[0], len(self.requests))))
        return self.responses[-1]


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest("r", (1, 2, 3), SamplingParams(seed=1), **more)


def done(n: int, reason: FinishReason = FinishReason.LENGTH) -> Done:
    return Done(RequestStats(3, n, 0, 0.0, 1.0, 1.0, CacheHitKind.COLD, reason), "key")


async def turn() -> None:
    await asyncio.sleep(0)


def rest(sent: GenerationRequest) -> list[list[Event]]:
    """What a replica sends that takes `sent` over: the reply after what was delivered."""
    return [*([Tokens((token,), chr(token))] for token in REPLY[len(sent.resumed) :]), [done(len(REPLY))]]


def breaking(*cuts: int, by: Callable[[], BaseException]) -> Callable[[GenerationRequest, int], list[Any]]:
    """Attempt n dies after `cuts[n]` messages; the one after the last cut goes through."""

    def script(sent: GenerationRequest, number: int) -> list[Any]:
        messages: list[Any] = rest(sent)
        return messages if number > len(cuts) else [*messages[: cuts[number - 1]], by()]

    return script


async def collect(handle: Handle, limits: FailoverPolicy = LIMITS, **more: Any) -> list[Event]:
    async with aclosing(ModelClient.of(handle, failover=limits).generate(request(**more))) as lists:
        return [event async for events in lists for event in events]


@pytest.fixture
def remote() -> Iterator[Callable[..., RemoteModel]]:
    """Makes blocking clients."""
    loop = LoopThread()

    def of(handle: Handle, **options: Any) -> RemoteModel:
        return RemoteModel(ModelClient.of(handle, **{"failover": LIMITS, **options}), loop=loop)

    yield of
    loop.close()


def collect_sync(model: RemoteModel) -> list[Event]:
    return [event for events in model.generate(request()) for event in events]


def reply(events: list[Event]) -> tuple[tuple[int, ...], str]:
    tokens = [event for event in events if isinstance(event, Tokens)]
    return tuple(token for event in tokens for token in event.ids), "".join(event.text for event in tokens)


WHOLE = (REPLY, "".join(map(chr, REPLY)))


@pytest.mark.parametrize("by", GONE, ids=NAMES)
@pytest.mark.parametrize("cuts", [(0,), (5,), (len(REPLY),), (3, 0, 4)])
def test_a_reply_is_whole_and_nothing_comes_twice_however_its_replicas_die(by, cuts, remote):
    for run in (lambda handle: asyncio.run(collect(handle)), lambda handle: collect_sync(remote(handle))):
        handle = Handle(breaking(*cuts, by=by))
        events = run(handle)
        assert reply(events) == WHOLE
        assert isinstance(events[-1], Done)
        assert events[-1].stats.completion_tokens == len(REPLY)
        assert len(handle.requests) == len(cuts) + 1
        assert all(response.cancelled for response in handle.responses[:-1]), (
            "an attempt that may still run somewhere is cancelled"
        )


def test_a_failure_that_arrives_as_an_event_lets_the_request_fail_over_as_well():
    handle = Handle(lambda sent, n: [[Tokens(REPLY[:2], "de"), Failed(EngineStopped("bye"))]] if n == 1 else rest(sent))
    assert reply(asyncio.run(collect(handle))) == WHOLE
    assert handle.requests[1].resumed == REPLY[:2]


QUICK = LIMITS.model_copy(update={"silence_s": 0.01})


@pytest.mark.parametrize("n_before", [0, 1, 4])
def test_a_replica_that_falls_silent_is_left_for_another_one(n_before):
    """In the middle of a stream, after the heartbeat that says it has the request, and before."""

    def script(sent: GenerationRequest, number: int) -> list[Any]:
        return [*[[], *rest(sent)][:n_before], "hang"] if number == 1 else [[], *rest(sent)]

    async def story() -> None:
        handle = Handle(script)
        client = ModelClient.of(handle, failover=QUICK, load_state=lambda: LoadState(Phase.READY))
        async with aclosing(client.generate(request())) as lists:
            events = [event async for events in lists for event in events]
        assert reply(events) == WHOLE
        assert [response.cancelled for response in handle.responses] == [True, False]
        assert handle.requests[1].resumed == REPLY[: max(0, n_before - 1)]
        assert [sent.waits_for_others for sent in handle.requests] == [True, False]

    asyncio.run(story())


def test_heartbeats_are_no_silence_and_reach_nobody():
    handle = Handle(lambda sent, n: [[], [], *rest(sent)[:5], [], *rest(sent)[5:]])
    assert reply(asyncio.run(collect(handle, QUICK))) == WHOLE
    assert len(handle.requests) == 1


def test_a_call_that_serve_holds_back_is_no_silence():
    async def story() -> None:
        states = iter([Phase.LOADING, Phase.ASLEEP])
        asked = asyncio.Event()

        def load_state() -> LoadState:
            phase = next(states, None)
            if phase is None:
                loop.call_soon_threadsafe(asked.set)
            return LoadState(phase or Phase.LOADING)

        loop = asyncio.get_running_loop()
        handle = Handle(lambda sent, n: ["hang"])
        client = ModelClient.of(handle, failover=QUICK, load_state=load_state)
        lists = client.generate(request())
        waiting = asyncio.ensure_future(anext(lists))
        await asked.wait()
        assert not waiting.done()
        waiting.cancel()
        assert len(handle.requests) == 1

    asyncio.run(story())


def test_a_stream_that_just_ends_is_no_reply(remote):
    handle = Handle(lambda sent, n: rest(sent)[:4] if n == 1 else rest(sent))
    assert reply(asyncio.run(collect(handle))) == WHOLE
    handle = Handle(lambda sent, n: rest(sent)[:4] if n == 1 else rest(sent))
    assert reply(collect_sync(remote(handle))) == WHOLE


def test_tries_are_bounded_and_the_last_error_is_the_end(remote):
    handle = Handle(lambda sent, n: [ActorDiedError()])
    for events in (asyncio.run(collect(handle)), collect_sync(remote(Handle(lambda sent, n: [ActorDiedError()])))):
        (last,) = events
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineStopped)
        assert last.error.retry_after_s
    assert len(handle.requests) == LIMITS.max_attempts


def test_a_retry_that_nobody_answers_is_given_up():
    handle = Handle(lambda sent, n: [ActorDiedError()] if n == 1 else ["hang"])
    (last,) = asyncio.run(collect(handle, FailoverPolicy(timeout_s=0.05)))
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineStopped)
    assert handle.responses[-1].cancelled


@pytest.mark.parametrize("error", [InvalidParameter("x"), QueueFull("full")])
def test_what_is_the_requests_own_fault_is_not_tried_again(error):
    handle = Handle(lambda sent, n: [[Failed(error)]])
    assert asyncio.run(collect(handle)) == [Failed(error)]
    assert len(handle.requests) == 1


def test_a_model_that_serve_has_given_up_on_is_not_tried_again():
    handle = Handle(lambda sent, n: [DeploymentUnavailableError(DeploymentID("m"))])
    (last,) = asyncio.run(collect(handle))
    assert isinstance(last, Failed)
    assert last.error.http_status == 503
    assert len(handle.requests) == 1


def test_back_pressure_is_a_full_queue():
    (last,) = asyncio.run(
        collect(Handle(lambda sent, n: [BackPressureError(num_queued_requests=1, max_queued_requests=1)]))
    )
    assert isinstance(last, Failed)
    assert isinstance(last.error, QueueFull)


def test_a_bug_is_not_taken_for_a_dead_replica():
    with pytest.raises(RuntimeError, match="bug"):
        asyncio.run(collect(Handle(lambda sent, n: [RuntimeError("bug")])))


@pytest.mark.parametrize("dies_first", [False, True])
def test_a_consumer_that_is_cancelled_cancels_the_attempt_that_runs(dies_first):
    async def story() -> None:
        handle = Handle(lambda sent, n: [ActorDiedError()] if dies_first and n == 1 else ["hang"])
        task = asyncio.create_task(collect(handle))
        while len(handle.requests) < 1 + dies_first:
            await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(handle.requests) == 1 + dies_first
        assert handle.responses[-1].cancelled

    asyncio.run(story())


def test_leaving_the_generator_cancels_the_attempt_that_runs(remote):
    async def story() -> None:
        handle = Handle(breaking(2, by=ActorDiedError))
        async with aclosing(ModelClient.of(handle, failover=LIMITS).generate(request())) as lists:
            for _ in range(4):
                await anext(lists)
        assert len(handle.requests) == 2
        assert handle.responses[-1].cancelled

    asyncio.run(story())
    handle = Handle(lambda sent, n: [*rest(sent)[:2], ActorDiedError() if n == 1 else "hang"])
    lists = remote(handle).generate(request())
    for _ in range(4):
        next(lists)
    lists.close()
    assert len(handle.requests) == 2
    assert handle.responses[-1].cancelled


def test_complete_and_prefill_go_on_elsewhere_as_well(remote):
    assert remote(Handle(breaking(5, by=ActorDiedError))).complete([1, 2, 3], response_tokens=12).tokens == REPLY
    client = ModelClient.of(Handle(breaking(5, by=ActorDiedError)), failover=LIMITS)
    assert asyncio.run(client.complete([1, 2, 3], response_tokens=12)).text == WHOLE[1]
    handle = Handle(lambda sent, n: [ActorDiedError()] if n == 1 else [[done(0)]])
    assert remote(handle).prefill_only([1, 2]).tokens == ()
    assert [sent.max_tokens for sent in handle.requests] == [0, 0]


def test_a_wrong_parameter_is_refused_before_anything_is_sent(remote):
    handle = Handle(lambda sent, n: [])
    with pytest.raises(InvalidParameter, match="temperature"):
        remote(handle).complete([1], temperature=-1)
    with pytest.raises(InvalidParameter, match="temperature"):
        asyncio.run(ModelClient.of(handle).complete([1], temperature=-1))
    assert handle.requests == []


@pytest.mark.parametrize("by", GONE, ids=NAMES)
def test_calls_that_change_nothing_are_made_again(by, remote):
    assert remote(Handle(answers=[by(), [[0.5]]])).embed([1]) == [0.5]
    assert asyncio.run(ModelClient.of(Handle(answers=[by(), [[0.5]]]), failover=LIMITS).embed([[1]])) == [[0.5]]


@pytest.mark.parametrize("first", ["hang", "mute"])
def test_a_call_whose_replica_falls_silent_is_made_again_elsewhere(first):
    async def story() -> None:
        handle = Handle(answers=[first, [[0.5]]])
        client = ModelClient.of(handle, failover=QUICK, load_state=lambda: LoadState(Phase.READY))
        assert await client.embed([[1]]) == [[0.5]]
        assert [response.cancelled for response in handle.responses] == [True, False]
        tried = [prompt_of("answer", (ref, "embed", (), {}), 8) for ref in handle.refs]
        assert [prompt.attempt for prompt in tried] == [1, 2], "the router would not know where it has failed"
        assert tried[0].request == tried[1].request != ""

    asyncio.run(story())


def test_calls_that_change_nothing_are_not_made_forever(remote):
    with pytest.raises(EngineStopped):
        remote(Handle(answers=[ActorDiedError()] * 4)).embed([1])
    with pytest.raises(EngineStopped):
        asyncio.run(ModelClient.of(Handle(answers=[ActorDiedError()] * 4), failover=LIMITS).embed([[1]]))


def test_a_reply_whose_first_answer_does_not_come_in_time_ends_as_unavailable(remote):
    async def story(handle: Handle) -> list[Event]:
        lists = ModelClient.of(handle, failover=LIMITS, timeout_s=0.01).generate(request())
        return [event async for events in lists for event in events]

    for run in (
        lambda handle: asyncio.run(story(handle)),
        lambda handle: [event for events in remote(handle, timeout_s=0.01).generate(request()) for event in events],
    ):
        handle = Handle(lambda sent, n: ["hang"])
        (last,) = run(handle)
        assert isinstance(last, Failed)
        assert isinstance(last.error, ModelUnavailable)
        assert last.error.retry_after_s
        assert [response.cancelled for response in handle.responses] == [True], (
            "Serve must not start a model for it later"
        )


def test_calls_whose_answer_does_not_come_in_time_end_as_unavailable(remote):
    handle = Handle(answers=["hang"])
    with pytest.raises(ModelUnavailable):
        asyncio.run(ModelClient.of(handle, timeout_s=0.01).tokenize("x"))
    assert handle.responses[0].cancelled
    handle = Handle(answers=["hang"])
    with pytest.raises(ModelUnavailable):
        remote(handle, timeout_s=0.01).tokenize("x")
    assert handle.responses[0].cancelled
    with pytest.raises(ModelUnavailable):
        remote(Handle(lambda sent, n: ["hang"]), timeout_s=0.01).complete([1])
    handle = Handle(lambda sent, n: ["hang"])
    with pytest.raises(ModelUnavailable):
        list(remote(handle, timeout_s=0.01).continue_("s"))
    assert handle.responses[0].cancelled


def test_when_time_is_up_after_a_failure_the_failure_is_what_is_told(remote):
    handle = Handle(answers=[ActorDiedError(), "hang"])
    with pytest.raises(EngineStopped, match="gone") as caught:
        remote(handle, timeout_s=0.05).tokenize("x")
    assert not isinstance(caught.value, ModelUnavailable)
    assert handle.responses[1].cancelled


def test_a_blocking_client_serves_many_threads_at_once(remote):
    handle = Handle(lambda sent, n: rest(sent))
    model = remote(handle)
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: model.complete([1, 2, 3], response_tokens=12).tokens, range(32)))
    assert replies == [REPLY] * 32


def test_both_clients_have_the_same_methods():
    """But for what only the ingress asks."""
    methods = {name for name in vars(ModelClient) if not name.startswith("_")}
    assert methods - set(vars(RemoteModel)) == {"of", "ready", "end_all", "find", "resume", "expect"}


def test_a_session_ends_with_its_replica(remote):
    handle = Handle(lambda sent, n: [[Tokens((1,), "x")], ActorDiedError()])
    with pytest.raises(EngineStopped):
        list(remote(handle).continue_("s"))
    assert len(handle.responses) == 1


def test_every_choice_goes_on_elsewhere_on_its_own():
    handle = Handle(breaking(4, 2, by=ActorDiedError))

    async def story() -> None:
        texts = ["", ""]
        client = ModelClient.of(handle, failover=LIMITS)
        async with aclosing(fan_out(client, [request(), GenerationRequest("q", (1,))])) as items:
            async for index, events in items:
                texts[index] += reply(events)[1]
        assert texts == [WHOLE[1]] * 2

    asyncio.run(story())


def test_a_front_that_goes_away_ends_its_streams_with_an_error():
    async def story() -> None:
        handle = Handle(lambda sent, n: [[Tokens((1,), "x")], TaskCancelledError()] if n == 1 else rest(sent))
        client = ModelClient.of(handle, failover=LIMITS)
        lists = client.generate(request())
        await anext(lists)
        bye = EngineStopped("bye")
        client.end_all(bye)
        await turn()
        assert handle.responses[0].cancelled
        assert await anext(lists) == [Failed(bye)]
        assert [events async for events in client.generate(request())] == [[Failed(bye)]]
        assert len(handle.requests) == 1

    asyncio.run(story())


def test_a_front_that_goes_away_ends_its_calls_as_well():
    async def story() -> None:
        handle = Handle(answers=["hang"])
        client = ModelClient.of(handle, failover=LIMITS)
        call = asyncio.create_task(client.embed([[1]]))
        await turn()
        bye = EngineStopped("bye")
        client.end_all(bye)
        await turn()
        assert handle.responses[0].cancelled
        with pytest.raises(EngineStopped, match="bye"):
            await call
        with pytest.raises(EngineStopped, match="bye"):
            await client.embed([[1]])
        assert len(handle.responses) == 1

    asyncio.run(story())


def test_why_there_is_no_replica_is_in_every_error():
    def no_replica(*_: Any) -> list[Any]:
        return [DeploymentUnavailableError(DeploymentID("model-demo"))]

    async def story(state: LoadState, expected: str) -> None:
        handle = Handle(no_replica, answers=no_replica())
        client = ModelClient.of(handle, failover=LIMITS, load_state=lambda: state)
        ((failed,),) = [events async for events in client.generate(request())]
        assert isinstance(failed, Failed)
        assert expected in failed.error.message
        handle = Handle(answers=no_replica())
        with pytest.raises(ModelUnavailable, match=expected):
            await ModelClient.of(handle, failover=LIMITS, load_state=lambda: state).embed([[1]])

    asyncio.run(story(LoadState(Phase.FAILED, "the disk is gone"), "cannot be loaded: the disk is gone"))
    asyncio.run(story(LoadState(Phase.LOADING), "has no replica"))


def test_a_call_that_serve_would_hold_back_for_ever_ends_with_the_reason():
    async def story() -> None:
        why = LoadState(Phase.FAILED, "the file is gone")
        client = ModelClient.of(Handle(lambda sent, n: ["hang"]), failover=QUICK, load_state=lambda: why)
        ((failed,),) = [events async for events in client.generate(request())]
        assert isinstance(failed, Failed)
        assert failed.error.message == "the model cannot be loaded: the file is gone"
        handle = Handle(answers=["mute"])
        with pytest.raises(ModelUnavailable, match="cannot be loaded: the file is gone"):
            await ModelClient.of(handle, failover=QUICK, load_state=lambda: why).embed([[1]])
        assert handle.responses[0].cancelled

    asyncio.run(story())


def test_an_error_of_ours_arrives_as_itself_and_not_as_rays_wrapper(remote):
    cause = InvalidParameter("x", param="p")
    wrapped = RayTaskError("embed", "traceback", cause).as_instanceof_cause()
    with pytest.raises(InvalidParameter) as caught:
        remote(Handle(answers=[wrapped])).embed([1])
    assert caught.value is cause


# --- through HTTP ---------------------------------------------------------------------------------


def post(handle: Handle, **more: Any) -> Any:
    async def story() -> Any:
        client = ModelClient.of(handle, failover=LIMITS)
        async with http_client(app_of(served(client))) as http:  # type: ignore[arg-type]
            return await http.post("/v1/completions", json={"model": "demo", "prompt": "abc", "max_tokens": 12, **more})

    return asyncio.run(story())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_sees_the_whole_reply_and_its_usage_whatever_died(stream):
    answer = post(
        Handle(breaking(3, 5, by=ActorDiedError)),
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
    )
    assert answer.status_code == 200
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text, usage = "".join(c["choices"][0]["text"] for c in chunks if c["choices"]), chunks[-1]["usage"]
    else:
        text, usage = answer.json()["choices"][0]["text"], answer.json()["usage"]
    assert text == WHOLE[1]
    assert usage["completion_tokens"] == len(REPLY)


@pytest.mark.parametrize("stream", [False, True])
def test_when_no_replica_takes_a_request_it_is_503_with_retry_after(stream):
    answer = post(Handle(lambda sent, n: [ActorDiedError()]), stream=stream)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "engine_stopped"


def test_when_no_replica_takes_over_a_stream_that_has_begun_an_error_event_ends_it():
    answer = post(
        Handle(lambda sent, n: [*rest(sent)[:3], ActorDiedError()] if n == 1 else [ActorDiedError()]), stream=True
    )
    assert answer.status_code == 200
    *_, last = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    assert json.loads(last[6:])["error"]["code"] == "engine_stopped"
