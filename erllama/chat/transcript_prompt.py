"""The prompt of a chat whose earlier replies stand in it as the ids they were sampled as.

    text      sys user |reply 1| user |reply 2| user ...        see `transcript_layout.py`
    segments  --------           ------         -----           tokenised, special tokens and all
    slots              ---------        ---------
    ids       tokenised  sampled  tokenised  ...                a slot whose reply is not found is
                                                                tokenised with its surroundings

Invariants: the prompt is the template's own text, but for a reply that is found. The ids of a reply
made of text are taken only where the template inserts it verbatim, so they always spell that text.
The ids of a tool call take the place of its slot, whatever that looks like: its parsed form was
compared. So do those of a reply that was sampled with reasoning, where the template shows that: the
same reasoning as its message has, or, if that is asked for, any where its message lacks it. Before
a reply that was sampled behind another opening than the template writes now, that opening stands,
too (`transcript_opening.py`). Without a layout the prompt is the canonical one; nothing here adds
an error to what `ChatTemplate` raises.

Look-ups run in message order, since where a reply is looked up depends on all ids before it. Pure
but for the look-ups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Protocol

from cache_store.format.keys import ChainKey, TokenChain
from erllama.backend.base import Vocab
from erllama.chat.template import ChatTemplate, Conversation, Ending
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.transcript import Find, transcript_id
from erllama.chat.transcript_layout import Form, Layout, Slot, reasoning_of, reply_layout
from erllama.chat.transcript_opening import Openings
from erllama.errors import ErllamaError

MAX_TOKENIZED = 8  # times the prompt; only a template without control tokens makes look-ups tokenise anything twice
HEAD_CHARS = 32


class TranscriptVocab(Vocab, Protocol):
    """What sampled ids in a prompt ask of a vocabulary beyond tokenising."""

    n_vocab: int

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; `special` shows control tokens by their names."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token as it appears in a reply, b"" for a control token."""


def transcript_prompt(
    template: ChatTemplate,
    vocab: TranscriptVocab,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any],
    ending: Ending = "opened",
    root: ChainKey,
    find: Find,
    tool_format: ToolFormat = HERMES,
    shown: Mapping[int, bytes] = MappingProxyType({}),
    keeps_reasoning: bool = False,
) -> list[int]:
    """Token ids of a conversation that ends as `ending` says, with the replies that `find` knows as
    their sampled ids. `shown` are the control tokens that belong to the text of replies.
    `keeps_reasoning`: a reply that came back without its reasoning is known, too.
    """

    conversation = template.conversation(messages, tools=tools, ending=ending, **template_kwargs)

    def render(shown: Sequence[Mapping[str, Any]]) -> str:
        return template.render_conversation(conversation.with_messages(shown))

    text = template.render_conversation(conversation)
    told = any(message["role"] == "assistant" and reasoning_of(message) for message in conversation.messages)
    layout = reply_layout(
        text,
        conversation.messages,
        render,
        tool_format,
        is_open=bool(conversation.end),
        speaks=_generation_prompt(template, conversation) if keeps_reasoning or told else "",
        keeps_reasoning=keeps_reasoning,
    )
    if layout is None:
        return conversation.tokenize(vocab, text)

    def answered(messages: Sequence[Mapping[str, Any]]) -> str:
        opened = replace(conversation.with_messages(messages), ending="opened", end="")
        return template.render_conversation(opened)

    joiner = _Joiner(vocab, conversation, root, tool_format, shown, find, limit=MAX_TOKENIZED * len(text))
    ids = _join(layout, joiner, Openings(text, conversation.messages, answered))
    return conversation.tokenize(vocab, text) if ids is None else ids


def _generation_prompt(template: ChatTemplate, conversation: Conversation) -> str:
    """What the template writes where the assistant begins to speak; "" if it does not say."""
    try:
        opened, closed = (
            template.render_conversation(replace(conversation, ending=ending, end=""))
            for ending in ("opened", "closed")
        )
    except ErllamaError:
        return ""
    return opened.removeprefix(closed) if opened.startswith(closed) else ""


# --- from segments to ids -------------------------------------------------------------------------


def _join(layout: Layout, joiner: _Joiner, openings: Openings) -> list[int] | None:
    """The ids of the prompt; None when no reply was found and the canonical ones will do."""
    n_found = at = 0
    for segment, slot, following in zip(layout.segments[:-1], layout.slots, layout.segments[1:], strict=True):
        joiner.write(segment)
        at += len(segment)
        if joiner.replace(slot, _forms(slot, at, openings), following):
            n_found += 1
        else:
            joiner.write(slot.text)
        at += len(slot.text)
    if not n_found:
        return None
    joiner.write(layout.segments[-1])
    return joiner.ids()


