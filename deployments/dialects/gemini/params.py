"""From Gemini's bodies to a conversation and the engine's requests. Pure."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from deployments.dialects.gemini.messages import prompt_ending, template_messages
from deployments.dialects.gemini.schema import json_schema
from deployments.dialects.gemini.wire import FunctionDeclaration, GenerateBody, GenerationConfig
from deployments.generation.chat import ChatAsk, OfferedTool, ReadyChat, ToolChoice, thinking_variables
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint
from erllama.request import SEED_BITS, GenerationRequest, SamplingParams

logger = logging.getLogger("deployments.http")

_MOST_TOKENS = 2**31 - 1  # no context is as long
_ANY_JSON = {"anyOf": [{"type": "object"}, {"type": "array"}]}
_NAMES = {
    "stop": "generationConfig.stopSequences", "top_k": "generationConfig.topK", "top_p": "generationConfig.topP",
    "temperature": "generationConfig.temperature", "logprobs": "generationConfig.logprobs",
    "presence_penalty": "generationConfig.presencePenalty",
    "frequency_penalty": "generationConfig.frequencyPenalty",
}  # fmt: skip


def chat_ask(body: GenerateBody) -> ChatAsk:
    """The conversation of a body. Raises `InvalidParameter`."""
    tools = offered_tools(body)
    return ChatAsk(
        template_messages(body),
        tools,
        tool_choice(body, {tool.name for tool in tools}),
        reply_constraint(body.generation_config),
        template_variables(body.generation_config),
        prompt_ending(body),
        "contents",
    )


def generation_requests(body: GenerateBody, ready: ReadyChat, engine_id: str) -> list[GenerationRequest]:
    """One request per candidate. Raises `InvalidParameter`."""
    config = body.generation_config
    thinking = config.thinking_config
    budget = thinking.thinking_budget if thinking is not None else None
    bounded = budget is not None and budget > 0 and ready.can_reason
    most = config.max_output_tokens
    try:
        base = ready.request(
            engine_id,
            sampling_params(config, ready.prompts.defaults.sampling),
            max_tokens=None if most is None else min(most, _MOST_TOKENS),
            stop=tuple(config.stop_sequences or ()),
            logprobs=_logprobs(config),
            priority=body.priority,
            thinking_budget=min(budget, _MOST_TOKENS) if bounded and budget is not None else None,
        )
    except InvalidParameter as error:
        name = _NAMES.get(error.param or "")
        if name is None:
            raise
        raise InvalidParameter(f"{name}: {error.message}", param=name) from None
    return [_candidate(base, number) for number in range(config.candidate_count or 1)]


def _candidate(base: GenerationRequest, number: int) -> GenerationRequest:
    """Candidates differ, and each can be asked for alone by its own seed."""
    if number == 0:
        return base
    seed = base.sampling.seed
    sampling = base.sampling if seed is None else replace(base.sampling, seed=(seed + number) % 2**SEED_BITS)
    return replace(base, request_id=f"{base.request_id}.{number}", sampling=sampling)


def sampling_params(config: GenerationConfig, defaults: SamplingParams) -> SamplingParams:
    """`defaults` stand for what the body does not say. Seeds may be negative here."""
    names = {"temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"}
    given = config.model_dump(include=names, exclude_none=True)
    if config.seed is not None:
        given["seed"] = config.seed % 2**SEED_BITS
    return replace(defaults, **given)


def _logprobs(config: GenerationConfig) -> int | None:
    if config.response_logprobs:
        return config.logprobs or 0
    if config.logprobs:
        raise InvalidParameter("logprobs needs responseLogprobs: true", param="generationConfig.logprobs")
    return None


# --- tools ----------------------------------------------------------------------------------------


def offered_tools(body: GenerateBody) -> tuple[OfferedTool, ...]:
    """Tools in the form that they have in every dialect: equal tools must be equal tokens. Those of
    Google's servers are left out, since nobody could run them here.
    """
    offered = []
    for tool in body.tools or ():
        for name in tool.other:
            logger.info("event=tool_skipped type=%.40r", name)
        offered += [_offered(function) for function in tool.function_declarations]
    return tuple(offered)


def _offered(declared: FunctionDeclaration) -> OfferedTool:
    schema = declared.schema_of_arguments or {"type": "object", "properties": {}}
    return OfferedTool.of(declared.name, declared.description, schema)


def tool_choice(body: GenerateBody, known: set[str]) -> ToolChoice:
    """What the body says of the choice among tools that are `known`. Raises `InvalidParameter` for a
    call that nothing can be made of.
    """
    config = body.tool_config.function_calling_config if body.tool_config is not None else None
    if config is None or config.mode == "MODE_UNSPECIFIED":
        return ToolChoice()
    if config.mode == "NONE":
        return ToolChoice("none")
    param = "toolConfig.functionCallingConfig"
    unknown = [name for name in config.allowed_function_names or () if name not in known]
    if unknown:
        raise InvalidParameter(
            f"allowedFunctionNames has {unknown[0][:128]!r}, which is not declared",
            param=f"{param}.allowedFunctionNames",
        )
    names = tuple(config.allowed_function_names) if config.allowed_function_names else None
    if config.mode != "ANY":
        return ToolChoice("auto", names)
    if not known:
        raise InvalidParameter("mode ANY needs functions that can be called", param=f"{param}.mode")
    return ToolChoice("required", names)


# --- the form of the reply ------------------------------------------------------------------------


def reply_constraint(config: GenerationConfig) -> Constraint | None:
    """What the text of a reply must follow. Raises `InvalidParameter`."""
    param = "generationConfig.responseSchema"
    schema = config.response_json_schema
    if schema is None and config.response_schema is not None:
        schema = json_schema(config.response_schema)
    elif schema is not None:
        param = "generationConfig.responseJsonSchema"
    if config.response_mime_type == "text/x.enum":
        return _one_of(schema, param)
    if config.response_mime_type == "application/json":
        return Constraint.of_schema(_ANY_JSON if schema is None else schema, param)
    if schema is not None:
        raise InvalidParameter("a schema needs responseMimeType: application/json", param=param)
    return None


def _one_of(schema: dict[str, Any] | None, param: str) -> Constraint:
    """A reply that is one of the texts of an enum, without quotes."""
    values = schema.get("enum") if schema is not None else None
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise InvalidParameter("responseMimeType text/x.enum needs a schema with an enum of texts", param=param)
    return Constraint.one_of(values, param)


def template_variables(config: GenerationConfig) -> dict[str, Any]:
    """A budget of 0 is Gemini's way to turn the thinking off, -1 leaves it to the model."""
    thinking = config.thinking_config
    if thinking is None:
        return {}
    budget, level = thinking.thinking_budget, thinking.thinking_level
    thinks = None if budget in (None, -1) else budget != 0
    effort = None if level in (None, "THINKING_LEVEL_UNSPECIFIED") else str(level).lower()
    return thinking_variables(thinks, effort)
