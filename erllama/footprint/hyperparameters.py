"""A header's numbers as llama.cpp reads them: `{architecture}.{name}`, one value or one per layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from erllama.gguf.header import GgufHeader

_MAX_LAYERS = 1024  # llama-hparams.h: LLAMA_MAX_LAYERS is less


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The metadata of one architecture. Every method raises `ModelLoadError` for a value of another type."""

    header: GgufHeader
    architecture: str

    @classmethod
    def of(cls, header: GgufHeader) -> Hyperparameters:
        architecture = header.get_string("general.architecture")
        if not architecture:
            raise header.error("has no general.architecture")
        return cls(header, architecture)

    @property
    def n_layer(self) -> int:
        """Blocks, those for predicting further tokens (`nextn`) included."""
        n_layer = self.number("block_count")
        if not 0 < n_layer <= _MAX_LAYERS:
            raise self.header.error(f"{self.architecture}.block_count is {n_layer}, expected 1 to {_MAX_LAYERS}")
        return n_layer

    def number(self, name: str, otherwise: int = 0) -> int:
        found = self.header.get_int(f"{self.architecture}.{name}")
        return otherwise if found is None else found

    def flag(self, name: str, otherwise: bool) -> bool:
        value = self.header.metadata.get(f"{self.architecture}.{name}")
        return otherwise if value is None else bool(value.data)

    def per_layer(self, name: str, otherwise: int = 0) -> tuple[int, ...]:
        """One number per layer. A scalar in the file holds for all of them, as `get_key_or_arr` in
        llama-model-loader.cpp has it; a short array ends in `otherwise`.
        """
        key, n_layer = f"{self.architecture}.{name}", self.n_layer
        value = self.header.metadata.get(key)
        if value is None or not isinstance(value.data, np.ndarray):
            return (self.number(name, otherwise),) * n_layer
        if value.data.dtype.kind not in "iub":
            raise self.header.error(f"{key} is an array of {value.data.dtype}, expected integers")
        numbers = [int(item) for item in value.data[:n_layer]]
        return (*numbers, *[otherwise] * (n_layer - len(numbers)))
