"""The product's promise: where a prompt's KV came from never shows in the reply.

Two hundred conversations with the demo model, each asked cold, live, restored after the context was
released, restored by a new process-like model, restored by another replica that runs beside, and
resumed in the middle of the reply; greedy and sampled. The replies are equal token for token. With
a q8_0 KV cache llama.cpp computes attention along one path, whatever the number of rows, so
equality is exact and not a matter of near ties; with an f16 cache the paths that are alike are
compared (see AGENTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from demo_model.samples import draw_samples
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.events import Completion

pytestmark = pytest.mark.model

N_CONVERSATIONS = 200
N_TOKENS = 24
EVERYTHING = CachePolicy(
    min_tokens=32, cold_min_tokens=32, cold_step_tokens=256, restore_min_tokens=1, restore_always=True, logits_share=1e9
)


@dataclass(frozen=True)
class Question:
    """A prompt, how it is sampled, and whether a reply answers it."""

    tokens: tuple[int, ...]
    params: dict[str, object]
    is_right: Callable[[str], bool]


@contextmanager
def model(folder: Path | None, policy: CachePolicy = EVERYTHING, **settings: object) -> Iterator[Model]:
    store = None
    if folder is not None:
        store = StoreConfig(
            tiers=(TierConfig(str(folder / "fast")), TierConfig(str(folder / "slow"))), min_probe_tokens=1
        )
    defaults: dict[str, object] = {
        "path": "demo",
        "n_ctx": 2048,
        "n_parallel": 4,
        "n_threads": 1,
        "type_k": "q8_0",
        "type_v": "q8_0",
    }
    with Model(store=store, policy=policy, **{**defaults, **settings}) as one:
        yield one


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    with model(None) as one:
        samples = []
        # more than a block: shorter prompts are not looked for everywhere
        for bucket, n in (("recall_512", 180), ("recall_1024", 20)):
            samples += draw_samples(
                bucket, seed=7, n_samples=n, count=lambda text: len(one.tokenize(text, add_special=False))
            )
        assert len(samples) == N_CONVERSATIONS
        return [
            Question(
                tuple(one.tokenize(sample.prompt, add_special=False)),
                {"temperature": 0.0}
                if i % 2
                else {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": i},
                sample.is_right,
            )
            for i, sample in enumerate(samples)
        ]


def ask(one: Model, question: Question, n_tokens: int = N_TOKENS) -> Completion:
    return one.complete(question.tokens, response_tokens=n_tokens, **question.params)


@pytest.fixture(scope="module")
def cold(questions: list[Question]) -> list[Completion]:
    """Every reply without any cache: one sequence whose KV is dropped before the next request."""
    with model(None, n_parallel=1) as one:
        replies = []
        for question in questions:
            one.evict()
            replies.append(ask(one, question))
    assert all(reply.stats.cached_tokens == 0 for reply in replies)
    return replies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, questions: list[Question]) -> Path:
    """A store that has seen every conversation, with four of them running at once, and whose writer
    has left.
    """
    folder = tmp_path_factory.mktemp("kv")
    with model(folder) as one:
        for start in range(0, len(questions), 4):
            streams = [one.infer(q.tokens, response_tokens=N_TOKENS, **q.params) for q in questions[start : start + 4]]
            for stream in streams:
                stream.result()
    return folder


def differing(replies: list[Completion], expected: list[Completion]) -> list[int]:
    return [
        i for i, (a, b) in enumerate(zip(replies, expected, strict=True)) if a.tokens != b.tokens or a.text != b.text
    ]


def test_live_replies_are_the_cold_ones(questions, cold):
    with model(None) as one:
        pairs = [(ask(one, question), ask(one, question)) for question in questions]
    first, again = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert differing(first, cold) == []
    assert differing(again, cold) == []
    assert all(reply.stats.cache_tier == "live" and reply.stats.cached_tokens for reply in again)


def test_batched_replies_are_the_cold_ones(questions, cold):
    with model(None) as one:
        # as many as may wait
        streams = [one.infer(q.tokens, response_tokens=N_TOKENS, **q.params) for q in questions[:100]]
        assert differing([stream.result() for stream in streams], cold[:100]) == []


def test_a_restart_changes_no_token_of_any_conversation_and_no_recall(questions, cold, folder):
    with model(folder) as one:
        replies = [ask(one, question) for question in questions]
    assert differing(replies, cold) == []
    restored = [reply for reply in replies if reply.stats.cache_hit_kind == "exact"]
    # all of every prompt, with the stored logits: nothing was computed before the first token
    assert len(restored) == N_CONVERSATIONS
    greedy = [(q, reply) for i, (q, reply) in enumerate(zip(questions, replies, strict=True)) if i % 2]
    right = sum(q.is_right(reply.text) for q, reply in greedy)
    assert right >= 0.9 * len(greedy), f"{right} of {len(greedy)} recalled"


def test_a_released_context_changes_no_token(questions, cold, folder):
    with model(folder) as one:
        replies = []
        for question in questions:
            replies.append(ask(one, question))
            one.evict()
    assert differing(replies, cold) == []
    assert all(reply.stats.cached_tokens for reply in replies)


def test_another_replica_beside_it_restores_what_this_one_has_just_computed(questions, cold, tmp_path):
    with model(tmp_path) as one, model(tmp_path) as other:
        for i, question in enumerate(questions):
            first, second = (one, other) if i % 3 else (other, one)
            assert ask(first, question).tokens == cold[i].tokens
            first.evict()  # waits until it is written
            reply = ask(second, question)
            assert reply.tokens == cold[i].tokens
            assert reply.stats.cached_tokens >= 0.8 * len(question.tokens)


def test_a_reply_cut_anywhere_goes_on_with_the_same_tokens_elsewhere(questions, cold, tmp_path):
    """What an ingress does when a replica dies: prompt and delivered tokens go to another one, with
    the same seed.
    """
    policy = CachePolicy(
        min_tokens=1 << 20,
        cold_min_tokens=32,
        cold_step_tokens=256,
        continued_interval=8,
        restore_min_tokens=1,
        restore_always=True,
    )
    with model(tmp_path, policy) as one, model(tmp_path, policy) as other:
        for i, question in enumerate(questions):
            whole = cold[i]
            cut = 1 + i % max(1, len(whole.tokens) - 1)
            delivered = ask(one, question, cut).tokens
            assert delivered == whole.tokens[:cut]
            one.evict()
            rest = Question(question.tokens + delivered, question.params, question.is_right)
            reply = ask(other, rest, N_TOKENS - cut)
            assert delivered + reply.tokens == whole.tokens
            assert reply.stats.cached_tokens >= 256


def test_with_an_f16_cache_a_restart_gives_what_the_first_run_gave(questions, tmp_path):
    """Like with like: both runs decode the prompt's last token from the same stored logits and
    every other one alone.
    """
    f16 = {"type_k": "f16", "type_v": "f16", "n_parallel": 1}
    with model(tmp_path, **f16) as one:
        first = [ask(one, question) for question in questions[:60]]
    with model(tmp_path, **f16) as one:
        again = [ask(one, question) for question in questions[:60]]
    assert differing(again, first) == []
    assert all(reply.stats.cache_hit_kind == "exact" for reply in again)


def test_deterministic_mode_restores_only_what_leaves_the_slices_as_they_were(questions, tmp_path):
    """With an f16 cache, other rows in a slice take another path; aligned restores make the rest of
    the prompt compute as it did cold.
    """
    settings = {"type_k": "f16", "type_v": "f16", "deterministic": True, "n_parallel": 1, "prefill_slice": 64}
    policy = CachePolicy(min_tokens=32, cold_min_tokens=32, restore_min_tokens=1, restore_always=True, logits_share=0.0)
    with model(None, **settings) as one:
        expected = []
        for question in questions[100:140]:
            one.evict()
            expected.append(ask(one, question))
    with model(tmp_path, policy, **settings) as one:
        for question in questions[100:140]:
            ask(one, question)
    with model(tmp_path, policy, **settings) as one:
        replies = [ask(one, question) for question in questions[100:140]]
    assert differing(replies, expected) == []
    assert all(reply.stats.cached_tokens and reply.stats.cached_tokens % 64 == 0 for reply in replies)


def test_a_long_reply_goes_on_from_its_continued_save(questions, tmp_path):
    """Nothing else was saved of the reply: what the prompt's rows end with was generated, and saved
    on the way.
    """
    policy = CachePolicy(
        min_tokens=1 << 20,
        cold_min_tokens=32,
        cold_step_tokens=256,
        continued_interval=64,
        restore_min_tokens=1,
        restore_always=True,
    )
    n_tokens, cut = 400, 390
    with model(tmp_path, policy) as one, model(tmp_path, policy) as other:
        for question in questions[:12]:
            params = {**question.params, "ignore_eos": True}
            whole = one.complete(question.tokens, response_tokens=n_tokens, **params).tokens
            one.evict()
            rest = other.complete(question.tokens + whole[:cut], response_tokens=n_tokens - cut, **params)
            assert whole[:cut] + rest.tokens == whole
            n_saved = len(question.tokens) + cut - 64 - 256  # the last interval, and the block that was not full yet
            assert rest.stats.cached_tokens >= max(n_saved, len(question.tokens))
