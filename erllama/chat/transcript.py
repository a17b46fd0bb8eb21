"""Transcripts: replies as the ids they were sampled as, found again by what a client sends back.
Pure.

Text does not determine tokens: a reply that comes back as chat history tokenises into other ids
than were sampled, and a tool call comes back with other white space. So the ids of a reply are
kept, its transcript, as an object of kind REPLAY under

    parent   the prefix key of the prompt that was answered (all of its ids)
    key      the signature: sha256 over canonical JSON of [text, [[function name, arguments], ...]]

Whoever finishes a reply and whoever renders a later prompt compute the same signature, one from the
reply, the other from the message. The canonical JSON has sorted keys, no white space, and writes
numbers like 2.0 as 2 (JavaScript clients do).

A signature must not hide anything but layout, since what it hides would come back although the
client did not send it. A reply is therefore not recorded when its calls are followed by text, or
hold repeated keys or fields besides name and arguments, or when it has control tokens or tokens
that the client never received (behind a stop string).

A reply with reasoning has a signature of another kind, over that, too: it comes back if the client
sends the reasoning back. Most clients drop it. Where an operator asks for it
(`keep_sampled_reasoning`), such a reply is named by its text and calls alone, which hides the
reasoning; the ids then tell whether they say what a client sent that did not drop it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.keys import ChainKey, TokenChain
from erllama.chat.tool_formats.base import Call, ToolFormat, split_reply, strict_calls
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.transcript_rows import has_rows, read_row

Piece = Callable[[int], bytes]
"""The bytes of a token as it appears in a reply; b"" for control tokens that it does not show."""

Find = Callable[[BlockId], Sequence[int] | None]
"""The ids of a transcript, or None. Bounds its own time."""


def transcript_block(
    root: ChainKey,
    prompt_tokens: Sequence[int],
    reply_ids: Sequence[int],
    text: str,
    piece: Piece,
    tool_format: ToolFormat = HERMES,
    *,
    in_reasoning: bool = False,
    keeps_reasoning: bool = False,
) -> Block | None:
    """The object to store for a reply that was sampled as `reply_ids` (without the end token) and
    reached the client as `text`.

    None when the reply must not, or need not, come back as these ids. `root` is that of the KV
    which belongs to the prompt. `in_reasoning`: that has opened the reasoning. `keeps_reasoning`:
    the reply is also to be found when it comes back without its reasoning.
    """
    parent = prompt_key(root, prompt_tokens)
    return transcript_of(
        root,
        parent,
        reply_ids,
        text,
        piece,
        tool_format,
        in_reasoning=in_reasoning,
        keeps_reasoning=keeps_reasoning,
    )


def transcript_of(
    root: ChainKey,
    parent: ChainKey,
    reply_ids: Sequence[int],
    text: str,
    piece: Piece,
    tool_format: ToolFormat = HERMES,
    *,
    in_reasoning: bool = False,
    keeps_reasoning: bool = False,
) -> Block | None:
    """`transcript_block` for who has the key of the prompt already."""
    ids = spelling(reply_ids, text, piece)
    with_reasoning = reasoned_signature if keeps_reasoning else told_signature
    signature = with_reasoning(text, tool_format, in_reasoning=in_reasoning) or reply_signature(text, tool_format)
    if not ids or signature is None:
        return None
    return Block(transcript_id(root, parent, signature), np.asarray(ids, dtype=np.uint32), reason="finish")


def prompt_key(root: ChainKey, prompt_tokens: Sequence[int]) -> ChainKey:
    """What the replies to a prompt hang on."""
    return TokenChain(root, prompt_tokens).key_at(len(prompt_tokens))


def transcript_id(root: ChainKey, parent: ChainKey, signature: ChainKey) -> BlockId:
    return BlockId(root, Kind.REPLAY, parent, signature)


def spelling(ids: Sequence[int], text: str, piece: Piece) -> tuple[int, ...] | None:
    """Those of `ids`, from the first on, that spell exactly `text`. A stop string leaves ids over
    behind it.

    None when no such beginning exists, or when it has a control token, which the text cannot show.
    """
    pieces = [piece(token) for token in ids]
    n = len(pieces)
    if b"".join(pieces).decode(errors="replace") != text:
        n = _prefix_length(pieces, text.encode(errors="replace"))
    return None if n < 0 or b"" in pieces[:n] else tuple(ids[:n])


def _prefix_length(pieces: Sequence[bytes], data: bytes) -> int:
    """How many pieces make up `data`, -1 if its end is inside a piece."""
    n_bytes = 0
    for n, piece in enumerate(pieces):
        if n_bytes >= len(data):
            return n if b"".join(pieces[:n]) == data else -1
        n_bytes += len(piece)
    return -1


# --- signatures -----------------------------------------------------------------------------------


def reply_signature(text: str, tool_format: ToolFormat = HERMES) -> ChainKey | None:
    """The signature of a whole reply. It is read for tool calls whether tools were offered or not,
    as `message_signature` reads it, so that neither needs to know. None when the signature would
    hide something.
    """
    if not has_rows(tool_format):
        found = strict_calls(tool_format, text)
        return None if found is None else _digest(*found)
    said = _said_in_row(text, tool_format)
    return None if said is None or said.reasoning is not None else _digest(said.content, said.calls)


def reasoned_signature(text: str, tool_format: ToolFormat, *, in_reasoning: bool) -> ChainKey | None:
    """The signature of a whole reply as it comes back without its reasoning; None for a reply that
    has not reasoned to an end, or whose signature would hide more than the reasoning.
    """
    said = _said(text, tool_format, in_reasoning=in_reasoning)
    return None if said is None else _digest(said.content, said.calls, "reasoned")


def told_signature(text: str, tool_format: ToolFormat, *, in_reasoning: bool) -> ChainKey | None:
    """The signature of a whole reply as it comes back with its reasoning, of which white space
    around it is layout; None for a reply that has none, and as `reasoned_signature`.
    """
    said = _said(text, tool_format, in_reasoning=in_reasoning)
    return _digest(said.content, said.calls, "told", said.reasoning) if said is not None and said.reasoning else None


def message_signature(
    message: Mapping[str, Any], tool_format: ToolFormat = HERMES, *, reasoned: bool = False
) -> ChainKey | None:
    """The signature of an assistant's message in the history (shape: `normalise_messages`), None
    for one that cannot have been sampled. `reasoned`: that of a reply whose reasoning it lacks.
    """
    found = _said_by_message(message, tool_format)
    return None if found is None else _digest(*found, *["reasoned"] * reasoned)


def message_told_signature(message: Mapping[str, Any], tool_format: ToolFormat, reasoning: str) -> ChainKey | None:
    """That of an assistant's message which comes with this reasoning."""
    found, told = _said_by_message(message, tool_format), reasoning.strip()
    return _digest(*found, "told", told) if found is not None and told else None


