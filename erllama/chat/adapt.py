"""Messages rewritten into what a template can express, by its traits. Pure.

Nothing that a client sent is dropped, and nothing is moved forward: each rewriting looks at a
message and its neighbours before it, so that the prompt of a turn stays the beginning of the next
turn's (KV reuse over a loop of calls depends on it). What is done, in this order:

    developer                       a system message
    tools that are not stated       a system text in the words of the tool format: behind the client's,
                                    as families that write calls (DeepSeek's) have it; before it where
                                    calls are not shown either, so that sessions share its KV
    calls, results not shown        the text of the tool format; results become users' messages
    several calls in one message    one message each, followed by its own result
    text beside calls               a message of its own before the calls
    no system messages, or none     a user's message in the same place; the first one is merged
    in this place                   with the user's that follows
    users in a row, users behind    merged with the message before
    results
    a conversation that a user      an empty message of a user first
    must begin

A template that refuses the outcome all the same is right: `render` says so in its words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from erllama.chat.messages import RawArguments
from erllama.chat.tool_formats.base import ToolCall, ToolFormat
from erllama.chat.traits import REASONING_FIELDS, TemplateTraits, in_parts

Message = dict[str, Any]
_JOINT = "\n\n"
_SHORT_ID_CHARS = 9


def adapt(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    traits: TemplateTraits,
    tool_format: ToolFormat,
) -> list[Message]:
    """The messages that the template can express. They are normalised (`normalise_messages`)
    before and after; `messages` is not modified. `tools` only matter where the template does not
    state them itself.
    """
    adapted = [_as_system(message) if not traits.developer else message for message in messages]
    if tools and not traits.tools:
        adapted = _with_system_text(adapted, tool_format.system_text(tools), first=traits.calls is None)
    if traits.calls is None:
        adapted = [_calls_as_text(message, tool_format) for message in adapted]
    if not traits.results:
        adapted = [_result_as_user(message) for message in adapted]
    if not traits.parallel:
        adapted = _split_calls(adapted)
    if not traits.text_and_calls:
        adapted = [part for message in adapted for part in _split_text(message)]
    adapted = _place_systems(adapted, traits)
    adapted = _merged(adapted, traits)
    if traits.user_first:
        adapted = _begun_by_user(adapted)
    return adapted


def _as_system(message: Message) -> Message:
    return message | {"role": "system"} if message["role"] == "developer" else message


def _with_system_text(messages: list[Message], text: str, *, first: bool) -> list[Message]:
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    own = messages[0]["content"]
    return [messages[0] | {"content": _JOINT.join([text, own] if first else [own, text])}, *messages[1:]]


def completed_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with a description and a type wherever a template may ask for one."""
    function = tool["function"]
    parameters = {"type": "object", "properties": {}} | (function.get("parameters") or {})
    properties: dict[str, Any] = {
        name: {"type": "string", "description": "", **(schema if isinstance(schema, Mapping) else {})}
        for name, schema in parameters["properties"].items()
    }
    complete = {"description": "", **function, "parameters": parameters | {"properties": properties}}
    return {**tool, "function": complete}


# --- calls and results ----------------------------------------------------------------------------


def arguments_text(arguments: Any) -> str:
    """The arguments of a call as JSON text; those that are none, as they stand."""
    return str(arguments) if isinstance(arguments, RawArguments) else json.dumps(arguments, ensure_ascii=False)


def _calls_as_text(message: Message, tool_format: ToolFormat) -> Message:
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [ToolCall(function["name"], arguments_text(function["arguments"])) for function in functions]
    text = message["content"] + ("\n" if message["content"] else "") + tool_format.write_calls(calls)
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": text}


def _result_as_user(message: Message) -> Message:
    if message["role"] != "tool":
        return message
    return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}


