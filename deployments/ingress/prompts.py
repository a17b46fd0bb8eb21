"""Vocabulary and chat template of one model at the ingress: prompts become tokens before a replica
is chosen.

The GGUF is opened for its vocabulary alone, on the first call, once; whoever calls while `loaded`
is False does so from a thread. All methods are thread-safe: the vocabulary is static, and a
template renders without shared state.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_store import ChainKey
from deployments.http.ports import Record
from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.transcript import prompt_key, transcript_of
from erllama.chat.transcript_book import TranscriptBook
from erllama.chat.transcript_prompt import transcript_prompt
from erllama.demo import demo_model_path
from erllama.errors import InvalidParameter
from erllama.events import Completion
from erllama.grammar.constraint import Constraint
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable
from erllama.llama.vocab import LlamaVocab
from erllama.request import Prompt

# Variables that `ChatTemplate.render` fills itself; as keywords of the client they would collide
# with its parameters.
_RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class _Loaded:
    vocab: LlamaVocab
    template: ChatTemplate


class PromptSource:
    """The real `PromptPort`. Methods that need the file raise `ModelLoadError` while it cannot be
    read.
    """

    tool_format: ToolFormat = HERMES

    def __init__(self, path: str, *, n_ctx: int = 0, root: ChainKey, book: TranscriptBook) -> None:
        """`path` is a GGUF or "demo"; `n_ctx` the context of one sequence, 0 when only the engine
        knows. `root` is that of the model's KV, under which its replies are stored; `book` knows
        them.
        """
        self.n_ctx = n_ctx or None
        self._path = path
        self._root = root
        self._book = book
        self._grammars = GrammarCompiler(AnyTable)
        self._lock = threading.Lock()
        self._state: _Loaded | None = None

    def __repr__(self) -> str:
        return f"<PromptSource {self._path} {'loaded' if self.loaded else 'not loaded'}>"

    @property
    def loaded(self) -> bool:
        return self._state is not None

    def load(self) -> _Loaded:
        """Open the file, unless it is open. A second caller waits for the first."""
        with self._lock:
            if self._state is None:
                vocab = LlamaVocab.load(str(demo_model_path()) if self._path == "demo" else self._path)
                template = ChatTemplate(vocab.chat_template, bos=vocab.bos_text, eos=vocab.eos_text)
                self._state = _Loaded(vocab, template)
            return self._state

    def close(self) -> None:
        """Free the vocabulary; the next call would open the file again. No other method may be
        running.
        """
        with self._lock:
            state, self._state = self._state, None
        if state is not None:
            state.vocab.close()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
    ) -> Prompt:
        reserved = sorted(_RESERVED & template_kwargs.keys())
        if reserved:
            raise InvalidParameter(f"chat_template_kwargs may not set {reserved[0]!r}", param="chat_template_kwargs")
        state = self.load()
        ids = transcript_prompt(
            state.template,
            state.vocab,
            messages,
            tools=tools,
            template_kwargs=template_kwargs,
            root=self._root,
            find=self._book.finder(),
            tool_format=self.tool_format,
        )
        return Prompt.of(ids)

    @property
    def may_wait(self) -> bool:
        return self._book.has_store

    def recorder(self, prompt: Prompt) -> Record:
        parent, piece = prompt_key(self._root, prompt.tokens), self.load().vocab.piece

        def record(reply: Completion) -> None:
            block = transcript_of(self._root, parent, reply.tokens, reply.text, piece, self.tool_format)
            if block is not None:
                self._book.record(block)

        return record

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        return self.load().vocab.tokenize(text, add_special=add_special, parse_special=True)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.load().vocab.detokenize(ids)

    def check_tokens(self, ids: Sequence[int], param: str = "prompt") -> None:
        n_vocab = self.load().vocab.n_vocab
        if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
            wrong = next(token for token in ids if not 0 <= token < n_vocab)
            raise InvalidParameter(
                f"token id {wrong} is not in the vocabulary, which has ids 0 to {n_vocab - 1}", param=param
            )

    def check_constraint(self, constraint: Constraint) -> None:
        self._grammars.check(constraint)
