"""The demo model goes on where an earlier run was cut off: text, ids and log probabilities of both
are those of one run.

With a q8_0 KV cache it is exact (see test_exactness.py): what was decoded token by token before is
prefilled now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from demo_model.samples import draw_samples
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.errors import InvalidParameter
from erllama.events import FinishReason, RequestStats, TokenLogprob, Tokens
from erllama.grammar.constraint import JSON_OBJECT, Constraint
from erllama.request import GenerationRequest, SamplingParams

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0, seed=1)
SAMPLED = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=2)
PENALISED = SamplingParams(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.5, seed=3)
CUTS = (1, 7, 40, 77, 119)
# of the reply nothing but its continued saves: what a replica that dies leaves behind
CONTINUED = CachePolicy(
    min_tokens=1 << 20,
    cold_min_tokens=512,
    cold_step_tokens=256,
    continued_interval=64,
    restore_min_tokens=1,
    restore_always=True,
)


@contextmanager
def model(folder: Path | None = None, policy: CachePolicy = CONTINUED, **settings: object) -> Iterator[Model]:
    store = None if folder is None else StoreConfig(tiers=(TierConfig(str(folder / "kv")),), min_probe_tokens=1)
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


@dataclass(frozen=True)
class Part:
    """What events carried, and the stats of their end."""

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    stats: RequestStats | None = None

    def __add__(self, other: Part) -> Part:
        return Part(self.ids + other.ids, self.text + other.text, self.logprobs + other.logprobs, other.stats)


def part(events: list[Tokens], stats: RequestStats | None = None) -> Part:
    ids = tuple(token for event in events for token in event.ids)
    return Part(
        ids, "".join(event.text for event in events), tuple(p for event in events for p in event.logprobs or ()), stats
    )


def run(one: Model, request: GenerationRequest) -> tuple[list[Tokens], RequestStats]:
    *tokens, done = one.submit(request)
    return tokens, done.stats


def assert_resumes(one: Model, request: GenerationRequest, events: list[Tokens], cut: int) -> RequestStats:
    """`one` goes on after the first `cut` tokens of the run that gave `events`."""
    whole, before = part(events), part([event for event in events if event.ids][:cut])
    tokens, stats = run(one, replace(request, request_id=f"{request.request_id} from {cut}", resumed=before.ids))
    joined = before + part(tokens)
    assert (joined.ids, joined.text) == (whole.ids, whole.text), cut
    assert joined.logprobs == whole.logprobs
    assert (stats.completion_tokens, stats.resumed_tokens) == (len(whole.ids), cut)
    return stats


def requests(bucket: str, n_samples: int, **more: object) -> list[GenerationRequest]:
    with model() as one:
        samples = draw_samples(
            bucket, seed=11, n_samples=n_samples, count=lambda text: len(one.tokenize(text, add_special=False))
        )
        prompts = [tuple(one.tokenize(sample.prompt, add_special=False)) for sample in samples]
    kinds = (GREEDY, SAMPLED, PENALISED)
    return [
        GenerationRequest(f"{bucket} {i}", tokens, sampling=kinds[i % 3], **more) for i, tokens in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def questions() -> list[GenerationRequest]:
    return requests("recall_512", 6, max_tokens=120, ignore_eos=True, logprobs=2, stop=("zyzzyva",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def wholes(questions: list[GenerationRequest], folder: Path) -> list[list[Tokens]]:
    """The events of uninterrupted runs, each alone and cold; the store has what was saved on the
    way.
    """
    wholes = []
    with model(folder, n_parallel=1) as one:
        for question in questions:
            one.evict()
            wholes.append(run(one, question)[0])
    assert all(len(part(events).ids) == 120 for events in wholes)
    return wholes


@pytest.mark.parametrize("cut", CUTS)
def test_a_reply_goes_on_without_a_store(questions: list, wholes: list, cut: int):
    with model() as one:
        for question, whole in zip(questions, wholes, strict=True):
            one.evict()
            stats = assert_resumes(one, question, whole, cut)
            assert (stats.cached_tokens, stats.computed_tokens) == (0, stats.prompt_tokens + cut)


@pytest.mark.parametrize("cut", CUTS)
def test_a_reply_goes_on_from_what_was_saved_of_it(questions: list, wholes: list, folder: Path, cut: int):
    with model(folder) as one:
        for question, whole in zip(questions, wholes, strict=True):
            stats = assert_resumes(one, question, whole, cut)
            assert stats.computed_tokens <= CONTINUED.continued_interval + 256
            assert stats.cached_tokens > 0


def test_a_reply_goes_on_beside_busy_neighbours(questions: list, wholes: list, folder: Path):
    with model(folder) as one, ExitStack() as neighbours:
        for i in range(3):
            tokens = questions[i].prompt_tokens[: 300 + i]
            neighbours.enter_context(
                one.submit(GenerationRequest(f"neighbour {i}", tokens, sampling=SAMPLED, ignore_eos=True))
            )
        for i, (question, whole) in enumerate(zip(questions, wholes, strict=True)):
            assert_resumes(one, question, whole, CUTS[i % len(CUTS)])
            assert one.stats().n_running >= 3


def test_a_stop_string_over_the_cut_is_found(questions: list, wholes: list):
    with model() as one:
        for question, whole in zip(questions, wholes, strict=True):
            text = part(whole).text
            stopped = replace(question, stop=(text[30:42],), request_id=f"{question.request_id} stopped")
            events, stats = run(one, stopped)
            assert stats.finish_reason is FinishReason.STOP
            for cut in range(1, len(part(events).ids) + 1, 2):
                assert assert_resumes(one, stopped, events, cut).stop_sequence == text[30:42]


def test_a_json_grammar_goes_on_inside_the_object():
    questions = requests("json", 6, max_tokens=60, grammar=Constraint.of_schema(JSON_OBJECT, "grammar"))
    with model() as one:
        for question in questions:
            events, stats = run(one, question)
            for cut in range(1, len(part(events).ids) + 1, 3):
                assert assert_resumes(one, question, events, cut).finish_reason is stats.finish_reason


def test_what_is_most_asked_for_is_live_after_a_restart_and_answers_the_same(questions: list, tmp_path: Path):
    policy = CachePolicy(min_tokens=32, cold_min_tokens=32, restore_min_tokens=1, restore_always=True, logits_share=1e9)
    with model(tmp_path, policy) as one:
        first = {}
        for times, question in enumerate(questions[:3], start=1):
            for n in range(times):
                first[question] = run(one, replace(question, request_id=f"{times} {n}"))[0]
                one.evict()
    with model(tmp_path, policy) as one:
        assert one.prewarm(2, 20) == 2
        for question in reversed(questions[:3]):
            events, stats = run(one, question)
            assert (stats.cache_tier == "live") == (question is not questions[0])
            assert stats.cached_tokens >= stats.prompt_tokens - 1
            assert part(events) == part(first[question])


def test_an_id_that_the_grammar_does_not_allow_fails_its_request_and_the_model_lives():
    question = requests("json", 1, max_tokens=60, grammar=Constraint.of_schema(JSON_OBJECT, "grammar"))[0]
    with model() as one:
        events, _ = run(one, question)
        for text in ("no object", "}", "[1]"):
            resumed = tuple(one.tokenize(text, add_special=False)[:1])
            with pytest.raises(InvalidParameter, match="where the grammar does not allow it") as refused:
                one.submit(replace(question, request_id="wrong", resumed=resumed)).result()
            assert refused.value.param == "resumed"
        assert_resumes(one, question, events, 2)
