"""From a body to a `ChatAsk` and a `GenerationRequest`. Pure: the prompt arrives here as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deployments.dialects.responses.messages import chat_messages
from deployments.dialects.responses.stored.past import conversation, referred_items
from deployments.dialects.responses.stored.store import Past
from deployments.dialects.responses.tools import Toolbox, asked_choice, forced_input
from deployments.dialects.responses.wire import PromptBody, ResponseBody
from deployments.generation.chat import ChatAsk, ReadyChat, thinking_variables
from deployments.generation.chat import ToolChoice as AskedChoice
from deployments.generation.pins import SHORT_S, PrefixMark
from deployments.generation.reply import affinity_of
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, Constraint
from erllama.request import GenerationRequest, SamplingParams

_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "frequency_penalty", "presence_penalty", "seed"}


def chat_ask(body: PromptBody, tools: Toolbox, past: Past) -> ChatAsk:
    """The conversation of a body that goes on from `past`. Raises `InvalidParameter`."""
    choice, reply, variables = asked_choice(body, tools), reply_constraint(body), template_variables(body)
    forced = forced_input(choice, tools)
    if forced is not None:  # the reply is the input of a call, and nothing before it
        choice, reply, variables = AskedChoice("none"), forced[1], thinking_variables(False) | variables
    return ChatAsk(
        chat_messages(body.input, body.instructions, conversation(past), referred_items(past)),
        tools.offered,
        choice,
        reply,
        variables,
        param="input",
        mark=PrefixMark(1, SHORT_S) if body.instructions else None,
    )


def reply_constraint(body: PromptBody) -> Constraint | None:
    """What the text of the reply must follow, or None for free text."""
    wanted = body.format
    if wanted is None:
        return None
    if wanted.type == "json_object":
        return Constraint.of_schema(JSON_OBJECT, "text.format")
    if wanted.json_schema is None:
        raise InvalidParameter("Missing required parameter: 'text.format.schema'.", param="text.format.schema")
    return Constraint.of_schema(wanted.json_schema, "text.format.schema", strict=wanted.strict is not False)


def template_variables(body: PromptBody) -> dict[str, Any]:
    """What a body says to the template beside messages and tools; `chat_template_kwargs` win.

    An effort of "none" is OpenAI's way to turn the reasoning off.
    """
    off = body.effort == "none"
    variables = thinking_variables(False if off else None, None if off else body.effort or None)
    if body.text and body.text.verbosity:
        variables["verbosity"] = body.text.verbosity
    return variables | (body.chat_template_kwargs or {})


def sampling_params(body: ResponseBody, defaults: SamplingParams) -> SamplingParams:
    """`defaults` stand for what the body does not say."""
    return replace(defaults, **body.model_dump(include=_SAMPLING, exclude_none=True))


def response_request(
    body: ResponseBody, ready: ReadyChat, engine_id: str, headers: Mapping[str, str]
) -> GenerationRequest:
    """The request of a reply; `headers` may name the client's session."""
    return ready.request(
        engine_id,
        sampling_params(body, ready.prompts.defaults.sampling),
        max_tokens=body.max_output_tokens,
        stop=body.stop,
        logprobs=body.logprobs,
        priority=body.priority,
        affinity=affinity_of(headers, key=body.prompt_cache_key, user=body.safety_identifier or body.user),
    )
