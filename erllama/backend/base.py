"""What the engine needs from an inference library. `LlamaBackend` is the real one,
`StubBackend` the deterministic one for tests.

All methods are called from the engine thread, except `abort`, `piece`, `new_image`, `check_adapter`
and the properties, which are safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from erllama.backend.batch_plan import BatchPlan
from erllama.backend.special_tokens import SpecialTokens
from erllama.gguf.check import GgufInfo
from erllama.grammar.matcher import GrammarCompiler
from erllama.kv.layout import KvImage, KvLayout, KvReading, Rows
from erllama.sequence.sampling import Logits
from erllama.stats import GpuDevice


class Vocab(Protocol):
    """Text to token ids and back. Static: any thread may call it, also beside a decode."""

    adds_bos: bool
    specials: SpecialTokens
    bos_text: str
    eos_text: str
    chat_template: str | None  # the default one
    named_templates: Mapping[str, str]  # its variants by name, such as "tool_use"

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`."""

    def control_texts(self) -> Sequence[str]:
        """The texts that `parse_special` reads as control tokens. Milliseconds per 10,000 tokens
        of the vocabulary.
        """

    def cut_texts(self) -> Sequence[str]:
        """Those before which a text may be cut without changing its ids; may be none."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens left out. Raises `InvalidParameter` for an unknown
        id.
        """


