"""A deterministic `Backend` without a model: for tests of everything above it. Nothing falls back
to it by itself.

Vocabulary: token 0..255 is that byte, 256 ends a generation. The "KV" of a sequence is its list of
tokens (`stub_kv.py` has its rows), so every bookkeeping error of the engine (a wrong start, a missing
drop, a shared id, a wrong restore) is an assertion here. Logits are a function of all tokens of the
sequence and of its adapter set alone; they favour lower-case letters and spaces, and the end after
`reply_tokens` of them on average.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erllama.backend.batch_plan import BatchPlan
from erllama.backend.special_tokens import FimTokens, SpecialTokens
from erllama.config import EngineConfig
from erllama.errors import ContextOverflow, DecodeAborted, DecodeFailed, InvalidParameter, ModelLoadError
from erllama.gguf.check import GgufInfo
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable
from erllama.kv.layout import KvImage, KvKind, KvLayout, KvReading, Rows
from erllama.kv.state_bytes import KvUnreadable
from erllama.sequence.sampling import Logits
from erllama.stats import AdapterSet, GpuDevice
from erllama.testing.stub_kv import ROW_BYTES, TOKEN_BYTES, StubImage, StubSequence, set_name, stub_layout

EOG = 256
N_VOCAB = 257
_LETTERS = np.frombuffer(b"etaoin shrdlucmfwypvbgkqjxz", dtype=np.uint8)
_N_EMBD = 8
_WEIGHTS_BYTES = 1000
_HANG_S = 20.0
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class StubVocab:
    """One token per byte; bytes that no UTF-8 text has are its special tokens."""

    adds_bos = False
    specials = SpecialTokens(sep=0xFF, adds_sep=True, fim=FimTokens(0xF8, 0xF9, 0xFA, 0xFB, 0xFC))
    bos_text = ""
    eos_text = ""

    def __init__(self, chat_template: str | None = CHATML) -> None:
        self.chat_template = chat_template
        self.named_templates: Mapping[str, str] = {}

    def token_table(self) -> TokenTable:
        return TokenTable([*(bytes([byte]) for byte in range(EOG)), b"<end>"], frozenset({EOG}), frozenset({EOG}))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def control_texts(self) -> Sequence[str]:
        return ()

    def cut_texts(self) -> Sequence[str]:
        return ()

    def detokenize(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if not 0 <= token < N_VOCAB:
                raise InvalidParameter(
                    f"tokens holds id {token}; the vocabulary has ids 0 to {N_VOCAB - 1}", param="tokens"
                )
        return bytes(token for token in tokens if token != EOG).decode(errors="replace")


class StubBackend:
    """`fail_tokens`: a decode whose batch holds one of these ids raises `DecodeFailed`;
    `reply_tokens`: 0 never ends by itself.

    `kind` is that of the model whose state it keeps. `calls` counts the calls by method that touch
    states, `images` are all that were made; `fail_restores` of the next `restore` calls raise
    `DecodeFailed`. The next `hangs` decodes last until `abort`, which answers the one that runs
    when it is called.
    """

    generates = True
    embeds = True
    n_vocab = N_VOCAB
    n_gpu_layers = 0
    on_gpu = False
    weights_mapped = True
    weights_private_bytes = 0
    eog_tokens = frozenset({EOG})
    state_version = "stub 1"

    def __init__(
        self,
        n_ctx: int = 512,
        n_parallel: int = 4,
        *,
        reply_tokens: int = 32,
        fail_tokens: frozenset[int] = frozenset(),
        kind: KvKind = KvKind.ATTENTION,
    ) -> None:
        self.n_ctx = self.rank_tokens = n_ctx
        self.max_logits = max(n_parallel, 64)
        self.kind = kind
        self.has_context = True
        self.calls: Counter[str] = Counter()
        self.images: list[StubImage] = []
        self.fail_restores = 0
        self.hangs = 0
        self.load_problem = ""
        self.weights_loaded = True
        self._abort = threading.Event()
        self._sequences = [StubSequence() for _ in range(n_parallel)]
        self._reading: tuple[Rows, ...] = ()  # the buffers that the last one shows
        self.plans: list[list[tuple[int, int, int]]] = []  # per decode: (seq_id, start, n_tokens) of each row
        self.adapters: dict[str, str] = {}
        self.closed = False
        self.vocab = StubVocab()
        self.grammars = GrammarCompiler(self.vocab.token_table)
        self.info = GgufInfo(
            path=Path("stub.gguf"),
            architecture="stub",
            name="stub",
            n_layer=1,
            n_embd=_N_EMBD,
            n_ctx_train=n_ctx,
            n_vocab=N_VOCAB,
            n_params=0,
            size_bytes=0,
            file_type="F32",
            bits_per_weight=32.0,
            chat_template=self.vocab.chat_template,
        )
        self._reply_tokens = reply_tokens
        self._fail_tokens = fail_tokens

    @classmethod
    def from_config(cls, config: EngineConfig) -> StubBackend:
        """What `Model(config, make_backend=StubBackend.from_config)` calls. The file of the config
        is not opened.
        """
        return cls(config.n_ctx or 512, config.n_parallel)

    @property
    def kv(self) -> list[list[int]]:
        """The tokens that each sequence holds."""
        return [sequence.tokens for sequence in self._sequences]

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        assert not self.closed, "decode after close"
        assert self.has_context, "decode without a context"
        self._end_reading()
        if sum(row.n_logits for row in plan.rows) > self.max_logits:
            raise DecodeFailed(f"a decode may want {self.max_logits} rows of logits")
        assert {use.handle for use in plan.adapters} <= set(self.adapters), "an adapter of the plan is not loaded"
        self.plans.append([(row.seq_id, row.start, row.n_tokens) for row in plan.rows])
        if self.hangs:
            self._hang(plan)
        if any(token in self._fail_tokens for row in plan.rows for token in row.tokens):
            raise DecodeFailed("the stub was told to fail on this token")
        rows: list[tuple[Logits, ...]] = []
        for row in plan.rows:
            kv = self.kv[row.seq_id]
            assert len(kv) == row.start, f"sequence {row.seq_id} holds {len(kv)} tokens, the plan starts at {row.start}"
            self._sequences[row.seq_id].extend(row.tokens, set_name(plan.adapters))
            assert len(kv) <= self.n_ctx, "context overflow"
            rows.append(
                tuple(self._logits(kv[:n], plan.adapters) for n in range(len(kv) - row.n_logits + 1, len(kv) + 1))
            )
        return rows

    def exact_rows(self, n_sequences: int, n_tokens: int) -> int:
        return self.max_logits

    def abort(self) -> None:
        self._abort.set()

    def _hang(self, plan: BatchPlan) -> None:
        self.hangs -= 1
        self._wait_for_abort()
        for row in plan.rows:  # as llama.cpp does: what was computed so far stays
            self._sequences[row.seq_id].extend(row.tokens[:1], set_name(plan.adapters))
        raise DecodeAborted("the stub was told to hang")

    def _wait_for_abort(self) -> None:
        self._abort.clear()
        assert self._abort.wait(_HANG_S), "nobody aborts a decode that hangs"

    def _logits(self, kv: list[int], adapters: AdapterSet) -> Logits:
        digest = hashlib.sha256(np.asarray(kv, dtype="<u4").tobytes())
        for use in adapters:
            digest.update(f"{use.sha256}*{use.scale}".encode())
        noise = np.frombuffer(hashlib.shake_256(digest.digest()).digest(len(_LETTERS) + 1), dtype=np.uint8)
        logits = np.full(N_VOCAB, -20.0, dtype=np.float32)
        logits[_LETTERS] = noise[:-1].astype(np.float32) / 32.0
        if self._reply_tokens and int(noise[-1]) * self._reply_tokens < 256:
            logits[EOG] = 20.0
        return logits

    def gpu_devices(self) -> tuple[GpuDevice, ...]:
        return ()

    def drop(self, seq_id: int) -> None:
        self._sequences[seq_id].cut(0)

    @property
    def kv_layout(self) -> KvLayout:
        return stub_layout(self.kind)

    def read_kv(self, seq_id: int, n_tokens: int) -> KvReading:
        self._count("read_kv")
        return self._read(seq_id, n_tokens)

    def read_checkpoint(self, seq_id: int) -> Rows | None:
        self._count("read_checkpoint")
        return self._read(seq_id, len(self.kv[seq_id])).checkpoint

    def _read(self, seq_id: int, n_tokens: int) -> KvReading:
        self._end_reading()
        if self.kind is KvKind.OPAQUE or not n_tokens or len(self.kv[seq_id]) != n_tokens:
            raise KvUnreadable(
                f"sequence {seq_id} of a {self.kind} stub holds {len(self.kv[seq_id])} tokens, expected {n_tokens}"
            )
        table = self._sequences[seq_id].rows()
        checkpoint = table.reshape(-1).copy() if self.kind.has_checkpoint else None
        self._reading = (table,) if checkpoint is None else (table, checkpoint)
        columns = (table[:, :TOKEN_BYTES], table[:, TOKEN_BYTES:]) if self.kv_layout.columns else ()
        return KvReading(n_tokens, columns, None, checkpoint)

    def prefault(self, max_bytes: int) -> None:
        return

    def new_image(self, n_tokens: int) -> StubImage:
        if self.kind is KvKind.OPAQUE:
            raise KvUnreadable("an opaque stub takes no images")
        self.images.append(StubImage(self.kind, n_tokens))
        return self.images[-1]

    def restore(self, seq_id: int, image: KvImage, n_tokens: int) -> None:
        self._count("restore")
        assert isinstance(image, StubImage)
        assert n_tokens <= self.n_ctx, "context overflow"
        if self.fail_restores:
            self.fail_restores -= 1
            raise DecodeFailed("the stub was told to fail")
        try:
            table = image.table(n_tokens)
        except ValueError as error:
            raise DecodeFailed(f"cannot restore {n_tokens} tokens: {error}") from error
        self._sequences[seq_id].take_rows(table)

    def cut(self, seq_id: int, n_tokens: int) -> bool:
        self._count("cut")
        assert 0 <= n_tokens <= len(self.kv[seq_id]), (seq_id, n_tokens, len(self.kv[seq_id]))
        if not self._cuttable(seq_id, n_tokens):
            return False
        self._sequences[seq_id].cut(n_tokens)
        return True

    def _cuttable(self, seq_id: int, n_tokens: int) -> bool:
        return self.kind.cuttable or n_tokens in (0, len(self.kv[seq_id]))

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> bool:
        self._count("copy_prefix")
        assert 0 <= n_tokens <= len(self.kv[source]), (source, n_tokens, len(self.kv[source]))
        assert not self.kv[target], f"sequence {target} still holds {len(self.kv[target])} tokens"
        if not self._cuttable(source, n_tokens):
            return False
        self._sequences[target].take_rows(self._sequences[source].rows()[:n_tokens])
        return True

    def swap(self, a: int, b: int) -> None:
        self._count("swap")
        assert a != b, "a sequence with itself"
        self._sequences[a], self._sequences[b] = self._sequences[b], self._sequences[a]

    def _count(self, call: str) -> None:
        assert not self.closed, f"{call} after close"
        assert self.has_context, f"{call} without a context"
        self._end_reading()
        self.calls[call] += 1

    def _end_reading(self) -> None:
        """What is used after the next call is visibly wrong."""
        for buffer in self._reading:
            buffer[:] = 0xEE
        self._reading = ()

    def release_context(self) -> int:
        if not self.has_context:
            return 0
        self._count("release_context")
        self.has_context = False
        for sequence in self._sequences:
            sequence.cut(0)
        return len(self._sequences) * self.n_ctx * ROW_BYTES

    @property
    def kv_bytes(self) -> int:
        return len(self._sequences) * self.n_ctx * ROW_BYTES if self.has_context else 0

    @property
    def weights_bytes(self) -> int:
        return _WEIGHTS_BYTES if self.weights_loaded else 0

    def unload(self) -> int:
        assert not self.has_context, "a context needs its weights"
        if not self.weights_loaded:
            return 0
        self._check_file()
        self.weights_loaded = False
        self.calls["unload"] += 1
        return _WEIGHTS_BYTES

    def _ensure_weights(self) -> None:
        if not self.weights_loaded:
            self._check_file()
            self.weights_loaded = True
            self.calls["load"] += 1

    def _check_file(self) -> None:
        if self.load_problem:
            raise ModelLoadError(self.load_problem, param="path")

    def ensure_context(self) -> bool:
        if self.has_context:
            return False
        self._ensure_weights()
        self.has_context = True
        self._count("ensure_context")
        return True

    def piece(self, token: int) -> bytes:
        return b"" if token == EOG else bytes([token])

    def token_text(self, token: int) -> bytes:
        return self.piece(token) or b"<end>"

    def tokenize(self, text: str) -> list[int]:
        return self.vocab.tokenize(text)

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self._ensure_weights()
        vectors = []
        for tokens in inputs:
            vector = np.array([sum(tokens), len(tokens), *([1] * (_N_EMBD - 2))], dtype=np.float32)
            vectors.append(vector / np.linalg.norm(vector))
        return vectors

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """The share of an input's bytes that are the letter e."""
        self._ensure_weights()
        if any(len(tokens) > self.rank_tokens for tokens in inputs):
            raise ContextOverflow(f"at most {self.rank_tokens} tokens", param="input")
        self.calls["rank"] += 1
        return [list(tokens).count(ord("e")) / len(tokens) for tokens in inputs]

    def check_adapter(self, path: str) -> None:
        if "wrong" in Path(path).name:
            raise ModelLoadError(f"{path}: is no adapter of the stub", param="path")

    def load_adapter(self, handle: str, path: str) -> None:
        if "bad" in Path(path).name:
            raise ModelLoadError(f"cannot load adapter {path}: the stub refuses it", param="path")
        self._ensure_weights()
        self.adapters[handle] = path

    def free_adapter(self, handle: str) -> None:
        del self.adapters[handle]

    def close(self) -> None:
        self.closed = True
