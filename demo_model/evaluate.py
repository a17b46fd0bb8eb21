"""Measures held-out accuracy of a generator: one `name value unit` line per figure.

`generate` maps a rendered prompt to the reply up to its end token, decoded greedily;
`llama_eval.py` supplies the one that runs the GGUF through llama.cpp. Samples are those of
`samples.py`, at least 200 per bucket and two seeds by default, because 20 samples swing by 15
points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from demo_model.conversations import Count
from demo_model.samples import BUCKETS, Sample, draw_samples


@dataclass(frozen=True, slots=True)
class Figure:
    bucket: str
    n_right: int
    n_samples: int
    mistakes: tuple[tuple[Sample, str], ...]

    def __str__(self) -> str:
        return f"{self.bucket} {100 * self.n_right / self.n_samples:.1f} % ({self.n_right}/{self.n_samples})"


def evaluate(
    generate: Callable[[str], str],
    count: Count,
    *,
    buckets: Sequence[str] = tuple(BUCKETS),
    seeds: Sequence[int] = (1, 2),
    n_samples: int = 200,
) -> Iterator[Figure]:
    """One figure per bucket, over `n_samples` samples of each seed."""
    for bucket in buckets:
        samples = [
            sample for seed in seeds for sample in draw_samples(bucket, seed=seed, n_samples=n_samples, count=count)
        ]
        replies = [(sample, generate(sample.prompt)) for sample in samples]
        mistakes = tuple((sample, reply) for sample, reply in replies if not sample.is_right(reply))
        yield Figure(bucket, len(samples) - len(mistakes), len(samples), mistakes)
