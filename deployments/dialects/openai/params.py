"""From OpenAI's bodies to `GenerationRequest`s. Pure: prompts arrive here already as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deployments.dialects.openai.structure import reply_constraint
from deployments.dialects.openai.tools import offered_tools, tool_choice
from deployments.dialects.openai.wire import ChatBody, CompletionBody, GenerationBody
from deployments.dialects.openai.wire_messages import Message
from deployments.generation.chat import ChatAsk, ReadyChat, thinking_variables
from deployments.generation.reply import affinity_of, with_ends
from deployments.http.ports import ReplyDefaults
from erllama.chat.template import Ending
from erllama.errors import ErllamaError, InvalidParameter, NotSupported
from erllama.grammar.constraint import Constraint
from erllama.request import SEED_BITS, GenerationRequest, Prompt, SamplingParams

# OpenAI's default of the legacy endpoint; chat has none and runs to the end of the context
DEFAULT_COMPLETION_TOKENS = 16

_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repeat_last_n", "seed"}


def sampling_params(body: GenerationBody, defaults: SamplingParams) -> SamplingParams:
    """`defaults` stand for what the body does not say."""
    penalty = body.repetition_penalty if body.repeat_penalty is None else body.repeat_penalty
    if body.repetition_penalty not in (None, penalty):
        raise InvalidParameter(
            "repeat_penalty and repetition_penalty are two names of one option; send one", param="repeat_penalty"
        )
    given = body.model_dump(include=_SAMPLING, exclude_none=True)
    if penalty is not None:
        given["repetition_penalty"] = penalty
    if body.logit_bias:
        given["logit_bias"] = body.logit_bias
    try:
        return replace(defaults, **given)
    except ErllamaError as error:
        if error.param == "repetition_penalty" and body.repeat_penalty is not None:
            raise InvalidParameter(
                error.message.replace("repetition_penalty", "repeat_penalty"), param="repeat_penalty"
            ) from None
        raise


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidParameter("top_logprobs needs logprobs: true", param="top_logprobs")
    return None


def _limit(max_tokens: int | None) -> int | None:
    return None if max_tokens == -1 else max_tokens


def _choice_seed(seed: int | None, choice: int) -> int | None:
    """Choices differ, and each can be asked for alone by its own seed."""
    if seed is None:
        return None
    return seed + choice if seed + choice < 2**SEED_BITS else seed + choice - 2**SEED_BITS


def _affinity(body: GenerationBody, headers: Mapping[str, str]) -> str | None:
    return affinity_of(headers, key=body.prompt_cache_key, user=_user(body))


def _user(body: GenerationBody) -> object:
    """Two names of one thing, which change no reply and are of any type."""
    extra = body.model_extra or {}
    return extra.get("safety_identifier") or extra.get("user")


def _choices(base: GenerationRequest, n: int) -> list[GenerationRequest]:
    if n == 1:
        return [base]
    return [
        replace(
            base,
            request_id=f"{base.request_id}.{i}",
            sampling=replace(base.sampling, seed=_choice_seed(base.sampling.seed, i)),
        )
        for i in range(n)
    ]


def chat_ask(body: ChatBody) -> ChatAsk:
    """The conversation of a body. Raises `InvalidParameter`."""
    return ChatAsk(
        [template_message(message) for message in body.messages],
        offered_tools(body),
        tool_choice(body),
        reply_constraint(body),
        template_variables(body),
        prompt_ending(body),
    )


def chat_requests(
    body: ChatBody, ready: ReadyChat, engine_id: str, headers: Mapping[str, str]
) -> list[GenerationRequest]:
    """One request per choice; `headers` may name the client's session."""
    budget = body.thinking_budget
    base = ready.request(
        engine_id,
        sampling_params(body, ready.prompts.defaults.sampling),
        max_tokens=_limit(body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens),
        stop=body.stop,
        logprobs=_chat_logprobs(body),
        ignore_eos=bool(body.ignore_eos),
        priority=body.priority,
        affinity=_affinity(body, headers),
        thinking_budget=None if budget is None or budget < 0 else budget,
        report_progress=body.extras.report_progress,
        predicted="" if body.prediction is None else body.prediction.content,
    )
    return _choices(base, body.n or 1)


def completion_requests(
    body: CompletionBody,
    prompts: Sequence[Prompt],
    grammar: Constraint | None,
    engine_id: str,
    headers: Mapping[str, str],
    defaults: ReplyDefaults,
) -> list[GenerationRequest]:
    """Choice i of prompt p is request `p * n + i`, as OpenAI numbers them. OpenAI's limit holds where
    neither the request nor the model has one.
    """
    sampling = sampling_params(body, defaults.sampling)
    ends = replace(defaults, max_tokens=defaults.max_tokens or DEFAULT_COMPLETION_TOKENS)
    requests: list[GenerationRequest] = []
    for p, prompt in enumerate(prompts):
        base = GenerationRequest(
            request_id=engine_id if len(prompts) == 1 else f"{engine_id}.p{p}",
            prompt=prompt,
            sampling=sampling,
            max_tokens=None if body.max_tokens is None else _limit(body.max_tokens),
            stop=body.stop,
            grammar=grammar,
            logprobs=body.logprobs,
            ignore_eos=bool(body.ignore_eos),
            priority=body.priority,
            affinity=_affinity(body, headers),
            report_progress=body.extras.report_progress,
        )
        requests += _choices(with_ends(base, ends), body.n or 1)
    return requests


def check_stream(body: GenerationBody) -> None:
    """Raises `InvalidParameter` for options of a stream that was not asked for."""
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


def check_completion(body: CompletionBody) -> None:
    """Combinations that the legacy endpoint has and we have not. Raises `NotSupported`."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise NotSupported("best_of is supported only when it equals n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise NotSupported("echo with logprobs is not supported: prompt tokens have no logprobs here", param="logprobs")


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: only what was said, tool calls with their id, content
    never None.
    """
    # "developer" is OpenAI's newer name of the system role; hardly any template knows it
    fields = {"role": "system" if message.role == "developer" else message.role, "content": message.content or ""}
    fields |= message.model_dump(exclude={"role", "content"}, exclude_none=True)
    if not message.tool_calls:
        fields.pop("tool_calls", None)
    return fields


def template_variables(body: ChatBody) -> dict[str, Any]:
    """What a body says to the template beside messages and tools; `chat_template_kwargs` win.

    An effort of "none" is OpenAI's way to turn the reasoning off.
    """
    thinks = body.enable_thinking
    if thinks is None and body.reasoning_effort == "none":
        thinks = False
    effort = None if body.reasoning_effort == "none" else body.reasoning_effort
    return thinking_variables(thinks, effort) | (body.chat_template_kwargs or {})


def prompt_ending(body: ChatBody) -> Ending:
    """Where the prompt ends, in vLLM's words. Raises `InvalidParameter` when it says two things."""
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidParameter(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    if body.continue_final_message:
        return "continued"
    return "closed" if body.add_generation_prompt is False else "opened"
