"""The prompt of a chat whose earlier replies stand in it as the ids they were sampled as.

    text      sys user |reply 1| user |reply 2| user ...        rendered once as it is, once with a
              sentinel for each reply
    segments  --------           ------         -----           the text between sentinels;
                                                tokenised, special tokens and all
    slots              ---------        ---------                what the template makes of the
                                        replies
    ids       tokenised  sampled  tokenised  ...                a slot whose reply is not found is
                                             tokenised with its surroundings

Invariants: the segments and slots together are the template's own text. The ids of a reply made of
text are taken only where the template inserts it verbatim, so they always spell that text. The ids
of a tool call take the place of its slot, whatever that looks like: its parsed form was compared.
When anything is odd (the template fails on a sentinel, drops or moves one, or the alignment is
ambiguous), the prompt is the canonical one; nothing here adds an error to what
`ChatTemplate` raises.

Look-ups run in message order, since where a reply is looked up depends on all ids before it. Pure
but for the look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from types import MappingProxyType
from typing import Any, Protocol

from cache_store.format.keys import ChainKey, TokenChain
from erllama.backend.base import Vocab
from erllama.chat.template import ChatTemplate, Conversation, Ending
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.transcript import Find, message_signature, reply_signature, transcript_id
from erllama.errors import ErllamaError

MAX_TOKENIZED = 8  # times the prompt; only a template without control tokens makes look-ups tokenise anything twice
HEAD_CHARS = 32

Render = Callable[[Sequence[Mapping[str, Any]]], str]


class TranscriptVocab(Vocab, Protocol):
    """What sampled ids in a prompt ask of a vocabulary beyond tokenising."""

    n_vocab: int

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; `special` shows control tokens by their names."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token as it appears in a reply, b"" for a control token."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a reply stands. `text` is what the template makes of it; `replaces` says whether
    sampled ids may take its place.
    """

    text: str
    content: str
    has_calls: bool
    signature: ChainKey | None

    @property
    def replaces(self) -> bool:
        return self.signature is not None and (self.has_calls or self.text == self.content)


@dataclass(frozen=True, slots=True)
class _Layout:
    """`segments` has one entry more than `slots`; interleaved they are the canonical text."""

    segments: tuple[str, ...]
    slots: tuple[_Slot, ...]


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
) -> list[int]:
    """Token ids of a conversation that ends as `ending` says, with the replies that `find` knows as
    their sampled ids. `shown` are the control tokens that belong to the text of replies.
    """

    conversation = template.conversation(messages, tools=tools, ending=ending, **template_kwargs)

    def render(shown: Sequence[Mapping[str, Any]]) -> str:
        return template.render_conversation(conversation.with_messages(shown))

    text = template.render_conversation(conversation)
    layout = _layout(text, conversation.messages, render, tool_format, is_open=bool(conversation.end))
    ids = (
        _join(layout, _Joiner(vocab, conversation, root, tool_format, shown, limit=MAX_TOKENIZED * len(text)), find)
        if layout is not None
        else None
    )
    return conversation.tokenize(vocab, text) if ids is None else ids


# --- where the replies stand in the text ----------------------------------------------------------


def _layout(
    text: str, messages: list[dict[str, Any]], render: Render, tool_format: ToolFormat, *, is_open: bool
) -> _Layout | None:
    """The text cut at its replies; None when there are none, or when they cannot be told apart from
    the rest. `is_open`: the last message is no whole reply.
    """
    replies = [
        i
        for i, message in enumerate(messages[:-1] if is_open else messages)
        if message["role"] == "assistant" and (message["content"] or _calls(message))
    ]
    plain = [i for i in replies if not _calls(messages[i])]
    # some templates refuse tool results without the call that asked for them
    tries = [replies, plain] if plain != replies else [replies]
    for chosen in tries:
        layout = _cut(text, messages, chosen, render, tool_format) if chosen else None
        if layout is not None and any(slot.replaces for slot in layout.slots):
            return layout
    return None


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


