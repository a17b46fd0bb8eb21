"""The reply of `/v1/embeddings`: floats as JSON numbers or as base64 of little-endian float32 (what the official client asks for)."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from deployments.dialects.openai.reply import encode
from deployments.dialects.openai.wire import EmbeddingBody
from erllama.errors import NotSupported


def _vector(vector: Sequence[float], encoding_format: str | None) -> str:
    floats = np.asarray(vector, dtype="<f4")
    return encode(base64.b64encode(floats.tobytes()).decode() if encoding_format == "base64" else floats.tolist())


def embedding_body(body: EmbeddingBody, model: str, vectors: Sequence[Sequence[float]], prompt_tokens: int) -> bytes:
    """The whole reply. Encoding 1000 floats takes a millisecond: call it off the event loop for many vectors.

    Raises `NotSupported` when `dimensions` asks for another size than the model's own.
    """
    native = len(vectors[0])
    if body.dimensions is not None and body.dimensions != native:
        raise NotSupported(f"this model's embeddings have {native} dimensions; they cannot be cut to {body.dimensions}", param="dimensions")
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{_vector(vector, body.encoding_format)}}}'
        for index, vector in enumerate(vectors)
    )
    usage = encode({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens})
    return f'{{"object":"list","data":[{data}],"model":{encode(model)},"usage":{usage}}}'.encode()
