"""What the engine needs from an inference library. `llama_backend` is the real one, `stub_backend` the deterministic one for tests.

All methods are called from the engine thread, except `piece` and the properties, which are static and safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from erllama.batch_plan import BatchPlan
from erllama.sampling import GrammarGate, Logits

if TYPE_CHECKING:
    from erllama.gguf_check import GgufInfo
    from erllama.stats import GpuDevice


class Vocab(Protocol):
    """Text to token ids and back. Static: any thread may call it, also beside a decode."""

    adds_bos: bool
    bos_text: str
    eos_text: str
    chat_template: str | None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens left out. Raises `InvalidParameter` for an unknown id."""


class Backend(Protocol):
    """One loaded model with one context of `n_parallel` sequences."""

    @property
    def n_ctx(self) -> int:
        """Context of one sequence in tokens."""

    @property
    def n_vocab(self) -> int:
        """Length of a row of logits."""

    @property
    def generates(self) -> bool:
        """False for encoder models (BERT and its family): they only embed."""

    @property
    def embeds(self) -> bool:
        """Whether `embed` works."""

    def decode(self, plan: BatchPlan) -> list[Logits | None]:
        """Compute the plan; one entry per row: logits after its last token, shape (n_vocab,), or None where none were wanted.

        A row is a view that is valid, and may be changed, until the next call. Raises `DecodeFailed`; then the KV of the plan's
        sequences is in an unknown state and the caller drops them.
        """

    def drop(self, seq_id: int) -> None:
        """Forget the KV of a sequence. A sequence without KV is fine."""

    def move(self, source: int, target: int) -> None:
        """Move the KV of sequence `source`, exactly, to `target`, which holds none; afterwards `source` holds none.

        Raises `DecodeFailed` when it cannot; then neither holds any.
        """

    @property
    def eog_tokens(self) -> frozenset[int]:
        """Tokens that end a generation."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; control tokens give b""."""

    def new_grammar(self, gbnf: str) -> GrammarGate:
        """A gate at the start of the grammar. Raises `InvalidParameter` when it does not parse."""

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One pooled, L2-normalised vector of shape (n_embd,) per input. Raises `NotSupported` or `ContextOverflow`."""

    def load_adapter(self, handle: str, path: str) -> None:
        """Load a LoRA GGUF under `handle`. Raises `ModelLoadError`."""

    def free_adapter(self, handle: str) -> None:
        """Free an adapter that no plan will name again."""

    def close(self) -> None:
        """Free context and model. Idempotent."""


class ModelBackend(Backend, Protocol):
    """A backend that was loaded from a file: what `Model` needs beside the engine."""

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the model."""

    @property
    def info(self) -> GgufInfo:
        """What the file tells about the model."""

    @property
    def n_gpu_layers(self) -> int:
        """Layers on a GPU; -1 is all of them."""

    def gpu_devices(self) -> tuple[GpuDevice, ...]:
        """The GPUs in sight, with their memory now. Any thread."""
