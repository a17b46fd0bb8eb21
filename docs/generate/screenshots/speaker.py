"""A backend that computes nothing and writes given replies, a byte per token, at a steady speed."""

from __future__ import annotations

import time

import numpy as np

from erllama.backend.batch_plan import BatchPlan
from erllama.sequence.sampling import Logits
from erllama.testing.stub_backend import EOG, N_VOCAB, StubBackend

REPLIES = {
    "What is a KV cache?": (
        "While a model reads a prompt it computes **keys and values** for each token. Kept, they need not be "
        "computed again when the next prompt *begins with the same tokens*.\n\n"
        "- The next turn of a conversation begins with all turns before it.\n"
        "- Agents send the same instructions and tools with each request.\n"
    ),
    "And when the server restarts?": (
        "They are files in the store, so they come back:\n\n"
        "```sh\nerllama cache ls\n```\n\nshows what is kept, and how often it was used.\n"
    ),
}
OTHERWISE = "It is kept."
PREFILL_TOKENS_PER_S = 4000.0
STEP_S = 0.002
_ASKED, _ANSWERED = b"user: ", b"\nassistant: "


class SpeakingBackend(StubBackend):
    """What the user said last, in the form of the tests' `FakePrompts`, chooses the reply."""

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        time.sleep(STEP_S + sum(row.n_tokens for row in plan.rows) / PREFILL_TOKENS_PER_S)
        found = super().decode(plan)
        return [self._said(self.kv[row.seq_id], len(logits)) for row, logits in zip(plan.rows, found, strict=True)]

    def _said(self, tokens: list[int], n_logits: int) -> tuple[Logits, ...]:
        """The logits after the last `n_logits` tokens."""
        ends = range(len(tokens) - n_logits + 1, len(tokens) + 1)
        return tuple(_only(next_token(bytes(tokens[:end]))) for end in ends)


def next_token(text: bytes) -> int:
    """The token behind a prompt and what has been said of the reply to it."""
    before, _, said = text.rpartition(_ANSWERED)
    question = before.rpartition(_ASKED)[2].decode(errors="replace")
    reply = REPLIES.get(question, OTHERWISE).encode()
    return reply[len(said)] if len(said) < len(reply) else EOG


def _only(token: int) -> Logits:
    logits = np.full(N_VOCAB, -50.0, dtype=np.float32)
    logits[token] = 50.0
    return logits
