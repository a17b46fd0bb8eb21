"""Replies of `/api/embed` and `/api/embeddings`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from deployments.dialects.ollama.reply import ReplyHead
from deployments.http.body import encode


def embed_body(
    head: ReplyHead, vectors: Sequence[Sequence[float]], prompt_tokens: int, dimensions: int | None
) -> bytes:
    """Vectors of length 1, cut to `dimensions` where they have more. Encoding 1000 floats takes a
    millisecond: call it off the event loop for many vectors.
    """
    return encode(
        {
            "model": head.model,
            "embeddings": [_cut(vector, dimensions) for vector in vectors],
            "total_duration": time.monotonic_ns() - head.started_ns,
            "prompt_eval_count": prompt_tokens,
        }
    ).encode()


def _cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    floats = np.asarray(vector, dtype="<f4")
    if dimensions and dimensions < len(floats):
        floats = floats[:dimensions]
        length = np.linalg.norm(floats)
        floats = floats / length if length > 0 else floats
    cut: list[float] = floats.tolist()
    return cut


def embedding_body(vectors: Sequence[Sequence[float]]) -> bytes:
    """The older form: one vector, or none for no prompt."""
    return encode({"embedding": _cut(vectors[0], None) if vectors else []}).encode()
