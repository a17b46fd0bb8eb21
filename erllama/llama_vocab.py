"""The vocabulary of a GGUF: text to token ids and back.

It is static once loaded: every method may be called from any thread, also while the engine decodes with the same model. The ingress loads
the vocabulary alone (`LlamaVocab.load`, no weights); the engine shares the one of its model (`LlamaVocab.of_model`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from erllama.errors import InvalidParameter, ModelLoadError
from erllama.gguf_check import inspect_gguf
from erllama.llama_library import captured_errors, initialise

_NULL_TOKEN = -1


class LlamaVocab:
    """Tokenizer, detokenizer and special tokens of one model. `pointer` is the llama_vocab*."""

    def __init__(self, model: Any, *, owns_model: bool) -> None:
        self._model = model
        self._owns_model = owns_model
        self.pointer = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.pointer))
        self.bos = int(llama_cpp.llama_vocab_bos(self.pointer))
        self.eos = int(llama_cpp.llama_vocab_eos(self.pointer))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.pointer))
        self.eog_tokens = frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.pointer, t))
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self.bos_text = self._special_text(self.bos)
        self.eos_text = self._special_text(self.eos)
        template = llama_cpp.llama_model_chat_template(model, None)
        self.chat_template: str | None = template.decode(errors="replace") if template else None

    @classmethod
    def load(cls, path: str) -> LlamaVocab:
        """The vocabulary of a GGUF file without its weights. Raises `ModelLoadError`."""
        inspect_gguf(path)
        initialise()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        with captured_errors() as errors:
            model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise ModelLoadError(f"cannot load the vocabulary of {path}: {'; '.join(errors) or 'llama.cpp gives no reason'}")
        return cls(model, owns_model=True)

    @classmethod
    def of_model(cls, model: Any) -> LlamaVocab:
        """The vocabulary of a loaded model, which must outlive it."""
        return cls(model, owns_model=False)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS/EOS where the model wants them; `parse_special` reads "<|im_start|>" and the like
        as the control tokens they name."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text holds a lone surrogate at index {error.start}", param="text") from error
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            n = llama_cpp.llama_tokenize(self.pointer, data, len(data), buffer, size, add_special, parse_special)
            if n >= 0:
                return list(buffer[:n])
            size = -n

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`, invalid UTF-8 replaced. `special` shows control tokens by their names."""
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise InvalidParameter(f"tokens holds id {token}; the vocabulary has ids 0 to {self.n_vocab - 1}", param="tokens")
        join = (self._piece(t, special=True) for t in tokens) if special else (self.piece(t) for t in tokens)
        return b"".join(join).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of a token as it appears in a reply; b"" for control tokens. Cached."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=False)
        return piece

    def close(self) -> None:
        """Free the model if this vocabulary loaded it. Idempotent; no other method may be called afterwards."""
        if self._owns_model and self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def _special_text(self, token: int) -> str:
        return "" if token == _NULL_TOKEN else self._piece(token, special=True).decode(errors="replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