def _split_calls(messages: list[Message]) -> list[Message]:
    """Each call in a message of its own, and behind it the results that name it."""
    out: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.get("tool_calls", ())) < 2:
            out.append(message)
            continue
        results = list(takewhile(lambda one: one["role"] == "tool", rest))
        del rest[: len(results)]
        for number, call in enumerate(message["tool_calls"]):
            text = message["content"] if not number else ""
            out.append(message | {"content": text, "tool_calls": [call]})
            own = [one for one in results if one.get("tool_call_id") == call.get("id")]
            out += own
            results = [one for one in results if one not in own]
        out += results
    return out


def _split_text(message: Message) -> list[Message]:
    if not message.get("tool_calls") or not message["content"]:
        return [message]
    return [{"role": "assistant", "content": message["content"]}, message | {"content": ""}]


# --- who may speak where --------------------------------------------------------------------------


def _place_systems(messages: list[Message], traits: TemplateTraits) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        if message["role"] != "system":
            out.append(message)
        elif not out:
            out.append(message | ({} if traits.system else {"role": "user"}))
        elif traits.system != "anywhere" and len(out) == 1 and out[0] is not message and out[0]["role"] == "system":
            out[0] = _joined(out[0], message)
        elif traits.system == "anywhere" and (out[-1]["role"] != "tool" or traits.system_after_result):
            out.append(message)
        else:
            out.append(message | {"role": "user"})
    if not traits.system and messages[0]["role"] == "system" and len(out) > 1 and out[1]["role"] == "user":
        out[:2] = [_joined(out[0], out[1])]
    return out


def _merged(messages: list[Message], traits: TemplateTraits) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        before = out[-1]["role"] if out else None
        plain = not message.get("tool_calls")
        follows = (traits.alternates and message["role"] == before and before in ("user", "assistant")) or (
            message["role"] == "user" and before == "tool" and not traits.user_after_result
        )
        if follows and plain and not out[-1].get("tool_calls"):
            out[-1] = _joined(out[-1], message)
        else:
            out.append(message)
    return out


def _joined(first: Message, second: Message) -> Message:
    return first | {"content": _JOINT.join(text for text in (first["content"], second["content"]) if text)}


def _begun_by_user(messages: list[Message]) -> list[Message]:
    """An empty user's message before an assistant's that begins, behind the system message."""
    n = 1 if messages[0]["role"] == "system" else 0
    if len(messages) > n and messages[n]["role"] == "assistant":
        return [*messages[:n], {"role": "user", "content": ""}, *messages[n:]]
    return messages


# --- how a message is written ---------------------------------------------------------------------


def spelled(message: Message, traits: TemplateTraits) -> Message:
    """An adapted message with its fields as the template reads them: no longer normalised."""
    message = _with_reasoning(message, traits)
    if message.get("tool_calls"):
        message = message | {"tool_calls": [_call(call, traits) for call in message["tool_calls"]]}
        if not message["content"] and traits.call_content == "null":
            message["content"] = None
    if traits.short_ids and message.get("tool_call_id") is not None:
        message = message | {"tool_call_id": short_id(message["tool_call_id"])}
    return in_parts(message) if traits.content == "parts" else message


def _with_reasoning(message: Message, traits: TemplateTraits) -> Message:
    """The reasoning under the one name that the template knows. One that takes it or a text beside
    a call (gpt-oss's, which shows either as reasoning) gets them as one text.
    """
    thought = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    if not isinstance(thought, str) or traits.reasoning is None:
        return message
    rest = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    if message.get("tool_calls") and message["content"] and not traits.reasoning_and_text:
        return rest | {"content": f"{thought}\n\n{message['content']}"}
    return rest | {traits.reasoning: thought}


def _call(call: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    arguments: Any = call["function"]["arguments"]
    if traits.calls == "text":
        arguments = arguments_text(arguments)
    elif isinstance(arguments, RawArguments) and not traits.raw_arguments:
        arguments = {"input": str(arguments)}
    written = {**call, "function": {**call["function"], "arguments": arguments}}
    if traits.short_ids:
        written["id"] = short_id(call.get("id") or call["function"]["name"])
    return written


def short_id(id: str) -> str:
    """An id of nine letters and digits: `id` itself if it is one, else a digest of it."""
    if len(id) == _SHORT_ID_CHARS and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:_SHORT_ID_CHARS]
