"""What the engine's tests share: sequences made by hand, and an engine on the stub that is stepped
by hand under a clock of its own.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TypeVar

from cache_store import ChainKey, Store, TokenChain, root_key
from erllama.cache.flow import CacheFlow
from erllama.cache.policy import CachePolicy
from erllama.cache.read import KvReader
from erllama.cache.save import KvSaver
from erllama.config import EngineConfig
from erllama.engine.adapters import read_adapter
from erllama.engine.engine import Engine
from erllama.events import Done, Event, Failed, FinishReason, Progress, Tokens
from erllama.grammar.constraint import Constraint
from erllama.grammar.matcher import ConstraintMatcher
from erllama.request import GenerationRequest, SamplingParams
from erllama.sequence.machine import State
from erllama.sequence.sampling import TokenSampler
from erllama.sequence.sequence import Sequence
from erllama.sequence.text_stream import TextStream
from erllama.stats import AdapterInfo, AdapterSet, CacheCounters
from erllama.testing.stub_backend import StubBackend

T = TypeVar("T")

NS_PER_MS = 1_000_000
ROOT = root_key("tests")
TRANSCRIPT_ROOT = root_key("transcripts of tests")


def adapter_set(*names: str) -> AdapterSet:
    return tuple(AdapterInfo(name, "", name, 1.0) for name in names)


def make_sequence(
    name: str = "s",
    *,
    state: State = State.QUEUED,
    n_prompt: int = 4,
    n_kv: int = 0,
    n_generated: int = 0,
    seq_id: int | None = None,
    adapters: AdapterSet = (),
    tokens: Iterable[int] | None = None,
    root: ChainKey = ROOT,
) -> Sequence:
    """`tokens`, if given, are prompt and reply; else `n_prompt` and `n_generated` times the same
    one.
    """
    tokens = [97] * (n_prompt + n_generated) if tokens is None else list(tokens)
    return Sequence(
        request=GenerationRequest(name, tuple(tokens[: len(tokens) - n_generated])),
        given=TokenChain(root, tokens[: len(tokens) - n_generated]),
        n_ctx=4096,
        adapters=adapters,
        sampler=TokenSampler(SamplingParams(seed=0), tokens),
        text=TextStream(),
        tokens=tokens,
        submitted_ns=0,
        state=state,
        seq_id=seq_id,
        n_kv=n_kv,
    )


def request(name: str, prompt: str | Iterable[int] = "hello", *, seed: int = 1, **params: object) -> GenerationRequest:
    """A request with a fixed seed. Sampling parameters and those of the request are told apart by
    name.
    """
    sampling = {key: params.pop(key) for key in list(params) if key in SamplingParams.__dataclass_fields__}
    tokens = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
    return GenerationRequest(name, tokens, sampling=SamplingParams(seed=seed, **sampling), **params)  # type: ignore[arg-type]


def root_of(adapters: AdapterSet) -> ChainKey:
    return root_key(repr(adapters)) if adapters else ROOT


class Clock:
    """Each reading is a millisecond after the last."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        self.ns += NS_PER_MS
        return self.ns