def _cut(
    text: str, messages: list[dict[str, Any]], chosen: list[int], render: Render, tool_format: ToolFormat
) -> _Layout | None:
    word = _unused_word(text)
    marks = {i: f"{word}{n}x" for n, i in enumerate(chosen)}
    shown = [_marked(message, marks[i]) if i in marks else message for i, message in enumerate(messages)]
    try:
        segments = _split(render(shown), list(marks.values()))
    except ErllamaError:  # the template accepts the messages as they are, and only that counts
        return None
    if segments is None:
        return None
    replies = [messages[i] for i in chosen]
    texts = _slot_texts(text, segments, [None if _calls(reply) else reply["content"] for reply in replies])
    if texts is None:
        return None
    for n, reply in enumerate(replies):
        if not _calls(reply):
            segments[n], texts[n], segments[n + 1] = _with_space(
                segments[n], texts[n], segments[n + 1], reply["content"]
            )
    slots = [
        _Slot(slot, reply["content"], _calls(reply), message_signature(reply, tool_format))
        for slot, reply in zip(texts, replies, strict=True)
    ]
    return _Layout(tuple(segments), tuple(slots))


def _with_space(before: str, slot: str, after: str, content: str) -> tuple[str, str, str]:
    """A template that trims a reply and writes a space of its own (Mistral's do) has written what
    the model said: the space goes with the reply. The three together stay the same text.
    """
    if not slot or slot != content.strip():
        return before, slot, after
    left, _, right = content.partition(slot)
    if before.endswith(left) and after.startswith(right):
        return before.removesuffix(left), content, after.removeprefix(right)
    return before, slot, after


def _unused_word(text: str) -> str:
    """A word that is not in `text`, of letters and digits only: templates trim, escape and quote
    other characters.
    """
    n = 0
    while f"xReply{n}x" in text:
        n += 1
    return f"xReply{n}x"


