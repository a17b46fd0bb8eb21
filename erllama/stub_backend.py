"""A deterministic `Backend` without a model: for tests of everything above it. Nothing falls back to it by itself.

Vocabulary: token 0..255 is that byte, 256 ends a generation. The "KV" of a sequence is its list of tokens, so every bookkeeping error of
the engine (a wrong start, a missing drop, a shared id) is an assertion here. Logits are a function of all tokens of the sequence and of
its adapter set alone; they favour lower-case letters and spaces, and the end after `reply_tokens` of them on average.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erllama.adapters import AdapterSet
from erllama.batch_plan import BatchPlan
from erllama.config import EngineConfig
from erllama.errors import DecodeFailed, InvalidParameter, ModelLoadError
from erllama.gguf_check import GgufInfo
from erllama.sampling import GrammarGate, Logits
from erllama.stats import GpuDevice

EOG = 256
N_VOCAB = 257
_LETTERS = np.frombuffer(b"etaoin shrdlucmfwypvbgkqjxz", dtype=np.uint8)
_N_EMBD = 8
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


class StubVocab:
    """One token per byte."""

    adds_bos = False
    bos_text = ""
    eos_text = ""

    def __init__(self, chat_template: str | None = CHATML) -> None:
        self.chat_template = chat_template

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if not 0 <= token < N_VOCAB:
                raise InvalidParameter(f"tokens holds id {token}; the vocabulary has ids 0 to {N_VOCAB - 1}", param="tokens")
        return bytes(token for token in tokens if token != EOG).decode(errors="replace")


class StubBackend:
    """`fail_tokens`: a decode whose batch holds one of these ids raises `DecodeFailed`; `reply_tokens`: 0 never ends by itself."""

    generates = True
    embeds = True
    n_vocab = N_VOCAB
    n_gpu_layers = 0
    eog_tokens = frozenset({EOG})

    def __init__(self, n_ctx: int = 512, n_parallel: int = 4, *, reply_tokens: int = 32, fail_tokens: frozenset[int] = frozenset()) -> None:
        self.n_ctx = n_ctx
        self.kv: list[list[int]] = [[] for _ in range(n_parallel)]
        self.plans: list[list[tuple[int, int, int]]] = []  # per decode: (seq_id, start, n_tokens) of each row
        self.adapters: dict[str, str] = {}
        self.closed = False
        self.vocab = StubVocab()
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
        """What `Model(config, make_backend=StubBackend.from_config)` calls. The file of the config is not opened."""
        return cls(config.n_ctx or 512, config.n_parallel)

    def decode(self, plan: BatchPlan) -> list[Logits | None]:
        assert not self.closed, "decode after close"
        assert {use.handle for use in plan.adapters} <= set(self.adapters), "an adapter of the plan is not loaded"
        self.plans.append([(row.seq_id, row.start, row.n_tokens) for row in plan.rows])
        if any(token in self._fail_tokens for row in plan.rows for token in row.tokens):
            raise DecodeFailed("the stub was told to fail on this token")
        rows: list[Logits | None] = []
        for row in plan.rows:
            kv = self.kv[row.seq_id]
            assert len(kv) == row.start, f"sequence {row.seq_id} holds {len(kv)} tokens, the plan starts at {row.start}"
            kv.extend(row.tokens)
            assert len(kv) <= self.n_ctx, "context overflow"
            rows.append(self._logits(kv, plan.adapters) if row.wants_logits else None)
        return rows

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
        self.kv[seq_id].clear()

    def move(self, source: int, target: int) -> None:
        assert not self.kv[target], f"sequence {target} still holds {len(self.kv[target])} tokens"
        self.kv[source], self.kv[target] = [], self.kv[source]

    def piece(self, token: int) -> bytes:
        return b"" if token == EOG else bytes([token])

    def new_grammar(self, gbnf: str) -> GrammarGate:
        """The stub's grammars: `root ::= "text"` allows exactly that text, then the end."""
        head, _, rest = gbnf.partition("::=")
        text = rest.strip()
        if head.strip() != "root" or len(text) < 2 or text[0] != '"' or text[-1] != '"':
            raise InvalidParameter("grammar does not parse", param="grammar")
        return _LiteralGate([*text[1:-1].encode(), EOG])

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        vectors = []
        for tokens in inputs:
            vector = np.array([sum(tokens), len(tokens), *([1] * (_N_EMBD - 2))], dtype=np.float32)
            vectors.append(vector / np.linalg.norm(vector))
        return vectors

    def load_adapter(self, handle: str, path: str) -> None:
        if "bad" in path:
            raise ModelLoadError(f"cannot load adapter {path}: the stub refuses it", param="path")
        self.adapters[handle] = path

    def free_adapter(self, handle: str) -> None:
        del self.adapters[handle]

    def close(self) -> None:
        self.closed = True


class _LiteralGate:
    def __init__(self, expected: list[int]) -> None:
        self._expected = expected
        self.closed = False

    def allows(self, token: int) -> bool:
        return bool(self._expected) and token == self._expected[0]

    def mask(self, logits: Logits) -> None:
        keep = logits[self._expected[0]] if self._expected else None
        logits[:] = -np.inf
        if keep is not None:
            logits[self._expected[0]] = keep

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self._expected.pop(0)

    def close(self) -> None:
        self.closed = True