class Backend(Protocol):
    """One loaded model with one context of `n_parallel` sequences. Attributes never change,
    properties do.
    """

    n_ctx: int  # context of one sequence in tokens
    n_vocab: int  # length of a row of logits
    generates: bool  # False for encoder models (BERT and its family): they only embed
    embeds: bool  # whether `embed` works
    rank_tokens: int  # of a pair of texts that `rank` takes, at most; 0: there is no rank head
    max_logits: int  # rows of logits that one decode may want in all: so many rows of `n_vocab` floats are kept
    eog_tokens: frozenset[int]  # what ends a generation
    grammars: GrammarCompiler  # compiles what replies must follow; any thread
    n_threads: int  # that it computes with at most
    adapts_threads: bool  # whether `set_threads` may be called
    state_version: str  # the build whose states these are: another one may lay them out, or compute them, differently

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        """Compute the plan; one entry per row: the logits after its last `n_logits` tokens, in
        order, each of shape (n_vocab,).

        Logits are views that are valid, and may be changed, until the next call. Raises
        `DecodeFailed`, also beyond `max_logits`; then the KV of the plan's sequences is in an
        unknown state and the caller drops them. Raises `DecodeAborted` after an `abort`; then so is
        the context, and the caller reads what it still wants and makes a new one.
        """

    def set_threads(self, n_threads: int) -> None:
        """Compute with so many threads from the next decode on: 1 to `n_threads`. Contexts that are
        made later do, too.
        """

    @property
    def slice_unit(self) -> int:
        """Slices of a prompt may end at its multiples, and the rest behind the last one is a slice of
        its own: then KV is the same, bit for bit, whatever their lengths. 0: only slices of one length
        are known to compute alike.
        """

    def exact_rows(self, n_sequences: int, n_tokens: int) -> int:
        """How many rows a decode of generating sequences may have in all for the logits to be those, bit
        for bit, of decodes of one row for each sequence; 1 where that is not known.

        At least `n_sequences` have ids that follow each other, each has the same number of rows, none
        more than `n_tokens` in the context, and none an adapter.
        """

    def abort(self) -> None:
        """End the decode that runs now, as soon as the device can. Any thread. Without one it does
        nothing, or is forgotten by the next.
        """

    def drop(self, seq_id: int) -> None:
        """Forget the KV of a sequence. A sequence without KV is fine, and so is no context."""

    @property
    def kv_layout(self) -> KvLayout:
        """The kind of state that this model keeps, and its rows. Known from load on; any thread."""

    def read_kv(self, seq_id: int, n_tokens: int) -> KvReading:
        """The whole state of a sequence, which must hold exactly `n_tokens`. Its views are valid
        until the next call of any method.

        Raises `KvUnreadable` when the layout is opaque or the state is not as expected; the
        sequence is as it was.
        """

    def read_checkpoint(self, seq_id: int) -> Rows | None:
        """The checkpoint at the end of a sequence alone, which is cheap; None for kinds without.
        Else as `read_kv`.
        """

    def new_image(self, n_tokens: int) -> KvImage:
        """Room for a state of up to `n_tokens`; the caller closes it. Any thread; needs no context.
        Raises `KvUnreadable` if opaque.
        """

    def prefault(self, max_bytes: int) -> None:
        """Touch buffers for states, up to `max_bytes` of each, so that the first restore need not.
        Any thread; takes about 1 ms per MB.
        """

    def restore(self, seq_id: int, image: KvImage, n_tokens: int) -> None:
        """Put the first `n_tokens` of an image into a sequence that holds nothing.

        Raises `DecodeFailed`, and leaves it empty, when rows are missing, the checkpoint is of
        another position, or llama.cpp refuses. A shorter prefix than the image has room for is
        moved together: from then on the image has room for no more.
        """

    def cut(self, seq_id: int, n_tokens: int) -> bool:
        """Keep the first `n_tokens`. False when the kind cannot be cut there; then nothing changed.
        0 always works.
        """

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> bool:
        """Copy the first `n_tokens` of `source`, exactly, to `target`, which holds nothing. False
        when the kind cannot be cut there.

        Raises `DecodeFailed` when llama.cpp refuses; then `target` is empty. `source` is untouched
        in any case.
        """

    def swap(self, a: int, b: int) -> None:
        """Exchange the KV of two sequences, exactly; either may be empty. Raises `DecodeFailed`;
        then neither holds any.
        """

    @property
    def has_context(self) -> bool:
        """Whether KV can be held and tokens computed."""

    def release_context(self) -> int:
        """Free the context with the KV of all sequences, and every buffer for states; model and
        adapters stay loaded. Idempotent.

        Returns the bytes of KV and compute buffers that it held, as far as they are known.
        """

    def ensure_context(self) -> bool:
        """Make the context again, loading the weights first if need be; True when there was none.
        Raises `ModelLoadError`.
        """

    @property
    def kv_bytes(self) -> int:
        """What the context holds for KV; 0 without one."""

    @property
    def weights_loaded(self) -> bool:
        """False between `unload` and the next call that needs them."""

    def unload(self) -> int:
        """Free the weights and the adapters; the context must be released. Idempotent. Whatever
        needs them loads them again.

        Returns the bytes by which the process shrank. Raises `ModelLoadError`, and keeps them, when
        they could not be loaded again: the file is gone or is another one.
        """

    def piece(self, token: int) -> bytes:
        """The bytes of a token; control tokens give b""."""

    def token_text(self, token: int) -> bytes:
        """The bytes of a token; those of a control token are its name."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text. Any thread."""

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One pooled, L2-normalised vector of shape (n_embd,) per input. Raises `NotSupported`,
        `ContextOverflow` or `ModelLoadError`.
        """

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """The score of each input, which is a pair of texts as the model reads them. Raises as
        `embed` does.
        """

    def check_adapter(self, path: str) -> None:
        """Read enough of a LoRA GGUF to know that it fits this model. Any thread: takes as long as
        reading the header of the model, too. Raises `ModelLoadError`.
        """

    def load_adapter(self, handle: str, path: str) -> None:
        """Load a checked LoRA GGUF under `handle`. Raises `ModelLoadError`."""

    def free_adapter(self, handle: str) -> None:
        """Free an adapter that no plan will name again."""

    def close(self) -> None:
        """Free context and model. Idempotent."""


class ModelBackend(Backend, Protocol):
    """A backend that was loaded from a file: what `Model` needs beside the engine."""

    info: GgufInfo  # what the file tells about the model
    n_gpu_layers: int  # -1 is all of them
    on_gpu: bool  # whether layers are on a GPU
    weights_mapped: bool  # from the file, all but `weights_private_bytes`, so that the system can take them back

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the model."""

    @property
    def weights_bytes(self) -> int:
        """Size of the loaded weights; 0 while unloaded."""

    @property
    def weights_private_bytes(self) -> int:
        """How much of them is memory of this process that the system cannot take back by itself."""

    def gpu_devices(self) -> tuple[GpuDevice, ...]:
        """The GPUs in sight, with their memory now. Any thread."""
