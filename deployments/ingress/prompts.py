"""Vocabulary and chat template of one model at the ingress: prompts become tokens before a replica
is chosen.

The GGUF is opened for its vocabulary alone, on the first call, once; whoever calls while `loaded`
is False does so from a thread. All methods are thread-safe: the vocabulary is static, and a
template renders without shared state.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from cache_store import ChainKey, tenant_root
from deployments.http.ports import ChatPrompt, Record, ReplyDefaults, VocabFacts
from erllama.chat.template import Ending
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.choose import leaves_reasoning_open, opens_reasoning
from erllama.chat.transcript import prompt_key, transcript_of
from erllama.chat.transcript_book import TranscriptBook
from erllama.chat.transcript_prompt import transcript_prompt
from erllama.chat.variants import TemplateVariants
from erllama.config import EngineConfig, padded_context
from erllama.demo import demo_model_path
from erllama.errors import InvalidParameter, NotSupported
from erllama.events import Completion
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.reasoning_budget import ReasoningBudget
from erllama.grammar.tokenizer import AnyTable
from erllama.llama.vocab import LlamaVocab
from erllama.model_info import make_templates
from erllama.prompts.infill import Gap, Room, infill_tokens
from erllama.prompts.pair import RankQuery
from erllama.request import Prompt

# Variables that `ChatTemplate.render` fills itself; as keywords of the client they would collide
# with its parameters.
_RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt"})


_TAIL_TOKENS = 8  # of a prompt, which tell whether it ends with the opening of the reasoning


@dataclass(frozen=True, slots=True)
class _Loaded:
    vocab: LlamaVocab
    templates: TemplateVariants
    tool_format: ToolFormat
    marker_ids: Mapping[str, int]
    shown: Mapping[int, bytes]  # the markers' texts by their ids

    def reply_piece(self, token: int) -> bytes:
        return self.shown.get(token) or self.vocab.piece(token)


class _ModelFile:
    """The vocabulary and the templates of a file, opened once for all who use them. Thread-safe."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.path = str(demo_model_path()) if config.path == "demo" else config.path
        self._lock = threading.Lock()
        self.state: _Loaded | None = None

    def load(self) -> _Loaded:
        """Open the file, unless it is open. A second caller waits for the first."""
        with self._lock:
            if self.state is None:
                self.state = _loaded(LlamaVocab.load(self.path), self._config)
            return self.state

    def close(self) -> None:
        with self._lock:
            state, self.state = self.state, None
        if state is not None:
            state.vocab.close()