def _forms(slot: Slot, at: int, openings: Openings) -> Iterator[Form]:
    """In which the reply in `slot`, which begins at `at`, may be known. Another opening costs a
    rendering, so it is asked for last.
    """
    yield from slot.forms
    opening = openings.of(slot.index, at, has_thought=slot.has_thought) if slot.forms else None
    if opening is not None:
        yield from slot.behind(opening)


class _Joiner:
    """A prompt that grows by text and by ids. Knows the ids of all text so far without tokenising
    it again and again.

    Text before a control token tokenises the same whatever follows, so it is settled: `_settled`
    are its ids, `_open` is the rest of the text, from that control token on.
    """

    def __init__(
        self,
        vocab: TranscriptVocab,
        conversation: Conversation,
        root: ChainKey,
        tool_format: ToolFormat,
        shown: Mapping[int, bytes],
        find: Find,
        *,
        limit: int,
    ) -> None:
        self._vocab = vocab
        self._conversation = conversation
        self._tool_format = tool_format
        self._shown = shown
        self._find = find
        self._root = root
        self._settled = TokenChain(root, [])
        self._open = ""
        self._tail: list[int] | None = None  # the ids of the open text, once somebody asked
        self._begun = False  # whether BOS, where there is one, is among the settled ids
        self._left = limit  # characters that look-ups may still tokenise

    def write(self, text: str) -> None:
        self._open, self._tail = self._open + text, None

    def ids(self) -> list[int]:
        return [*self._settled.ids.tolist(), *self._open_ids()]

    def replace(self, slot: Slot, forms: Iterable[Form], following: str) -> bool:
        """Put the ids of the reply in `slot` behind all text so far, and what stood before it at
        the end of that text, if they are known in one of `forms`, say what the slot says, and
        `following` may stand behind them.
        """
        if any(self._put(slot, form, following) for form in forms):
            return True
        if self._tail is not None:
            self._settle(self._tail)
        return False

    def _put(self, slot: Slot, form: Form, following: str) -> bool:
        text = form.opening.restored(self._open)
        if text is None:
            return False
        self._left -= len(text)
        if self._left < 0:
            return False
        before = self._open_ids() if text == self._open else self._tokenized(text)
        if self._adds_end(text, before):
            return False
        ids = self._find(transcript_id(self._root, self._parent(before), form.signature))
        if ids is None or not self._spells(ids, slot, form) or not self._continues(following):
            return False
        self._settled = self._settled.extended([*before, *ids])
        self._open, self._tail, self._begun = "", [], True
        return True

    def _open_ids(self) -> list[int]:
        if self._tail is None:
            self._tail = self._tokenized(self._open)
        return self._tail

    def _tokenized(self, text: str) -> list[int]:
        return self._conversation.tokenize(self._vocab, text, begins=not self._begun)

    def _parent(self, open_ids: list[int]) -> ChainKey:
        self._settled.key_at(len(self._settled))  # whatever is computed here, the longer chains need not compute again
        chain = self._settled.extended(open_ids)
        return chain.key_at(len(chain))

    def _settle(self, open_ids: list[int]) -> None:
        control = next((i for i in range(len(open_ids) - 1, 0, -1) if not self._vocab.piece(open_ids[i])), 0)
        rest = self._vocab.detokenize(open_ids[control:], special=True)
        if control and self._open.endswith(rest):
            self._settled = self._settled.extended(open_ids[:control])
            self._open, self._tail, self._begun = rest, None, True

    def _adds_end(self, text: str, ids: list[int]) -> bool:
        """A vocabulary that ends every text with EOS cannot tokenise the beginning of one."""
        end = self._vocab.eos_text
        return bool(end and ids) and not text.endswith(end) and self._vocab.detokenize(ids[-1:], special=True) == end

    def _spells(self, ids: Sequence[int], slot: Slot, form: Form) -> bool:
        """The name proposes, the ids decide."""
        vocab = self._vocab
        if not ids or not 0 <= min(ids) <= max(ids) < vocab.n_vocab:
            return False
        pieces = [self._shown.get(token) or vocab.piece(token) for token in ids]
        text = b"".join(pieces).decode(errors="replace")
        return b"" not in pieces and slot.is_said_by(text, form, self._tool_format)

    def _continues(self, following: str) -> bool:
        """Whether text behind a reply tokenises as it stands. Some vocabularies put a space before
        a text that begins with a word.
        """
        head = following[:HEAD_CHARS]
        ids = self._vocab.tokenize(head, add_special=False, parse_special=True) if head else []
        # up to the first control token, behind which all is as ever
        words = takewhile(bool, map(self._vocab.piece, ids))
        return bool(ids) and head.encode(errors="replace").startswith(b"".join(words))
