"""The LoRA adapters that a sequence computes with: a value, fixed when the sequence is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter at one scale, as a batch applies it. Equal digests at equal scales give equal
    KV.
    """

    handle: str
    sha256: str
    scale: float


AdapterSet = tuple[AdapterUse, ...]
