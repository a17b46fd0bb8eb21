"""What the engine makes of the order: whose prompt is computed next and who is admitted, on the stub,
whose slices have 16 tokens here.
"""

import pytest

from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import Rig, make_rig, request

N_CTX = 1024
SLICE = 16


def rig_of(**settings: object) -> Rig:
    n_parallel = settings.setdefault("n_parallel", 4)
    return make_rig(StubBackend(N_CTX, n_parallel, reply_tokens=0), n_ctx=N_CTX, **settings)  # type: ignore[arg-type]


def prompt(n: int, seed: int) -> list[int]:
    """A prompt that begins like no other one."""
    return [40 + seed, *([97] * (n - 1))]


def first_tokens(rig: Rig, limit: int = 400) -> list[str]:
    """The requests in the order of their first tokens."""
    order: list[str] = []
    for _ in range(limit):
        busy = rig.step()
        order += [name for name in rig.events if name not in order and rig.ids(name)]
        if not busy:
            return order
    raise AssertionError("not idle")


# --- whose prompt is next -------------------------------------------------------------------------


def test_a_short_prompt_does_not_wait_for_a_long_one_that_is_being_computed():
    rig = rig_of()
    rig.submit(request("long", prompt(640, 0), max_tokens=1))
    rig.step(2)
    rig.submit(request("short", prompt(SLICE, 1), max_tokens=1))
    rig.step()
    assert rig.ids("short")
    assert rig.engine.stats.n_prefilling == 1


def test_prompts_of_equal_sizes_are_computed_in_order_of_arrival_one_after_the_other():
    rig = rig_of()
    rig.submit(*(request(str(i), prompt(80, i), max_tokens=1) for i in range(10)))
    assert first_tokens(rig) == [str(i) for i in range(10)]
    assert [row[1] for plan in rig.backend.plans for row in plan] == [0, 16, 32, 48, 64] * 10


def test_a_long_prompt_goes_on_while_short_ones_keep_coming():
    rig = rig_of()
    rig.submit(request("long", prompt(320, 0), max_tokens=1))
    for i in range(400):
        if rig.ended("long"):
            break
        rig.submit(request(f"short {i}", prompt(SLICE, 1 + i % 50), max_tokens=1))
        rig.step()
    assert rig.ended("long")
    assert rig.ended("short 0")


def test_a_priority_goes_before_size_and_arrival():
    rig = rig_of()
    rig.submit(request("first", prompt(SLICE, 0), max_tokens=1, priority=1))
    rig.submit(
        request("urgent", prompt(64, 1), max_tokens=1, priority=-1), request("plain", prompt(64, 2), max_tokens=1)
    )
    assert first_tokens(rig) == ["urgent", "plain", "first"]


def test_slices_are_the_same_with_and_without_company():
    def slices(*others: str) -> list[tuple[int, int]]:
        rig = rig_of(n_parallel=4)
        rig.submit(request("it", prompt(200, 0), max_tokens=1))
        rig.step(2)
        rig.submit(*(request(name, prompt(40, 1 + i), max_tokens=1) for i, name in enumerate(others)))
        seq_id = rig.engine._sequences["it"].seq_id
        rig.run()
        return [(start, n) for plan in rig.backend.plans for s, start, n in plan if s == seq_id][:13]

    assert slices() == slices("a", "b", "c")


def test_a_prefill_that_a_short_prompt_waits_for_is_as_urgent_as_that_one():
    """Else the short one would wait until a long one, which goes first otherwise, is done."""
    rig = rig_of()
    shared = prompt(80, 0)
    rig.submit(request("source", shared + [98] * 800, max_tokens=1, priority=3))
    rig.step()
    rig.submit(request("other", prompt(600, 1), max_tokens=1))
    rig.step(2)
    rig.submit(request("waits", shared + [99] * 4, max_tokens=1, priority=-3))
    for _ in range(8):
        rig.step()
    assert rig.ids("waits")
    assert rig.done("waits").stats.cached_tokens == 80


# --- who is admitted ------------------------------------------------------------------------------


def test_long_prompts_leave_an_id_for_short_ones():
    rig = rig_of(n_parallel=2, long_prompt_tokens=100)
    rig.submit(*(request(f"long {i}", prompt(300, i), max_tokens=4) for i in range(3)))
    rig.step(3)
    assert (rig.engine.stats.n_prefilling, rig.engine.stats.n_free_seq_ids) == (1, 1)
    rig.submit(request("short", prompt(SLICE, 9), max_tokens=1))
    rig.step()
    assert rig.ids("short")
    rig.run()
    assert all(rig.done(f"long {i}").stats.completion_tokens == 4 for i in range(3))


@pytest.mark.parametrize(("n_parallel", "limit", "n_running"), [(2, 0, 2), (1, 100, 1), (4, 100, 3), (2, 300, 2)])
def test_how_many_long_prompts_run_at_once(n_parallel: int, limit: int, n_running: int):
    rig = rig_of(n_parallel=n_parallel, long_prompt_tokens=limit)
    rig.submit(*(request(str(i), prompt(300, i), max_tokens=1) for i in range(6)))
    rig.step()
    assert rig.engine.stats.n_running == n_running
    rig.run()
    assert all(rig.ended(str(i)) for i in range(6))


def test_a_long_prompt_whose_kv_is_there_is_not_long():
    rig = rig_of(n_parallel=2, long_prompt_tokens=100)
    rig.submit(request("before", prompt(300, 0), max_tokens=1))
    rig.run()
    rig.submit(request("long", prompt(300, 1), max_tokens=9))
    rig.step()
    rig.submit(request("again", [*prompt(300, 0), 98], max_tokens=9))
    rig.step()
    assert rig.engine.stats.n_running == 2


def test_an_engine_whose_only_free_id_is_kept_sleeps_when_nothing_can_be_computed():
    rig = rig_of(n_parallel=2, long_prompt_tokens=100)
    rig.submit(request("runs", prompt(300, 0), max_tokens=1), request("waits", prompt(300, 1), max_tokens=1))
    rig.step()
    assert rig.engine._admission.next is None
    assert rig.run() > 0
    assert rig.ended("waits")


def test_the_next_free_id_goes_to_the_tenant_that_has_had_less():
    rig = rig_of(n_parallel=1)
    rig.submit(*(request(f"a{i}", prompt(200, i), max_tokens=1, tenant="a") for i in range(6)))
    rig.step()
    rig.submit(request("b", prompt(200, 9), max_tokens=1, tenant="b"))
    assert first_tokens(rig)[:2] == ["a0", "b"]
