"""For every test: no engine thread outlives the test that started it, and Hypothesis judges
results, not the pace of a busy machine.
"""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("erllama", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("erllama")


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("erllama-")}


@pytest.fixture(autouse=True)
def no_engine_thread_leaks() -> Iterator[None]:
    before = engine_threads()
    yield
    leaked = engine_threads() - before
    for thread in leaked:
        thread.join(timeout=5)  # one that was told to stop may still be on its way out
    alive = [thread.name for thread in leaked if thread.is_alive()]
    assert not alive, f"engine threads outlive the test: {alive}"
