"""The head of a model that ranks pairs of texts, as a header tells of it."""

from __future__ import annotations

from collections.abc import Mapping

from gguf import PoolingType
from gguf.constants import GGUFValueType

from erllama.gguf.header import GgufHeader, TensorInfo


def names_rank_pooling(header: GgufHeader, architecture: str) -> bool:
    """Whether the output of this model is meant to be a score."""
    return header.get_int(f"{architecture}.pooling_type") == PoolingType.RANK


def count_scores(header: GgufHeader, architecture: str, tensors: Mapping[str, TensorInfo]) -> int:
    """How many numbers the head gives for a pair; 0 for a model without one. Raises `ModelLoadError`
    when that differs from its labels: llama.cpp reads one number per label, also beyond the last.
    """
    if not names_rank_pooling(header, architecture):
        return 0
    head = tensors.get("cls.output.weight") or tensors.get("cls.weight")
    if head is None:
        return 0
    n_scores = head.shape[1] if len(head.shape) > 1 else 1
    n_labels = _count_labels(header, architecture)
    if n_scores != n_labels:
        raise header.error(f"{head.name} gives {n_scores} scores for {n_labels} labels")
    return n_scores


def _count_labels(header: GgufHeader, architecture: str) -> int:
    key = f"{architecture}.classifier.output_labels"
    labels = header.metadata.get(key)
    if labels is None:
        return 1
    if labels.item_type is not GGUFValueType.STRING:
        raise header.error(f"{key} is no array of strings")
    return len(labels.data) or 1
