"""The engine under random submits, cancels, steps and adapters: it never loses an id, and every request ends exactly once."""

import tempfile
from pathlib import Path

from engine_kit import Rig, make_rig, request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from erllama.errors import InvalidParameter
from erllama.request import Done, Failed, Tokens
from erllama.stub_backend import StubBackend

FAIL = 7
N_CTX = 64


class EngineMachine(RuleBasedStateMachine):
    rig: Rig

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.submitted: list[str] = []
        self.wanted: dict[str, int | None] = {}
        self.handles: list[str] = []

    @initialize(n_parallel=st.integers(1, 3), deterministic=st.booleans(), reply_tokens=st.sampled_from([0, 8]))
    def start(self, n_parallel: int, deterministic: bool, reply_tokens: int) -> None:
        backend = StubBackend(N_CTX, n_parallel, reply_tokens=reply_tokens, fail_tokens=frozenset({FAIL}))
        self.rig = make_rig(backend, n_ctx=N_CTX, n_parallel=n_parallel, n_batch=32, deterministic=deterministic)

    @rule(
        n_prompt=st.integers(1, N_CTX - 1),
        max_tokens=st.none() | st.integers(0, 20),
        seed=st.integers(0, 5),
        extra=st.sampled_from("-sgle"),
    )
    def submit(self, n_prompt: int, max_tokens: int | None, seed: int, extra: str) -> None:
        name = f"r{len(self.submitted)}"
        params = {
            "-": {},
            "s": {"stop": ("e", "th", "an")},
            "g": {"grammar": 'root ::= "some text"'},
            "l": {"logprobs": 2},
            "e": {"ignore_eos": True, "temperature": 0.0},
        }[extra]
        self.submitted.append(name)
        self.wanted[name] = max_tokens
        self.rig.submit(request(name, "x" * n_prompt, max_tokens=max_tokens, seed=seed, **params))

    @rule()
    def submit_one_that_fails_to_decode(self) -> None:
        self.submitted.append(f"r{len(self.submitted)}")
        self.rig.submit(request(self.submitted[-1], [1, FAIL]))

    @rule()
    def submit_one_with_a_bad_grammar(self) -> None:
        self.submitted.append(f"r{len(self.submitted)}")
        self.rig.submit(request(self.submitted[-1], grammar="nonsense"))

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.rig.engine.cancel(data.draw(st.sampled_from(self.submitted)))

    @rule(times=st.integers(1, 5))
    def step(self, times: int) -> None:
        self.rig.step(times)

    @rule(name=st.sampled_from(["one", "two"]), scale=st.sampled_from([0.0, 0.5, 1.0]))
    def load_adapter(self, name: str, scale: float) -> None:
        path = Path(self.folder.name, name)
        path.write_text(name)
        handle = self.rig.engine.adapters.load(str(path))
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
    def what_the_backend_holds_belongs_to_a_running_sequence(self) -> None:
        if hasattr(self, "rig"):
            held = {s.seq_id: s.tokens[: s.n_kv] for s in self.rig.engine._admission.running}
            assert {i: kv for i, kv in enumerate(self.rig.backend.kv) if kv} == {i: kv for i, kv in held.items() if kv}

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.end()
        finally:
            self.folder.cleanup()

    def end(self) -> None:
        self.rig.run()
        stats = self.rig.engine.stats
        assert self.rig.engine.idle
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
