"""The engine under random submits, cancels, steps and adapters: it never loses an id, and every
request ends exactly once.
"""

import shutil
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_store import Store, StoreConfig, TierConfig
from erllama.cache.policy import CachePolicy
from erllama.errors import InvalidParameter
from erllama.events import Done, Failed, Tokens
from erllama.kv.layout import KvKind
from erllama.request import GenerationRequest
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import OnCall, Rig, make_rig, request

FAIL = 7
N_CTX = 64
POLICY = CachePolicy(
    min_tokens=4,
    cold_min_tokens=4,
    boundary_trim_tokens=2,
    continued_interval=5,
    restore_min_tokens=3,
    restore_always=True,
    share_wait_s=0,
)


class ImpatientStub(StubBackend):
    """Its decodes that hang are aborted at once."""

    def _wait_for_abort(self) -> None:
        return


class EngineMachine(RuleBasedStateMachine):
    rig: Rig

    def __init__(self) -> None:
        super().__init__()
        # digits alone: the stub refuses adapters with "bad" in their path
        self.folder = Path(tempfile.gettempdir(), f"erllama-{uuid.uuid4().int}")
        self.folder.mkdir()
        self.submitted: list[str] = []
        self.asked: list[GenerationRequest] = []
        self.wanted: dict[str, int | None] = {}
        self.handles: list[str] = []
        self.store: Store | None = None
        self.reads = OnCall()

    @initialize(
        n_parallel=st.integers(1, 3),
        deterministic=st.booleans(),
        reply_tokens=st.sampled_from([0, 8]),
        kind=st.sampled_from(KvKind),
        with_store=st.booleans(),
        speculation=st.sampled_from(["exact", "off"]),
    )
    def start(
        self, n_parallel: int, deterministic: bool, reply_tokens: int, kind: KvKind, with_store: bool, speculation: str
    ) -> None:
        backend = ImpatientStub(N_CTX, n_parallel, reply_tokens=reply_tokens, fail_tokens=frozenset({FAIL}), kind=kind)
        if with_store and kind is not KvKind.OPAQUE:
            self.store = Store(StoreConfig(tiers=(TierConfig(f"memory://{uuid.uuid4()}"),)))
        self.rig = make_rig(
            backend,
            store=self.store,
            policy=POLICY,
            executor=self.reads,
            n_ctx=N_CTX,
            n_parallel=n_parallel,
            n_batch=32,
            long_prompt_tokens=40,
            deterministic=deterministic,
            speculation=speculation,
        )

    @rule(
        n_prompt=st.integers(1, N_CTX - 1),
        max_tokens=st.none() | st.integers(0, 20),
        seed=st.integers(0, 5),
        extra=st.sampled_from("-sglepd"),
        session_id=st.sampled_from([None, None, "one", "two"]),
        place=st.sampled_from([{}, {"tenant": "a"}, {"tenant": "b"}, {"priority": 1}, {"tenant": "a", "priority": -1}]),
    )
    def submit(
        self,
        n_prompt: int,
        max_tokens: int | None,
        seed: int,
        extra: str,
        session_id: str | None,
        place: dict[str, object],
    ) -> None:
        name = f"r{len(self.submitted)}"
        params = {
            "-": {},
            "s": {"stop": ("e", "th", "an")},
            "g": {"grammar": 'root ::= "some text"'},
            "l": {"logprobs": 2},
            "e": {"ignore_eos": True, "temperature": 0.0},
            "p": {"report_progress": True},
            "d": {"prediction": tuple(b"etaoin shrdlu"), "temperature": 100.0},
        }[extra]
        self.submitted.append(name)
        self.wanted[name] = max_tokens
        self.asked.append(
            request(name, "x" * n_prompt, max_tokens=max_tokens, seed=seed, session_id=session_id, **params, **place)
        )
        self.rig.submit(self.asked[-1])

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """Whether the earlier run goes on here or has ended."""
        earlier = data.draw(st.sampled_from(self.asked))
        name = f"r{len(self.submitted)}"
        self.submitted.append(name)
        self.wanted[name] = (
            None if earlier.max_tokens is None else earlier.max_tokens - len(self.rig.ids(earlier.request_id))
        )
        self.rig.submit(replace(earlier, request_id=name, resumed=tuple(self.rig.ids(earlier.request_id))))

    @rule(n_prompt=st.integers(1, N_CTX))
    def restore_only(self, n_prompt: int) -> None:
        name = f"r{len(self.submitted)}"
        self.submitted.append(name)
        self.wanted[name] = 0
        self.rig.submit(request(name, "x" * n_prompt, max_tokens=0, restore_only=True))

    @rule()
    def submit_one_that_fails_to_decode(self) -> None:
        self.submitted.append(f"r{len(self.submitted)}")
        self.rig.submit(request(self.submitted[-1], [1, FAIL]))

    @rule()
    def submit_one_with_a_bad_grammar(self) -> None:
        self.submitted.append(f"r{len(self.submitted)}")
        self.rig.submit_unchecked(request(self.submitted[-1], grammar="nonsense"))

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.rig.engine.cancel(data.draw(st.sampled_from(self.submitted)))

    @rule()
    def read(self) -> None:
        self.reads.run()

    @rule(session_id=st.sampled_from(["one", "two"]), drop=st.booleans())
    def end_session(self, session_id: str, drop: bool) -> None:
        self.rig.engine.end_session(session_id, drop=drop)

    @rule()
    def evict(self) -> None:
        needed = self.rig.backend.has_context and not self.rig.engine.idle
        self.rig.engine.evict()
        assert self.rig.backend.has_context >= needed

    @rule()
    def unload(self) -> None:
        loaded, idle = self.rig.backend.weights_loaded, self.rig.engine.idle
        assert self.rig.engine.evict(weights=True).weights_unloaded == idle
        assert self.rig.backend.weights_loaded == (loaded and not idle)

    # the third one ends an engine
    @precondition(lambda self: not self.rig.backend.hangs and "aborts=2" not in repr(self.rig.engine))
    @rule()
    def hang(self) -> None:
        self.rig.backend.hangs = 1

    @rule(times=st.integers(1, 5))
    def step(self, times: int) -> None:
        self.rig.step(times)

    @rule(name=st.sampled_from(["one", "two"]), scale=st.sampled_from([0.0, 0.5, 1.0]))
    def load_adapter(self, name: str, scale: float) -> None:
        path = Path(self.folder, name)
        path.write_text(name)
        handle = self.rig.load_adapter(str(path))
        self.rig.engine.adapters.set_scale(handle, scale)
        self.handles.append(handle)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def unload_adapter(self, data: st.DataObject) -> None:
        self.rig.engine.adapters.unload(data.draw(st.sampled_from(self.handles)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def scale_adapter(self, data: st.DataObject) -> None:
        try:
            self.rig.engine.adapters.set_scale(data.draw(st.sampled_from(self.handles)), 2.0)
        except InvalidParameter as error:
            assert error.param == "handle"  # noqa: PT017  (it was unloaded)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "rig"):
            self.rig.engine.check_integrity()

    @invariant()
    def the_backend_holds_what_the_books_say(self) -> None:
        if hasattr(self, "rig"):
            assert self.rig.backend.kv == self.rig.believed()

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.end()
        finally:
            shutil.rmtree(self.folder)
            if self.store is not None:
                self.store.close(10)

    def end(self) -> None:
        self.rig.run()
        while self.reads.jobs:
            self.reads.run()
            self.rig.run()
        self.rig.engine.close()
        stats = self.rig.engine.stats
        assert self.rig.engine.idle
        assert stats.cache.last_problem == ""
        assert all(image.closed for image in self.rig.backend.images)
        assert (stats.n_free_seq_ids, stats.n_queued, stats.kv_tokens) == (stats.n_parallel, 0, 0)
        for name in self.submitted:
            events = self.rig.events[name]
            assert [isinstance(e, Done | Failed) for e in events].count(True) == 1
            assert isinstance(events[-1], Done | Failed)
            wanted = self.wanted.get(name)
            assert wanted is None or len(self.rig.ids(name)) <= wanted
            assert all(e.logprobs is None or len(e.logprobs) == len(e.ids) for e in events if isinstance(e, Tokens))
        counts = stats.counts
        assert counts.requests_finished + counts.requests_failed == len(self.submitted)
        assert counts.completion_tokens == sum(len(self.rig.ids(name)) for name in self.submitted)
        assert {a.handle for a in self.rig.engine.adapters.list()} == set(self.rig.backend.adapters)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
