"""Computing ahead with llama.cpp itself: how many rows are computed as if alone, and that a reply is
the same with it and without it. The stub's tests have every kind of request.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erllama import Model
from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.config import EngineConfig
from erllama.demo import demo_model_path
from erllama.errors import InvalidParameter
from erllama.llama.backend import LlamaBackend
from erllama.llama.row_numerics import MAX_EXACT_ROWS, attends_alike
from erllama.model_drafts import Verified
from erllama.sequence.sampling import Logits
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import ModelShape
from tests.support.engine_kit import make_sequence

pytestmark = pytest.mark.model

SAMPLING = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.1})
STORY = "One day a fox met an owl near the river. The fox said: The bridge was open until late. "
N_TOKENS = 60


@pytest.fixture(scope="module")
def plain() -> Iterator[Model]:
    with model_of("off") as model:
        yield model


def model_of(mode: str) -> Model:
    return Model(path="demo", n_ctx=1024, n_parallel=4, type_k="q8_0", type_v="q8_0", speculation=mode)


def test_replies_are_the_same_alone_and_together(plain: Model):
    prompts = [STORY * 3, STORY + "The owl said: The bridge", "Say it again: " + STORY, "nothing to copy"]
    with model_of("exact") as model:
        for params in SAMPLING:
            params = {**params, "response_tokens": N_TOKENS, "logprobs": 1}
            wanted = [plain.complete(prompt, **params) for prompt in prompts]
            alone = [model.complete(prompt, **params) for prompt in prompts]
            streams = [model.infer(model.tokenize(prompt), **params) for prompt in prompts]
            together = [stream.result() for stream in streams]
            predicted = [
                model.complete(prompt, prediction=reply.tokens, **params)
                for prompt, reply in zip(prompts, wanted, strict=True)
            ]
            for runs in (alone, together, predicted):
                assert [(run.text, run.tokens, run.logprobs) for run in runs] == [
                    (run.text, run.tokens, run.logprobs) for run in wanted
                ]
            assert sum(run.stats.accepted_tokens for run in predicted) > len(prompts) * N_TOKENS / 2
        steps = model.stats().counts
        assert 0 < steps.accepted_tokens <= steps.drafted_tokens


def test_one_model_drafts_and_another_one_verifies(plain: Model):
    prompt = plain.tokenize(STORY)
    draft = plain.draft_tokens(prompt, 20)
    wrong = (*draft[:7], (draft[7] + 1) % 100, *draft[8:])
    with model_of("exact") as model:
        decodes = model.stats().counts.steps
        verified = model.verify(prompt, draft)
        assert verified.n_accepted == len(draft) == 20
        assert model.stats().counts.steps - decodes < 12
        assert model.verify(prompt, wrong) == Verified(7, draft[7])
        assert model.verify(prompt, ()) == Verified(0, draft[0])
        assert model.draft_tokens((*prompt, *draft), 1) == (verified.next_token,)
        with pytest.raises(InvalidParameter, match="n must be at least 1"):
            model.draft_tokens(prompt, 0)
        with pytest.raises(InvalidParameter, match="prediction holds token id"):
            model.verify(prompt, (10**6,))


def rows_alone_and_together(path: Path | str, kv: str, depth: int, n_rows: int) -> tuple[list[Logits], list[Logits]]:
    """The logits of rows behind `depth` tokens, one by one and in one decode."""
    config = EngineConfig(path=str(path), n_ctx=1024, n_parallel=1, type_k=kv, type_v=kv, speculation="always")
    backend = LlamaBackend(config)
    try:
        numbers = np.random.default_rng(depth)
        sequence = make_sequence(
            tokens=[int(i) for i in numbers.integers(0, backend.n_vocab, depth + n_rows)], seq_id=0
        )

        def decode(start: int, n_tokens: int, n_logits: int) -> list[Logits]:
            (logits,) = backend.decode(BatchPlan((PlanRow(sequence, start, n_tokens, n_logits),), ()))
            return [one.copy() for one in logits]

        for start in range(0, depth, 256):
            decode(start, min(256, depth - start), 0)
        alone = [decode(depth + i, 1, 1)[0] for i in range(n_rows)]
        backend.cut(0, depth)
        return alone, decode(depth, n_rows, n_rows)
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("kv", "depth", "alike"),
    [("q8_0", 240, True), ("q8_0", 700, True), ("f16", 240, True), ("f16", 250, False), ("f16", 700, False)],
)
def test_where_attention_takes_one_path(kv: str, depth: int, alike: bool):
    """What `attends_alike` says is what llama.cpp does."""
    alone, together = rows_alone_and_together(demo_model_path(), kv, depth, 16)
    same = all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert same is alike
    config = EngineConfig(path="x", type_k=kv, type_v=kv)
    assert attends_alike(config, 1, depth + 16) is alike


@pytest.mark.parametrize(
    ("file_type", "n_parallel", "n_rows"),
    [("Q8_0", 4, MAX_EXACT_ROWS), ("Q8_0", 2, 32), ("Q4_0", 4, MAX_EXACT_ROWS), ("F16", 4, 1)],
)
def test_the_rows_that_are_computed_alike_are_found_out(file_type: str, n_parallel: int, n_rows: int, tmp_path: Path):
    shape = ModelShape("llama", 1, 512, 8, 2, 512, 1024)  # of narrow matrices F16 is exact by chance
    write_random_model(tmp_path / "m.gguf", shape, file_type=file_type)
    with_probe = LlamaBackend(EngineConfig(path=str(tmp_path / "m.gguf"), n_ctx=256, n_parallel=n_parallel))
    try:
        assert with_probe.exact_rows(2, 100) == n_rows
        assert with_probe.exact_rows(1, 500) == 1  # f16 KV of a lone sequence
    finally:
        with_probe.close()
