"""What an ingress tells Ray's metrics."""

from __future__ import annotations

from ray.util.metrics import Counter


class IngressMetrics:
    """One per process. Any thread."""

    def __init__(self) -> None:
        self._noise = Counter(
            "erllama_prompt_noise",
            description="What rules took out of prompts that changes though nothing was said.",
            tag_keys=("rule",),
        )

    def count_noise(self, rule: str, n: int) -> None:
        """`rule` did what it says `n` times; NAME.left is a text that it found no place for."""
        self._noise.inc(n, tags={"rule": rule})
