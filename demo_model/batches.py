"""Training batches: rows of one length, drawn by a curriculum that is a pure function of (seed,
step, tokens so far).

A micro-batch holds TOKENS_PER_MICRO tokens: as many rows of the drawn length as fit. A row is one
conversation, padded or cut, or (rarely) random tokens repeated, which keeps the copying heads
exact. Nothing here remembers anything between steps, so a resumed run sees the very rows the
uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenizers import Tokenizer

from demo_model import conversations
from demo_model.entities import Side
from demo_model.template import IM_END, IM_START, render

TOKENS_PER_MICRO = 4096
# Prompt tokens count a little: they teach the language, but random names in them cannot be
# predicted.
PROMPT_WEIGHT = 0.1
# (until this share of the schedule, {row length: share of the tokens}, share of repeated random
# rows)
CURRICULUM: tuple[tuple[float, dict[int, float], float], ...] = (
    (0.05, {128: 0.8, 256: 0.2}, 0.15),
    (0.15, {128: 0.4, 256: 0.3, 512: 0.3}, 0.08),
    (0.35, {128: 0.2, 256: 0.25, 512: 0.35, 1024: 0.2}, 0.08),
    (1.00, {128: 0.2, 256: 0.2, 512: 0.25, 1024: 0.15, 2048: 0.2}, 0.08),
)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Flattened rows: `weights[i]` is the loss weight of predicting `targets[i]` from the tokens up
    to i; 0 for padding.
    """

    n_rows: int
    row_length: int
    tokens: list[int]
    targets: list[int]
    weights: list[float]


class BatchMaker:
    def __init__(self, tokenizer: Tokenizer, *, seed: int, curriculum_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._curriculum_tokens = curriculum_tokens
        self._start, self._end = _id_of(tokenizer, IM_START), _id_of(tokenizer, IM_END)
        self._assistant = tokenizer.encode("assistant\n").ids

    def micro_batch(self, step: int, micro: int, n_tokens: int) -> MicroBatch:
        rng = random.Random(f"{self._seed}/{step}/{micro}")
        progress = n_tokens / self._curriculum_tokens
        lengths, copy_share = next(
            ((lengths, share) for until, lengths, share in CURRICULUM if progress < until), CURRICULUM[-1][1:]
        )
        length = rng.choices(list(lengths), list(lengths.values()))[0]
        batch = MicroBatch(TOKENS_PER_MICRO // length, length, [], [], [])
        for _ in range(batch.n_rows):
            ids, weights = self._copy_row(rng, length) if rng.random() < copy_share else self._row(rng, length)
            # One token more than the row is long, to predict.
            ids, weights = ids[: length + 1], weights[: length + 1]
            padding = length + 1 - len(ids)
            ids, weights = ids + [0] * padding, weights + [0.0] * padding
            batch.tokens.extend(ids[:-1])
            batch.targets.extend(ids[1:])
            batch.weights.extend(weights[1:])
        return batch

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def _row(self, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
        # Shorter than the row at times, so that the end of a conversation is not a matter of
        # position.
        budget = length - rng.randrange(4, 4 + length // 8)
        made = conversations.generate(rng, Side.TRAIN, budget=budget, row_length=length, count=self.count)
        ids = self._tokenizer.encode(render(made.messages, tools=made.tools)).ids
        return ids, self.weigh(ids)

    def weigh(self, ids: list[int]) -> list[float]:
        """1 for what the assistant says and the token that ends it, PROMPT_WEIGHT for the rest."""
        weights = [PROMPT_WEIGHT] * len(ids)
        position = 0
        while position < len(ids):
            header = ids[position : position + 1 + len(self._assistant)]
            if header[:1] == [self._start] and header[1:] == self._assistant:
                position += len(header)
                while position < len(ids):
                    weights[position] = 1.0
                    if ids[position] == self._end:
                        break
                    position += 1
            position += 1
        return weights

    def _copy_row(self, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
        period = rng.randrange(8, max(9, min(length // 2, 200)))
        pattern = [rng.randrange(3, self._start - 1) for _ in range(period)]
        ids = (pattern * (length // period + 2))[: length + 1]
        return ids, [0.0] * period + [0.5] * (length + 1 - period)


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    id: int | None = tokenizer.token_to_id(text)
    if id is None:
        raise ValueError(f"the tokenizer does not know {text!r}")
    return id