def _marked(message: dict[str, Any], mark: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": mark}


def _split(text: str, marks: list[str]) -> list[str] | None:
    """The text between the marks, which must stand in it in order. One that stands there again
    spoils the match with the canonical text.
    """
    segments: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        segments.append(before)
    return [*segments, text]


def _slot_texts(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """What stands between the segments in `text`. First under the assumption that every content is
    there verbatim (None: a tool call, whose text is the template's affair), then without it.
    """
    return _match(text, segments, contents) or _match(text, segments, [None] * len(contents))


def _match(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """The slots when those with a content hold exactly that; None when this is impossible or
    possible in more than one way.
    """
    literals = [segments[0]]
    for content, segment in zip(contents, segments[1:], strict=True):
        if content is None:
            literals.append(segment)
        else:
            literals[-1] += content + segment
    free = _between(text, literals)
    if free is None:
        return None
    rest = iter(free)
    return [next(rest) if content is None else content for content in contents]


def _between(text: str, literals: list[str]) -> list[str] | None:
    """What stands between literals that make up `text` with free text between them, if there is
    exactly one way to place them.
    """
    if len(literals) == 1:
        return [] if text == literals[0] else None
    if not text.startswith(literals[0]) or not text.endswith(literals[-1]):
        return None
    begin, end = len(literals[0]), len(text) - len(literals[-1])
    first = _placed(text, literals[1:-1], begin, end)
    if first is None or first != _placed_late(text, literals[1:-1], begin, end):
        return None
    cuts = [(begin, begin), *first, (end, end)]
    return [text[left:right] for (_, left), (right, _) in pairwise(cuts)]


def _placed(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    """Where each literal stands when all stand as early as possible."""
    places: list[tuple[int, int]] = []
    for literal in literals:
        start = text.find(literal, begin, end)
        if start < 0:
            return None
        begin = start + len(literal)
        places.append((start, begin))
    return places if begin <= end else None


def _placed_late(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    places: list[tuple[int, int]] = []
    for literal in reversed(literals):
        start = text.rfind(literal, begin, end)
        if start < 0:
            return None
        places.append((start, start + len(literal)))
        end = start
    return places[::-1]


# --- from segments to ids -------------------------------------------------------------------------


def _join(layout: _Layout, joiner: _Joiner, find: Find) -> list[int] | None:
    """The ids of the prompt; None when no reply was found and the canonical ones will do."""
    n_found = 0
    for segment, slot, following in zip(layout.segments[:-1], layout.slots, layout.segments[1:], strict=True):
        joiner.write(segment)
        ids = joiner.look_up(slot, following, find) if slot.replaces else None
        if ids is None:
            joiner.write(slot.text)
        else:
            n_found += 1
            joiner.insert(ids)
    if not n_found:
        return None
    joiner.write(layout.segments[-1])
    return joiner.ids()


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
        *,
        limit: int,
    ) -> None:
        self._vocab = vocab
        self._conversation = conversation
        self._tool_format = tool_format
        self._shown = shown
        self._root = root
        self._settled = TokenChain(root, [])
        self._open = ""
        self._tail: list[int] | None = None  # the ids of the open text, once somebody asked
        self._begun = False  # whether BOS, where there is one, is among the settled ids
        self._left = limit  # characters that look-ups may still tokenise

    def write(self, text: str) -> None:
        self._open, self._tail = self._open + text, None

    def insert(self, ids: Sequence[int]) -> None:
        """Put `ids` behind all text so far."""
        self._settled = self._settled.extended([*self._open_ids(), *ids])
        self._open, self._tail, self._begun = "", [], True

    def ids(self) -> list[int]:
        return [*self._settled.ids.tolist(), *self._open_ids()]

    def look_up(self, slot: _Slot, following: str, find: Find) -> Sequence[int] | None:
        """The ids of the reply in `slot`, if they are known, say what the slot says, and
        `following` may stand behind them.
        """
        self._left -= len(self._open)
        if self._left < 0 or slot.signature is None:
            return None
        open_ids = self._open_ids()
        if self._adds_end(open_ids):
            return None
        ids = find(transcript_id(self._root, self._parent(open_ids), slot.signature))
        if ids is None or not self._spells(ids, slot) or not self._continues(following):
            self._settle(open_ids)
            return None
        return ids

    def _open_ids(self) -> list[int]:
        if self._tail is None:
            self._tail = self._conversation.tokenize(self._vocab, self._open, begins=not self._begun)
        return self._tail

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

    def _adds_end(self, open_ids: list[int]) -> bool:
        """A vocabulary that ends every text with EOS cannot tokenise the beginning of one."""
        end = self._vocab.eos_text
        return (
            bool(end and open_ids)
            and not self._open.endswith(end)
            and self._vocab.detokenize(open_ids[-1:], special=True) == end
        )

    def _spells(self, ids: Sequence[int], slot: _Slot) -> bool:
        """The name proposes, the ids decide."""
        vocab = self._vocab
        if not ids or not 0 <= min(ids) <= max(ids) < vocab.n_vocab:
            return False
        pieces = [self._shown.get(token) or vocab.piece(token) for token in ids]
        text = b"".join(pieces).decode(errors="replace")
        return b"" not in pieces and (
            reply_signature(text, self._tool_format) == slot.signature if slot.has_calls else text == slot.content
        )

    def _continues(self, following: str) -> bool:
        """Whether text behind a reply tokenises as it stands. Some vocabularies put a space before
        a text that begins with a word.
        """
        head = following[:HEAD_CHARS]
        ids = self._vocab.tokenize(head, add_special=False, parse_special=True) if head else []
        # up to the first control token, behind which all is as ever
        words = takewhile(bool, map(self._vocab.piece, ids))
        return bool(ids) and head.encode(errors="replace").startswith(b"".join(words))