class PromptSource:
    """The real `PromptPort`. Methods that need the file raise `ModelLoadError` while it, or the
    configured template, cannot be read.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        root: ChainKey,
        book: TranscriptBook,
        defaults: ReplyDefaults | None = None,
        pins_from: int | None = None,
        system: str | None = None,
    ) -> None:
        """`root` is that of the model's KV, under which its replies are stored; `book` knows
        them. `pins_from`: see `PromptPort`. `system` is the system text of chats that have none.
        """
        self.defaults = defaults or ReplyDefaults()
        self.pins_from = pins_from
        self.constrains_calls = config.constrain_tool_calls
        self.n_ctx = padded_context(config.n_ctx) or None
        self._config = config
        self._root = root
        self._book = book
        self._grammars = GrammarCompiler(AnyTable)
        self._file = _ModelFile(config)
        self._salt = ""
        self._system = system

    def of_tenant(self, salt: str) -> Self:
        """The file is shared; replies are recorded and found under a root of its own."""
        if not salt:
            return self
        own = copy(self)
        own._root, own._salt = tenant_root(self._root, salt), salt
        return own

    def __repr__(self) -> str:
        return f"<PromptSource {self._config.path} {'loaded' if self.loaded else 'not loaded'}>"

    @property
    def loaded(self) -> bool:
        return self._file.state is not None

    def load(self) -> _Loaded:
        """Open the file, unless it is open. A second caller waits for the first."""
        return self._file.load()

    @property
    def tool_format(self) -> ToolFormat:
        return self.load().tool_format

    @property
    def marker_ids(self) -> Mapping[str, int]:
        return self.load().marker_ids

    def close(self) -> None:
        """Free the vocabulary; the next call would open the file again. No other method may be
        running.
        """
        self._file.close()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
        ending: Ending = "opened",
    ) -> ChatPrompt:
        _check_variables(template_kwargs)
        messages = self._with_system(messages)
        state = self.load()
        ids = transcript_prompt(
            state.templates.rendering(tools).of_tenant(self._salt),
            state.vocab,
            messages,
            tools=tools,
            template_kwargs=template_kwargs,
            ending=ending,
            root=self._root,
            find=self._book.finder(),
            tool_format=state.tool_format,
            shown=state.shown,
            keeps_reasoning=self._config.keep_sampled_reasoning,
        )
        tail = state.vocab.detokenize(ids[-_TAIL_TOKENS:], special=True)
        in_reasoning = opens_reasoning(state.tool_format, tail)
        if ending == "continued":
            in_reasoning = in_reasoning or leaves_reasoning_open(state.tool_format, messages[-1].get("content") or "")
        return ChatPrompt(Prompt.of(ids), in_reasoning)

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
        ending: Ending = "opened",
    ) -> str:
        _check_variables(template_kwargs)
        messages = self._with_system(messages)
        state = self.load()
        template = state.templates.rendering(tools)
        conversation = template.conversation(messages, tools=tools, ending=ending, **template_kwargs)
        text = template.render_conversation(conversation)
        if conversation.mark is not None:
            text = text.replace(conversation.mark, "")
        return text.removeprefix(state.vocab.bos_text) if state.vocab.adds_bos else text

    def _with_system(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        if not self._system or any(message.get("role") in ("system", "developer") for message in messages[:1]):
            return messages
        return [{"role": "system", "content": self._system}, *messages]

    def facts(self) -> VocabFacts:
        state = self.load()
        template = state.templates.rendering(None).source
        vocab = state.vocab
        return VocabFacts(self._file.path, template, vocab.bos_text, vocab.eos_text, self._config.n_parallel)

    def shows_late_system(self, *, tools: bool) -> bool:
        variants = self.load().templates
        traits = (variants.tool_use if tools else variants.default).traits
        return traits.system == "anywhere" and traits.system_after_result

    @property
    def may_wait(self) -> bool:
        return self._book.has_store

    @property
    def expects_turns(self) -> bool:
        return self._config.idle_prefill and not self._config.deterministic

    def recorder(self, chat: ChatPrompt) -> Record:
        state = self.load()
        parent = prompt_key(self._root, chat.prompt.tokens)

        def record(reply: Completion) -> None:
            block = transcript_of(
                self._root,
                parent,
                reply.tokens,
                reply.text,
                state.reply_piece,
                state.tool_format,
                in_reasoning=chat.in_reasoning,
                keeps_reasoning=self._config.keep_sampled_reasoning,
            )
            if block is not None:
                self._book.record(block)

        return record

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return self.load().vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.load().vocab.detokenize(ids)

    def rank_query(self, query: str) -> RankQuery:
        return RankQuery(self.load().vocab, query)

    @property
    def fills_gaps(self) -> bool:
        return self.load().vocab.specials.fim is not None

    def infill_prompt(self, gap: Gap, room: Room | None = None) -> Prompt:
        return Prompt.of(infill_tokens(self.load().vocab, gap, room, suffix_first=self._config.spm_infill))

    def token_text(self, token: int) -> bytes:
        return self.load().vocab.token_text(token)

    def reply_piece(self, token: int) -> bytes:
        return self.load().reply_piece(token)

    def check_tokens(self, ids: Sequence[int], param: str = "prompt") -> None:
        n_vocab = self.load().vocab.n_vocab
        if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
            wrong = next(token for token in ids if not 0 <= token < n_vocab)
            raise InvalidParameter(
                f"token id {wrong} is not in the vocabulary, which has ids 0 to {n_vocab - 1}", param=param
            )

    def reasoning_budget(self, n_tokens: int, *, in_reasoning: bool) -> ReasoningBudget:
        state = self.load()
        if state.tool_format.reasoning is None:
            raise NotSupported("this model has no reasoning to bound", param="thinking_budget")
        opening, closing = (
            tuple(state.vocab.tokenize(text, add_special=False)) for text in state.tool_format.reasoning
        )
        return ReasoningBudget(n_tokens, closing, () if in_reasoning else opening)

    def check_constraint(self, constraint: Constraint) -> None:
        if "<[" in constraint.text and constraint.kind is ConstraintKind.LARK:  # ids of the real vocabulary
            for _, part in constraint.parts:
                self._grammars.check(part)
        else:
            self._grammars.check(constraint)


def _check_variables(template_kwargs: Mapping[str, Any]) -> None:
    reserved = sorted(_RESERVED & template_kwargs.keys())
    if reserved:
        raise InvalidParameter(f"chat_template_kwargs may not set {reserved[0]!r}", param="chat_template_kwargs")


def _loaded(vocab: LlamaVocab, config: EngineConfig) -> _Loaded:
    templates = make_templates(vocab, config)
    marker_ids = _marker_ids(vocab, templates.tool_format)
    shown = {token: text.encode() for text, token in marker_ids.items()}
    return _Loaded(vocab, templates, templates.tool_format, marker_ids, shown)


def _marker_ids(vocab: LlamaVocab, tool_format: ToolFormat) -> dict[str, int]:
    texts = {*tool_format.markers, *(tool_format.reasoning or ())}
    tokens = {text: vocab.tokenize(text, add_special=False, parse_special=True) for text in texts}
    return {text: ids[0] for text, ids in tokens.items() if len(ids) == 1 and not vocab.piece(ids[0])}
