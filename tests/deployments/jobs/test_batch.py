"""A batch of rows and its replies: order, formats, seeds, errors, what is computed once. A fake
model, and the engine in this process.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.batch import Answering, BatchSpec, answer_batch, complete_batch, shared_prefixes
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.errors import ContextOverflow, EngineStopped, ErllamaError, InvalidParameter, QueueFull
from erllama.events import CacheHitKind, Completion, FinishReason, RequestStats

FORMATS: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "numpy": lambda columns: {name: np.array(values) for name, values in columns.items()},
    "pandas": pd.DataFrame,
    "pyarrow": pa.table,
}


def completion(text: str, n_prompt: int = 3) -> Completion:
    return Completion(
        text, (1, 2), "key", RequestStats(n_prompt, 2, 1, 0.0, 0.0, 0.0, CacheHitKind.PARTIAL, FinishReason.LENGTH)
    )


class Echo:
    """Replies with the prompt and the seed; raises what `failing` holds for a prompt, one after the
    other.
    """

    def __init__(self, failing: dict[str, list[ErllamaError]] | None = None) -> None:
        self.failing = failing or {}
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        self.asked.append((prompt, params))
        errors = self.failing.get(str(prompt))
        if errors:
            raise errors.pop(0)
        return completion(f"{prompt}|{params.get('seed')}", len(prompt))

    def apply_chat_template(self, messages: Sequence[Any]) -> list[int]:
        assert all(value is not None for message in messages for value in message.values())
        return [ord(c) for message in messages for c in message["role"][0] + message["content"]]


def spec(**changes: Any) -> BatchSpec:
    return BatchSpec(**{"params": {"response_tokens": 2}, **changes})


def texts(values: Any) -> list[Any]:
    cells = values.to_pylist() if isinstance(values, pa.ChunkedArray) else values.tolist()
    return [None if cell is pd.NA else cell for cell in cells]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_every_format_comes_back_as_it_came_with_the_new_columns_in_the_order_of_its_rows(make):
    batch = make({"prompt": ["b", "c", "a"], "other": [1, 2, 3]})
    answered = answer_batch(Echo(), batch, spec())
    assert type(answered) is type(batch)
    assert texts(answered["reply"]) == ["b|0", "c|1", "a|2"]
    assert texts(answered["other"]) == [1, 2, 3]
    assert [texts(answered[name]) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")] == [
        [1] * 3,
        [1] * 3,
        [2] * 3,
    ]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_a_row_that_fails_is_null_and_says_why_when_asked(make):
    model = Echo({"b": [ContextOverflow("too long")]})
    answered = answer_batch(model, make({"prompt": ["a", "b"]}), spec(on_error="null"))
    assert texts(answered["reply"]) == ["a|0", None]
    assert texts(answered["error"]) == [None, "context_length_exceeded: too long"]
    assert texts(answered["prompt_tokens"]) == [1, 0]


@pytest.mark.parametrize("make", [FORMATS["pandas"], FORMATS["pyarrow"]], ids=["pandas", "pyarrow"])
def test_a_column_of_nothing_but_nulls_is_still_one_of_text(make):
    answered = answer_batch(Echo(), make({"prompt": ["a"]}), spec(on_error="null"))
    assert str(answered["error"].type if isinstance(answered, pa.Table) else answered["error"].dtype) == "string"


def test_an_error_that_is_not_asked_for_fails_the_batch_and_names_the_row():
    with pytest.raises(ContextOverflow) as caught:
        answer_batch(Echo({"b": [ContextOverflow("too long")]}), {"prompt": np.array(["a", "b"])}, spec())
    assert caught.value.__notes__ == ["in row 1 of the batch"]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_messages_are_rendered_and_token_ids_are_taken_as_they_are(make):
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    columns = {"talk": [talk, [{"role": "system", "content": "z"}]], "ids": [[1, 2], [3]]}
    if make is FORMATS["numpy"]:
        make = lambda columns: {name: np.array([None, *cells], dtype=object)[1:] for name, cells in columns.items()}  # noqa: E731
    batch = make(columns)
    assert texts(answer_batch(Echo(), batch, spec(prompt_column="talk"))["reply"]) == [
        f"{[ord(c) for c in 'uxay']}|0",
        f"{[115, 122]}|1",
    ]
    assert texts(answer_batch(Echo(), batch, spec(prompt_column="ids"))["reply"]) == ["[1, 2]|0", "[3]|1"]


def test_fields_of_messages_that_arrow_filled_with_null_do_not_reach_the_template():
    talk = [{"role": "user", "content": "x", "name": "n"}, {"role": "assistant", "content": "y"}]
    batch = pa.table({"prompt": [talk]})
    assert batch["prompt"].to_pylist()[0][1]["name"] is None
    answer_batch(Echo(), batch, spec())


def test_with_a_system_prompt_text_is_what_the_user_says():
    model = Echo()
    answer_batch(model, {"prompt": np.array(["q"])}, spec(system="s"))
    answer_batch(model, {"prompt": np.array(["q"])}, spec(system=""))
    assert [prompt for prompt, _ in model.asked] == [[ord(c) for c in "ssuq"], [ord(c) for c in "uq"]]


def test_a_row_is_drawn_with_the_seed_and_its_index():
    batch = {"prompt": np.array(["a", "b"]), "id": np.array([70, 7])}
    assert texts(answer_batch(Echo(), batch, spec(seed=5))["reply"]) == ["a|5", "b|6"]
    assert texts(answer_batch(Echo(), batch, spec(seed=5, index_column="id"))["reply"]) == ["a|75", "b|12"]
    assert texts(answer_batch(Echo(), batch, spec(seed=None))["reply"]) == ["a|None", "b|None"]
    assert texts(answer_batch(Echo(), batch, spec(seed=(1 << 64) - 1))["reply"]) == [f"a|{(1 << 64) - 1}", "b|0"]


def test_no_more_requests_are_in_flight_than_allowed():
    together, met = threading.Barrier(3, timeout=20), []

    class Counting(Echo):
        running = 0
        lock = threading.Lock()

        def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
            with self.lock:
                self.running += 1
                met.append(self.running)
            together.wait()  # passes only when three are in
            with self.lock:
                self.running -= 1
            together.wait()  # none begins while one of the three has yet to leave
            return completion("")

    answer_batch(Counting(), {"prompt": np.array(list("abcdef"))}, spec(max_concurrency=3))
    assert sorted(met) == [1, 1, 2, 2, 3, 3]


def test_a_full_queue_and_a_lost_replica_are_waited_for():
    slept: list[float] = []
    model = Echo({"a": [QueueFull("full", retry_after_s=3), EngineStopped("gone")]})
    (reply,) = Answering(model, spec(), sleep=slept.append).run(["a"], [0])
    assert isinstance(reply, Completion)
    assert slept == [3, 1.0]


def test_patience_ends():
    now = [0]

    def sleep(seconds: float) -> None:
        now[0] += int(seconds * 1e9)

    model = Echo({"a": [QueueFull("full", retry_after_s=3) for _ in range(9)]})
    answering = Answering(model, spec(patience_s=7, on_error="null"), clock_ns=lambda: now[0], sleep=sleep)
    (outcome,) = answering.run(["a"], [0])
    assert isinstance(outcome, QueueFull)
    assert len(model.asked) == 4  # at 0, 3, 6 and 9 seconds


@pytest.mark.parametrize("cell", [None, 3, [], [1.5], [{"role": "user", "content": "x"}, "y"]])
def test_what_is_no_prompt_is_refused_by_the_name_of_its_column(cell):
    (outcome,) = Answering(Echo(), spec(on_error="null", prompt_column="ask")).run([cell], [0])
    assert isinstance(outcome, InvalidParameter)
    assert outcome.param == "ask"


def test_a_missing_column_is_named_with_those_that_there_are():
    with pytest.raises(InvalidParameter, match=r"no column 'prompt'; it has text, other"):
        answer_batch(Echo(), pa.table({"text": ["a"], "other": [1]}), spec())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperatur": 1}, "temperatur"),
        ({"temperature": -1}, "temperature"),
        ({"on_error": "skip"}, "on_error"),
        ({"max_concurrency": 0}, "max_"),
    ],
)
def test_a_wrong_option_is_refused_before_any_row_is_read(options, named):
    with pytest.raises(InvalidParameter, match=named):
        complete_batch("demo", **options)


def test_an_empty_batch_stays_empty():
    assert answer_batch(Echo(), pa.table({"prompt": pa.array([], pa.string())}), spec()).num_rows == 0


def test_importing_and_making_one_needs_neither_ray_nor_pandas():
    code = (
        "import sys; sys.modules |= {'ray': None, 'pandas': None}; "
        "from deployments.jobs.batch import complete_batch; complete_batch('demo')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- what is computed once ------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.integers(0, 1), min_size=1, max_size=700).map(lambda tail: [7] * len(tail) * (tail[0] + 1)),
        max_size=6,
    )
)
def test_neighbours_with_a_long_common_prefix_have_it_computed_ahead_once(prompts):
    ordered = sorted(prompts)
    prefixes = list(shared_prefixes(ordered))
    for prefix in prefixes:
        assert len(prefix) >= 256
        assert sum(prompt[: len(prefix)] == prefix for prompt in ordered) >= 2
    alike = [one for one, other in pairwise(ordered) if len(one) >= 256 and other[: len(one)] == one]
    assert all(any(prompt[: len(prefix)] == prefix for prefix in prefixes) for prompt in alike)
    assert len(prefixes) == len({tuple(prefix) for prefix in prefixes})


def test_each_group_has_its_own_prefix_and_a_loner_none():
    one, two = "1" * 2000, "2" * 1500
    ordered = sorted([one + "a", two + "b", one + "c", "3" * 5000, two + "d", one[:1200] + "e"])
    assert list(shared_prefixes(ordered)) == [one[:1200], two]


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with Model(path="demo", n_ctx=2048, n_parallel=4, n_threads=1, policy=CachePolicy()) as model:
        yield model


@pytest.mark.model
@pytest.mark.parametrize("system", [False, True], ids=["text", "system"])
def test_fifty_rows_compute_the_thousand_tokens_that_they_share_once(demo, system):
    rules = " ".join(f"Rule {i}: answer question number {i} in short and simple words." for i in range(35))
    asked = "What is {0} and {0}?" if system else rules + " Question: what is {0} and {0}?"
    batch = {"prompt": np.array([asked.format(i) for i in range(50)])}
    before = demo.stats().counts
    what = spec(params={"response_tokens": 4, "temperature": 0.8}, system=rules if system else None)
    answered = answer_batch(demo, batch, what)
    after = demo.stats().counts
    computed = (after.prompt_tokens - after.cached_tokens) - (before.prompt_tokens - before.cached_tokens)
    shared = int(answered["cached_tokens"].min())
    assert shared >= 1000
    assert computed <= shared + sum(answered["prompt_tokens"] - shared) + 256
    # a batch that runs again gives the same
    assert texts(answer_batch(demo, batch, what)["reply"]) == texts(answered["reply"])