@dataclass(frozen=True, slots=True)
class _Said:
    """What a reply says. `reasoning` is None for one that has none, and "" where that is not all
    that was thought.
    """

    content: str
    calls: list[Call]
    reasoning: str | None


def _said(text: str, tool_format: ToolFormat, *, in_reasoning: bool) -> _Said | None:
    """What a reply says that has reasoned to an end, if that is all there is in it; else None."""
    if tool_format.reasoning is None:
        return None
    opening, closing = tool_format.reasoning
    if has_rows(tool_format):
        said = _said_in_row(opening * in_reasoning + text, tool_format)
        return None if said is None or said.reasoning is None else said
    thought, ended, rest = text.partition(closing)
    found = strict_calls(tool_format, rest.lstrip("\n"))
    if not ended or found is None or not (in_reasoning or thought.lstrip().startswith(opening)):
        return None
    reply = split_reply(tool_format, text, in_reasoning=in_reasoning)
    alike = reply.content == found[0] and len(reply.calls) == len(found[1])  # else a call ended the reasoning
    if not alike:
        return None
    reasoning = reply.reasoning.strip()
    whole = thought.strip().removeprefix(opening.strip()).strip() == reasoning
    return _Said(*found, reasoning if whole else "")


def _said_in_row(text: str, tool_format: ToolFormat) -> _Said | None:
    row = read_row(tool_format, text)
    found = strict_calls(tool_format, tool_format.write_calls(row.calls)) if row is not None and row.calls else ("", [])
    if row is None or found is None or found[0]:
        return None
    return _Said(row.content, found[1], row.reasoning.strip() or None)


def _said_by_message(message: Mapping[str, Any], tool_format: ToolFormat) -> tuple[str, list[Call]] | None:
    if message.get("tool_calls"):
        functions = [call["function"] for call in message["tool_calls"]]
        return message["content"], [(one["name"], one["arguments"]) for one in functions]
    if not message["content"]:
        return None
    return (message["content"], []) if has_rows(tool_format) else strict_calls(tool_format, message["content"])


def _digest(content: str, calls: Iterable[Call], *kind: str | None) -> ChainKey | None:
    """`kind` is what tells signatures of several kinds apart, and more that one of them covers."""
    try:
        plain = [content, [[name, _canonical(arguments)] for name, arguments in calls], *kind]
        data = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return None
    return ChainKey(hashlib.sha256(data).hexdigest())


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
