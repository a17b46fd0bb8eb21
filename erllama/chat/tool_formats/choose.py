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

_TOLD_BY = (("<|tool_list_start|>", LFM2), ("List of tools: [", LFM2))
"""What is in templates that list tools in a family's own way, and write no calls."""

_ARGUMENTS = {"xKeyx": "xValuex", "xNumberx": 3}
_WRITTEN = ToolCall("xToolx", json.dumps(_ARGUMENTS))
_PARAMETERS = {"type": "object", "properties": {"xKeyx": {"type": "string"}, "xNumberx": {"type": "integer"}}}
_TOOL = {"type": "function", "function": {"name": "xToolx", "description": "A tool.", "parameters": _PARAMETERS}}
_USER = {"role": "user", "content": "xUserx"}


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
        told = [one for one in formats if one.opening and one.opening in template.source]
        told += [one for mark, one in _TOLD_BY if mark in template.source]
        return next(iter(told), HERMES)
    written, two = _written(template, 1), _written(template, 2) if template.traits.parallel else None
    if written is None:
        return HERMES
    readers = [one for one in formats if _reads(one, written)]
    exact = [one for one in readers if one.write_calls([_WRITTEN]) in written]
    alike = [one for one in exact if two is not None and one.write_calls([_WRITTEN] * 2) in two]
    return next(iter([*alike, *exact, *readers]), HERMES)


def opens_reasoning(tool_format: ToolFormat, prompt_end: str) -> bool:
    """Whether a prompt that ends so has opened the model's reasoning and not closed it."""
    return tool_format.reasoning is not None and prompt_end.rstrip().endswith(tool_format.reasoning[0].rstrip())


def leaves_reasoning_open(tool_format: ToolFormat, begun: str) -> bool:
    """Whether the beginning of a reply ends inside of the model's reasoning."""
    if tool_format.reasoning is None:
        return False
    opening, closing = (marker.strip() for marker in tool_format.reasoning)
    return begun.rfind(opening) > begun.rfind(closing)


def _written(template: ChatTemplate, n_calls: int) -> str | None:
    """What the template makes of calls: from where the assistant speaks to the first result."""
    tools: list[dict[str, Any]] = [_TOOL]
    function = {"name": "xToolx", "arguments": json.dumps(_ARGUMENTS)}
    ids = [f"call0000{number}" for number in range(n_calls)]
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    calling = {"role": "assistant", "content": None, "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": one, "name": "xToolx", "content": "xResultx"} for one in ids]
    try:
        prompt = template.render([_USER], tools=tools)
        text = template.render([_USER, calling, *results], tools=tools)
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
