"""The vocabulary of a GGUF: text to token ids and back.

It is static once loaded: every method may be called from any thread, also while the engine decodes
with the same model. The ingress loads the vocabulary alone (`LlamaVocab.load`, no weights); the
engine shares the one of its model, until the model's weights are unloaded
for the first time: from then on it has its own (`stand_alone`), and what lives on the model is
never asked again. Loading one for every model would cost 0.5 s and 44 MB with a vocabulary of 152
k, for the few that are ever unloaded.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp

from erllama.backend.special_tokens import FimTokens, SpecialTokens
from erllama.errors import EngineStopped, InvalidParameter, ModelLoadError
from erllama.grammar.tokenizer import TokenTable
from erllama.llama.library import check_model, load_model

_NULL_TOKEN = -1
_TEMPLATE_KEY = b"tokenizer.chat_template."
_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


@dataclass(slots=True, eq=False)
class _Source:
    """A llama_vocab*, None once closed, the model that must be freed with it, and how many calls
    are using it now.
    """

    pointer: Any
    own_model: Any = None
    n_users: int = 0


class LlamaVocab:
    """Tokenizer, detokenizer and special tokens of one model."""

    def __init__(self, model: Any, *, owns_model: bool = False) -> None:
        """That of a loaded model, which must outlive it, or its `stand_alone`, unless it owns it."""
        pointer = llama_cpp.llama_model_get_vocab(model)
        self._source = _Source(pointer, model if owns_model else None)
        self._unused = threading.Condition()
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(pointer))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(pointer))
        self.eog_tokens = frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(pointer, t))
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self.bos_text = self._special_text(llama_cpp.llama_vocab_bos(pointer))
        self.eos_text = self._special_text(llama_cpp.llama_vocab_eos(pointer))
        self.specials = _special_tokens(pointer)
        template = llama_cpp.llama_model_chat_template(model, None)
        self.chat_template: str | None = template.decode(errors="replace") if template else None
        self.named_templates: Mapping[str, str] = dict(_named_templates(model))

    @classmethod
    def load(cls, path: str) -> LlamaVocab:
        """The vocabulary of a GGUF file without its weights. Raises `ModelLoadError`."""
        return cls(_load_alone(path), owns_model=True)

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        """The llama_vocab*, which nobody frees within the block. Raises `EngineStopped` after
        `close`.
        """
        with self._unused:
            source = self._source
            if source.pointer is None:
                raise EngineStopped("the model has been shut down")
            source.n_users += 1
        try:
            yield source.pointer
        finally:
            with self._unused:
                source.n_users -= 1
                if not source.n_users:
                    self._unused.notify_all()

    def stand_alone(self, path: str) -> None:
        """Load the vocabulary of the same file once more, without weights, and leave the model it
        came from, which may be freed afterwards.

        Waits for calls that are using the old one. Idempotent. Raises `ModelLoadError`, and keeps
        the old one, when it is not to be had.
        """
        if self._source.own_model:
            return
        model = _load_alone(path)
        pointer = llama_cpp.llama_model_get_vocab(model)
        n_vocab = int(llama_cpp.llama_vocab_n_tokens(pointer))
        if n_vocab != self.n_vocab:
            llama_cpp.llama_model_free(model)
            raise ModelLoadError(
                f"the vocabulary of {path} has changed from {self.n_vocab} to {n_vocab} tokens since the "
                "model was loaded"
            )
        self._replace(_Source(pointer, model))

    def _replace(self, new: _Source) -> _Source:
        """The old source, which nobody uses any more."""
        with self._unused:
            old, self._source = self._source, new
            self._unused.wait_for(lambda: not old.n_users)
        return old

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS/EOS where the model wants them;
        `parse_special` reads "<|im_start|>" and the like as the control tokens they name.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text holds a lone surrogate at index {error.start}", param="text") from error
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            with self._in_use() as pointer:
                n = llama_cpp.llama_tokenize(pointer, data, len(data), buffer, size, add_special, parse_special)
            if n >= 0:
                return list(buffer[:n])
            size = -n

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`, invalid UTF-8 replaced. `special` shows control tokens by their
        names.
        """
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise InvalidParameter(
                    f"tokens holds id {token}; the vocabulary has ids 0 to {self.n_vocab - 1}", param="tokens"
                )
        join = (self._piece(t, special=True) for t in tokens) if special else (self.piece(t) for t in tokens)
        return b"".join(join).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of a token as it appears in a reply; b"" for control tokens. Cached."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=False)
        return piece

    def token_text(self, token: int) -> bytes:
        """The bytes of a token; those of a control token are its name."""
        return self.piece(token) or self._piece(token, special=True)

    def token_table(self) -> TokenTable:
        """Every token's bytes, for grammars. Takes a second for a vocabulary of 152 k."""
        ids = range(self.n_vocab)
        control = frozenset(token for token in ids if not self.piece(token))
        pieces = [self._piece(token, special=True) if token in control else self.piece(token) for token in ids]
        return TokenTable(pieces, control | self.eog_tokens, self.eog_tokens)

    def control_texts(self) -> list[str]:
        """The texts that `parse_special` reads as control tokens. 50 ms for a vocabulary of 152 k."""
        attr = llama_cpp.llama_vocab_get_attr
        with self._in_use() as pointer:
            control = [token for token in range(self.n_vocab) if attr(pointer, token) & _CONTROL]
        return [self._special_text(token) for token in control]

    def cut_texts(self) -> list[str]:
        """`control_texts`, or none of them where a token takes the white space before it along."""
        attr = llama_cpp.llama_vocab_get_attr
        with self._in_use() as pointer:
            looks_back = any(attr(pointer, token) & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP for token in range(self.n_vocab))
        return [] if looks_back else self.control_texts()

    def close(self) -> None:
        """Leave the model, and free it if this vocabulary loaded it. Waits for calls that are using
        it; later ones fail. Idempotent.
        """
        old = self._replace(_Source(None))
        if old.own_model:
            llama_cpp.llama_model_free(old.own_model)

    def _special_text(self, token: int) -> str:
        return "" if token == _NULL_TOKEN else self._piece(token, special=True).decode(errors="replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            with self._in_use() as pointer:
                n = llama_cpp.llama_token_to_piece(pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n


def _special_tokens(pointer: Any) -> SpecialTokens:
    n_vocab = llama_cpp.llama_vocab_n_tokens(pointer)

    def known(token: int) -> int | None:  # llama.cpp assumes ids that a small vocabulary does not have
        return token if 0 <= token < n_vocab else None

    prefix, suffix, middle = (
        known(get(pointer))
        for get in (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
    )
    fim = None
    if prefix is not None and suffix is not None and middle is not None:
        repository, file = llama_cpp.llama_vocab_fim_rep(pointer), llama_cpp.llama_vocab_fim_sep(pointer)
        fim = FimTokens(prefix, suffix, middle, known(repository), known(file))
    return SpecialTokens(
        bos=known(llama_cpp.llama_vocab_bos(pointer)),
        eos=known(llama_cpp.llama_vocab_eos(pointer)),
        sep=known(llama_cpp.llama_vocab_sep(pointer)),
        adds_eos=bool(llama_cpp.llama_vocab_get_add_eos(pointer)),
        adds_sep=bool(llama_cpp.llama_vocab_get_add_sep(pointer)),
        fim=fim,
    )


def _named_templates(model: Any) -> Iterator[tuple[str, str]]:
    """Name and source of each variant of the chat template. llama.cpp keeps no arrays, so the keys
    tell the names, not the list `tokenizer.chat_templates`.
    """
    key = ctypes.create_string_buffer(256)
    for i in range(llama_cpp.llama_model_meta_count(model)):
        llama_cpp.llama_model_meta_key_by_index(model, i, key, len(key))
        if key.value.startswith(_TEMPLATE_KEY):
            name = key.value.removeprefix(_TEMPLATE_KEY)
            source = llama_cpp.llama_model_chat_template(model, name)
            if source:
                yield name.decode(errors="replace"), source.decode(errors="replace")


def _load_alone(path: str) -> Any:
    check_model(path)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    return load_model(path, params, f"the vocabulary of {path}")
