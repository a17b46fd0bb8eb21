"""A next turn that idle time has begun, on the demo model: what it answers is what it would have
answered.
"""

from __future__ import annotations

import pytest

from erllama import Model
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, SamplingParams

pytestmark = pytest.mark.model
GREEDY = SamplingParams(temperature=0.0)


@pytest.mark.parametrize("keeps", ["the reply", "the prompt alone"])
def test_the_reply_is_the_same_with_and_without(keeps: str) -> None:
    with Model(path="demo", n_threads=1) as model:
        prompt = model.tokenize("Once upon a time there was a fox who lived in a wood. " * 8)
        text = model.tokenize(" Then the fox said", add_special=False)
        reply = model.submit(GenerationRequest("first", tuple(prompt), GREEDY, max_tokens=40)).result()
        said = list(reply.tokens) if keeps == "the reply" else model.tokenize(" It ran." * 30, add_special=False)
        known = (*prompt, *said, *model.tokenize("\n", add_special=False))
        n_kept = len(prompt) + (len(said) - 1 if keeps == "the reply" else 0)
        model.expect(NextTurn("first", known, n_kept))
        while not (cache := model.stats().cache).idle_turns:
            assert not cache.idle_given_up
            model._call(lambda engine: None)
        assert cache.idle_tokens >= len(known) - n_kept
        second = model.submit(GenerationRequest("second", (*known, *text), GREEDY, max_tokens=40)).result()
        assert second.stats.cached_tokens == len(known)
        assert model.stats().cache.idle_used_tokens == cache.idle_tokens
    with Model(path="demo", n_threads=1, idle_prefill=False) as plain:
        alone = plain.submit(GenerationRequest("second", (*known, *text), GREEDY, max_tokens=40)).result()
    assert second.tokens == alone.tokens