@dataclass
class Rig:
    """An engine, its stub, and everything it delivered."""

    engine: Engine
    backend: StubBackend
    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    deliveries: list[list[tuple[str, Event]]] = field(default_factory=list)

    def take(self, events: list[tuple[str, Event]]) -> None:
        self.deliveries.append(events)
        for name, event in events:
            self.events[name].append(event)

    def submit(self, *requests: GenerationRequest) -> None:
        for one in requests:
            self.engine.validate(one)
            self.engine.submit(one)

    def submit_unchecked(self, *requests: GenerationRequest) -> None:
        """What `validate` would refuse."""
        for one in requests:
            self.engine.submit(one)

    def load_adapter(self, path: str) -> str:
        return self.engine.adapters.load(read_adapter(path, self.backend))

    def kept_matchers(self) -> list[weakref.ref[ConstraintMatcher]]:
        """The matchers of the requests that are submitted from now on, each as long as something
        holds it.
        """
        matchers: list[weakref.ref[ConstraintMatcher]] = []
        make = self.backend.grammars.matcher

        def noted(constraint: Constraint) -> ConstraintMatcher:
            matcher = make(constraint)
            matchers.append(weakref.ref(matcher))
            return matcher

        self.backend.grammars.matcher = noted  # type: ignore[method-assign]
        return matchers

    def step(self, times: int = 1) -> bool:
        """Steps, each followed by every check there is. True if the last one decoded."""
        busy = False
        for _ in range(times):
            busy = self.engine.step()
            self.check()
        return busy

    def run(self, limit: int = 2000) -> int:
        """Step until nothing is left to do; the number of steps that decoded."""
        for n in range(limit):
            if not self.step():
                return n
        raise AssertionError(f"not idle after {limit} steps")

    def prefill(self, limit: int = 100) -> None:
        """Step until every running sequence generates. Prompts are computed one after the other,
        with the others' tokens in between.
        """
        for _ in range(limit):
            self.step()
            if not self.engine.stats.n_prefilling:
                return
        raise AssertionError(f"still prefilling after {limit} steps")

    def check(self) -> None:
        self.engine.check_integrity()
        stats = self.engine.stats
        assert stats.n_free_seq_ids + stats.n_running == stats.n_parallel
        assert self.backend.kv == self.believed()
        assert sum(map(len, self.backend.kv)) == stats.kv_tokens + stats.idle_kv_tokens
        for events in self.events.values():
            assert not any(isinstance(event, Done | Failed) for event in events[:-1]), "an event after the last one"
            told = [event for event in events if isinstance(event, Progress)]
            assert events[: len(told)] == told, "progress behind a token"
            assert all(one.cached <= one.processed <= one.total for one in told)
            assert all(a.processed < b.processed and a.cached == b.cached for a, b in pairwise(told))

    def believed(self) -> list[list[int]]:
        """The KV of every id as the engine has it in its books: of those that run, and of those
        that have ended.
        """
        held = {seq_id: held.chain.ids for seq_id, held in self.engine._flow.live.held.items()}
        held |= {sequence.id: sequence.kv.ids for sequence in self.engine._admission.running}
        return [held[seq_id].tolist() if seq_id in held else [] for seq_id in range(len(self.backend.kv))]

    def computed(self, since: int = 0) -> int:
        """Tokens that were decoded since the plan of that number."""
        return sum(n_tokens for plan in self.backend.plans[since:] for _, _, n_tokens in plan)

    def text(self, name: str) -> str:
        return "".join(event.text for event in self.events[name] if isinstance(event, Tokens))

    def ids(self, name: str) -> list[int]:
        return [token for event in self.events[name] if isinstance(event, Tokens) for token in event.ids]

    def done(self, name: str) -> Done:
        end = self.events[name][-1]
        assert isinstance(end, Done), end
        return end

    def error(self, name: str) -> Exception:
        end = self.events[name][-1]
        assert isinstance(end, Failed), end
        return end.error

    def reason(self, name: str) -> FinishReason:
        return self.done(name).stats.finish_reason

    def ended(self, name: str) -> bool:
        return bool(self.events[name]) and isinstance(self.events[name][-1], Done | Failed)


class Inline(Executor):
    """Runs what is submitted before `submit` returns."""

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class OnCall(Executor):
    """Runs what was submitted when `run` is called."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        self.jobs.append(partial(fn, *args, **kwargs))
        return Future()

    def run(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


def make_rig(
    backend: StubBackend | None = None,
    *,
    store: Store | None = None,
    policy: CachePolicy | None = None,
    executor: Executor | None = None,
    **settings: object,
) -> Rig:
    """`settings` are those of `EngineConfig`; the stub never ends a reply by itself unless another
    one is given.

    With a `store` reads run at once, on the engine's thread, unless another `executor` is given.
    """
    config = EngineConfig(
        path="stub", **{"n_ctx": 256, "n_batch": 64, "prefill_slice": 16, "stream_interval_ms": 0, **settings}
    )  # type: ignore[arg-type]
    backend = backend or StubBackend(config.n_ctx, config.n_parallel, reply_tokens=0)
    flow = make_flow(
        backend,
        policy or CachePolicy(),
        store,
        executor or Inline(),
        config.fixed_slice if config.deterministic else 1,
        keeps_reasoning=config.keep_sampled_reasoning,
    )
    rig: Rig
    engine = Engine(backend, config, lambda events: rig.take(events), flow=flow, root_of=root_of, clock=Clock())
    rig = Rig(engine, backend)
    return rig


def make_flow(
    backend: StubBackend,
    policy: CachePolicy,
    store: Store | None,
    executor: Executor,
    align: int,
    *,
    keeps_reasoning: bool = False,
) -> CacheFlow:
    counts = CacheCounters()
    if store is None:
        return CacheFlow(backend, policy, counts, align=align)
    reader = KvReader(backend, store, policy, executor=executor, wake=lambda: None, align=align)
    saver = KvSaver(
        backend,
        store,
        policy,
        counts,
        transcript_root=TRANSCRIPT_ROOT,
        keeps_reasoning=keeps_reasoning,
        clock=lambda: 1e9,
    )
    return CacheFlow(backend, policy, counts, reader=reader, saver=saver, align=align)
