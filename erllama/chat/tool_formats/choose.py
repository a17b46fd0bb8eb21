"""Which tool format a model's template means: the one that reads a call which the template wrote,
or would have written it so.

Names of models say little (fine-tunes change templates), templates say it all: a call is rendered,
and every format in turn is asked to read it. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolCall, ToolFormat, ToolSpec, split_reply
from erllama.chat.tool_formats.gemma import GEMMA4
from erllama.chat.tool_formats.harmony import HARMONY, MUSE
from erllama.chat.tool_formats.json_format import (
    APERTUS,
    APRIEL,
    BARE_JSON,
    COHERE,
    COMMAND_R_PLUS,
    FIREFUNCTION,
    GIGACHAT_3,
    GIGACHAT_3_1,
    GRANITE_3,
    HERMES,
    LLAMA_3,
    MINIMAX_M1,
    MISTRAL_NEMO,
    NEMOTRON_NANO_V2,
    PHI_4_MINI,
)
from erllama.chat.tool_formats.named_format import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_1,
    FUNCTIONARY_3_1,
    FUNCTIONARY_3_2,
    KIMI_K2,
    MISTRAL,
    SOLAR,
)
from erllama.chat.tool_formats.pythonic import LFM2, LLAMA_PYTHONIC
from erllama.chat.tool_formats.tagged_format import TAGGED_FORMATS
from erllama.errors import ErllamaError, InvalidParameter

FORMATS: tuple[ToolFormat, ...] = (
    HARMONY,
    MUSE,
    SOLAR,
    KIMI_K2,
    DEEPSEEK_V3,
    DEEPSEEK_V3_1,
    MISTRAL,
    MISTRAL_NEMO,
    COHERE,
    APERTUS,
    GIGACHAT_3_1,
    GIGACHAT_3,
    GRANITE_3,
    PHI_4_MINI,
    NEMOTRON_NANO_V2,
    APRIEL,
    MINIMAX_M1,
    HERMES,
    GEMMA4,
    *TAGGED_FORMATS,
    LFM2,
    FUNCTIONARY_3_1,
    FIREFUNCTION,
    COMMAND_R_PLUS,
    FUNCTIONARY_3_2,
    BARE_JSON,
    LLAMA_3,
    LLAMA_PYTHONIC,
)
"""All formats, in the order in which they are asked: those with the more telling marks first."""

_ARGUMENTS = {"xKeyx": "xValuex", "xNumberx": 3}
_WRITTEN = ToolCall("xToolx", json.dumps(_ARGUMENTS))
_PARAMETERS = {"type": "object", "properties": {"xKeyx": {"type": "string"}, "xNumberx": {"type": "integer"}}}
_TOOL = {"type": "function", "function": {"name": "xToolx", "description": "A tool.", "parameters": _PARAMETERS}}
_USER = {"role": "user", "content": "xUserx"}
_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call00000", "type": "function", "function": {"name": "xToolx", "arguments": json.dumps(_ARGUMENTS)}}
    ],
}
_RESULT = {"role": "tool", "tool_call_id": "call00000", "name": "xToolx", "content": "xResultx"}


def format_named(name: str) -> ToolFormat:
    """The format that a configuration names. Raises `InvalidParameter`."""
    found = next((tool_format for tool_format in FORMATS if tool_format.name == name), None)
    if found is None:
        known = ", ".join(tool_format.name for tool_format in FORMATS)
        raise InvalidParameter(f"tool_format must be one of {known}, got {name!r}", param="tool_format")
    return found


def choose_format(template: ChatTemplate, formats: Sequence[ToolFormat] = FORMATS) -> ToolFormat:
    """The format of `template`; `HERMES` for one that writes no calls and tells of no form."""
    if template.problem is not None:
        return HERMES
    if template.traits.calls is None:
        return next((one for one in formats if one.opening and one.opening in template.source), HERMES)
    written = _written(template)
    readers = [one for one in formats if written and _reads(one, written)]
    exact = [one for one in readers if written and one.write_calls([_WRITTEN]) in written]
    return next(iter([*exact, *readers]), HERMES)


def opens_reasoning(tool_format: ToolFormat, prompt_end: str) -> bool:
    """Whether a prompt that ends so has opened the model's reasoning and not closed it."""
    return tool_format.reasoning is not None and prompt_end.rstrip().endswith(tool_format.reasoning[0].rstrip())


def leaves_reasoning_open(tool_format: ToolFormat, begun: str) -> bool:
    """Whether the beginning of a reply ends inside of the model's reasoning."""
    if tool_format.reasoning is None:
        return False
    opening, closing = (marker.strip() for marker in tool_format.reasoning)
    return begun.rfind(opening) > begun.rfind(closing)


def _written(template: ChatTemplate) -> str | None:
    """What the template makes of a call: from where the assistant speaks to the result."""
    tools: list[dict[str, Any]] = [_TOOL]
    try:
        prompt = template.render([_USER], tools=tools)
        text = template.render([_USER, _CALL, _RESULT], tools=tools)
    except ErllamaError:
        return None
    begin = next((i for i, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))
    if begin < len(prompt):
        while begin and text[begin - 1] not in ">\n] ":  # two markers may begin alike
            begin -= 1
    return text[begin : text.find("xResultx", begin)]


def _reads(tool_format: ToolFormat, text: str) -> bool:
    reply = split_reply(tool_format, text, [ToolSpec("xToolx", _PARAMETERS)])
    try:
        return [(call.name, json.loads(call.arguments_json)) for call in reply.calls] == [("xToolx", _ARGUMENTS)]
    except ValueError:
        return False
