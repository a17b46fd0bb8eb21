"""From Anthropic's bodies to a conversation and the engine's request. Pure."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deployments.dialects.anthropic.cache_marks import prefix_mark
from deployments.dialects.anthropic.messages import prompt_ending, template_messages
from deployments.dialects.anthropic.wire import ConversationBody, MessageBody
from deployments.generation.chat import ChatAsk, OfferedTool, ReadyChat, ToolChoice, thinking_variables
from deployments.generation.reply import affinity_of
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint
from erllama.request import GenerationRequest, SamplingParams

logger = logging.getLogger("deployments.http")

_FORMAT = "output_config.format"
_MOST_TOKENS = 2**31 - 1  # no context is as long


def chat_ask(body: ConversationBody) -> ChatAsk:
    """The conversation of a body. Raises `InvalidParameter`."""
    tools = offered_tools(body)
    return ChatAsk(
        template_messages(body),
        tools,
        tool_choice(body, {tool.name for tool in tools}),
        _reply_constraint(body),
        template_variables(body),
        prompt_ending(body),
        mark=prefix_mark(body),
    )


def message_request(
    body: MessageBody, ready: ReadyChat, engine_id: str, headers: Mapping[str, str]
) -> GenerationRequest:
    """The request of a reply; `headers` may name the client's session. A budget is a bound: a model
    that does not think keeps it.
    """
    thinking = body.thinking
    budget = thinking.budget_tokens if thinking is not None and thinking.type == "enabled" else None
    try:
        return ready.request(
            engine_id,
            sampling_params(body, ready.prompts.defaults.sampling),
            max_tokens=None if body.max_tokens is None else min(body.max_tokens, _MOST_TOKENS),
            stop=tuple(body.stop_sequences or ()),
            priority=body.priority,
            affinity=affinity_of(headers, user=_session_of(body)),
            thinking_budget=min(budget, _MOST_TOKENS) if budget is not None and ready.can_reason else None,
        )
    except InvalidParameter as error:
        if error.param == "stop":
            raise InvalidParameter(f"stop_sequences: {error.message}", param="stop_sequences") from None
        raise


def sampling_params(body: MessageBody, defaults: SamplingParams) -> SamplingParams:
    """`defaults` stand for what the body does not say."""
    return replace(defaults, **body.model_dump(include={"temperature", "top_p", "top_k"}, exclude_none=True))


def _session_of(body: MessageBody) -> str | None:
    """The session in `metadata.user_id`, which newer clients write as JSON, older ones at the end
    of a text; else all of it.
    """
    user = body.metadata.user_id if body.metadata is not None else None
    if not user:
        return None
    try:
        parsed = json.loads(user)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict) and isinstance(parsed.get("session_id"), str):
        return str(parsed["session_id"])
    return user.partition("_session_")[2] or user


# --- tools ----------------------------------------------------------------------------------------


def offered_tools(body: ConversationBody) -> tuple[OfferedTool, ...]:
    """Tools as templates show them, in the form that they have in every dialect: equal tools must
    be equal tokens. Those of Anthropic's servers are left out, since nobody could run them here.
    """
    offered = []
    for number, tool in enumerate(body.tools or ()):
        if not tool.is_own:
            logger.info("event=tool_skipped type=%.40r name=%.40r", tool.type, tool.name)
            continue
        strict_at = f"tools[{number}].input_schema" if tool.strict else None
        offered.append(OfferedTool.of(tool.name, tool.description, tool.input_schema, strict_at))
    return tuple(offered)


def tool_choice(body: ConversationBody, known: set[str]) -> ToolChoice:
    """What the body says of the choice among tools that are `known`. A named tool is called once.
    Raises `InvalidParameter` for a call that nothing can be made of.
    """
    choice = body.tool_choice
    if choice is None:
        return ToolChoice()
    single = bool(choice.disable_parallel_tool_use)
    if choice.type in ("auto", "none"):
        return ToolChoice("none") if choice.type == "none" else ToolChoice(single=single)
    if not known:
        raise InvalidParameter(f"tool_choice of type {choice.type} needs tools that can be called", param="tool_choice")
    if body.format is not None:
        raise InvalidParameter(f"{_FORMAT} and a forced tool_choice exclude each other", param="tool_choice")
    if choice.type == "any":
        return ToolChoice("required", single=single)
    if choice.name not in known:
        raise InvalidParameter(
            f"tool_choice names {str(choice.name)[:128]!r}, which is not in tools", param="tool_choice.name"
        )
    return ToolChoice("required", (str(choice.name),), single=True)


# --- the form of the reply ------------------------------------------------------------------------


def _reply_constraint(body: ConversationBody) -> Constraint | None:
    wanted = body.format
    return None if wanted is None else Constraint.of_schema(wanted.json_schema, _FORMAT)


def template_variables(body: ConversationBody) -> dict[str, Any]:
    """What a body says to the template beside messages and tools. Without `thinking` a model does
    what it does by default.
    """
    thinks = None if body.thinking is None else body.thinking.type != "disabled"
    return thinking_variables(thinks, body.output_config.effort if body.output_config is not None else None)
