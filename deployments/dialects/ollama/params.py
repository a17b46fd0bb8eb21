"""From Ollama's bodies to what the engine is asked for. Pure, but for what a vocabulary does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deployments.dialects.ollama.wire import ChatBody, GenerateBody, GenerationBody
from deployments.dialects.ollama.wire_messages import Message, offered_tools, template_messages
from deployments.generation.chat import ChatAsk, ReadyChat, ready_chat, thinking_variables
from deployments.generation.reply import check_fits, prepare_cost, with_ends
from deployments.http.ports import PromptPort
from deployments.noise.filter import NoiseFilter
from erllama.chat.template import Ending
from erllama.errors import InvalidParameter, NotSupported
from erllama.grammar.constraint import JSON_OBJECT, Constraint
from erllama.prompts.infill import Gap
from erllama.request import GenerationRequest, Prompt


def reply_constraint(body: GenerationBody) -> Constraint | None:
    """What the text of the reply must follow, or None for free text. Raises `InvalidParameter`."""
    if body.format is None:
        return None
    return Constraint.of_schema(JSON_OBJECT if isinstance(body.format, str) else body.format, "format")


def think_variables(think: bool | str | None) -> dict[str, Any]:
    """What templates are told of `think`; a level is also a yes."""
    return thinking_variables(bool(think) if think is not None else None, think if isinstance(think, str) else None)


def chat_ask(body: ChatBody) -> ChatAsk:
    """The conversation of a body. A last message of the assistant is gone on with, as Ollama does.
    Raises `InvalidParameter`.
    """
    messages = body.messages or []
    return ChatAsk(
        template_messages(messages),
        offered_tools(body.tools),
        reply=reply_constraint(body),
        variables=think_variables(body.think),
        ending=_ending(messages),
    )


def _ending(messages: Sequence[Message]) -> Ending:
    last = messages[-1]
    return "continued" if last.role == "assistant" and last.content and not last.tool_calls else "opened"


def generate_ask(body: GenerateBody) -> ChatAsk:
    """A prompt as a conversation of one message, behind its system message."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    return ChatAsk(
        [*system, {"role": "user", "content": body.prompt or ""}],
        reply=reply_constraint(body),
        variables=think_variables(body.think),
        param="prompt",
    )


def check_generate(body: GenerateBody) -> None:
    """Combinations that Ollama refuses. Raises `InvalidParameter`."""
    if body.raw and body.suffix:
        raise InvalidParameter("raw mode does not support suffix: the prompt is taken as it stands", param="suffix")
    if body.raw and body.system:
        raise InvalidParameter("raw mode does not support system: the prompt is taken as it stands", param="system")
    if body.raw and body.context:
        raise InvalidParameter("raw mode does not support context: the prompt is taken as it stands", param="context")
    if body.suffix and body.context:
        raise InvalidParameter("suffix does not support context: the gap is all there is", param="context")
    if body.raw and body.think:
        raise InvalidParameter("raw mode does not support think: the prompt is taken as it stands", param="think")


def prepare_chat(ask: ChatAsk, body: GenerationBody, prompts: PromptPort, noise: NoiseFilter) -> ReadyChat:
    """May take long: see `PromptPort`. Raises what `ready_chat` raises."""
    if body.think and prompts.tool_format.reasoning is None:
        raise NotSupported(f'"{body.model}" does not support thinking', param="think")
    ready = ready_chat(ask, prompts, noise)
    return _behind(body.context, ready) if isinstance(body, GenerateBody) and body.context else ready


def _behind(context: Sequence[int], ready: ReadyChat) -> ReadyChat:
    """The chat behind the ids of an earlier one, whose beginning it does not repeat."""
    prompts, tokens = ready.prompts, ready.chat.prompt.tokens
    prompts.check_tokens(context, "context")
    bos = tuple(prompts.tokenize(prompts.facts().bos_text, add_special=False))
    if bos and tokens[: len(bos)] == bos:
        tokens = tokens[len(bos) :]
    chat = replace(ready.chat, prompt=Prompt.of((*context, *tokens)))
    check_fits(chat.prompt, prompts.n_ctx, "context")
    return replace(ready, chat=chat, record=prompts.recorder(chat))


def chat_request(body: GenerationBody, ready: ReadyChat, engine_id: str) -> GenerationRequest:
    options = body.options
    return ready.request(
        engine_id,
        options.sampling(ready.prompts.defaults.sampling),
        max_tokens=options.max_tokens,
        stop=options.stop,
        logprobs=_logprobs(body),
        priority=body.priority,
    )


def raw_request(body: GenerateBody, prompts: PromptPort, engine_id: str) -> GenerationRequest:
    """A prompt without a template around it, or one with a gap. May take long. Raises
    `InvalidParameter`, `ContextOverflow`, and `NotSupported` for a gap that the model cannot fill.
    """
    prompt, constraint, options = _raw_prompt(body, prompts), reply_constraint(body), body.options
    check_fits(prompt, prompts.n_ctx, "prompt")
    if constraint is not None:
        prompts.check_constraint(constraint)
    request = GenerationRequest(
        request_id=engine_id,
        prompt=prompt,
        sampling=options.sampling(prompts.defaults.sampling),
        max_tokens=options.max_tokens,
        stop=options.stop,
        grammar=constraint,
        logprobs=_logprobs(body),
        priority=body.priority,
    )
    return with_ends(request, prompts.defaults)


def _raw_prompt(body: GenerateBody, prompts: PromptPort) -> Prompt:
    if body.suffix:
        if not prompts.fills_gaps:
            raise NotSupported(f'"{body.model}" does not support insert', param="suffix")
        return prompts.infill_prompt(Gap(body.prompt or "", body.suffix))
    tokens = prompts.tokenize(body.prompt or "", add_special=True)
    if not tokens:
        raise InvalidParameter("prompt is empty", param="prompt")
    return Prompt.of(tokens)


def load_request(prompts: PromptPort, engine_id: str) -> GenerationRequest:
    """What makes a model load, if it sleeps, and answers as soon as it has: it computes a token and
    generates none. May take long.
    """
    return GenerationRequest(request_id=engine_id, prompt=Prompt.of(prompts.tokenize(" ")), max_tokens=0)


def prepare_inputs(texts: Sequence[str], prompts: PromptPort, *, truncate: bool) -> list[list[int]]:
    """The tokens of texts to embed. May take long. `truncate` cuts what is longer than the context."""
    limit = prompts.n_ctx if truncate else None
    return [prompts.tokenize(text, add_special=True)[:limit] for text in texts]


def cost(raw: bytes, body: GenerationBody, prompts: PromptPort) -> int:
    """See `prepare_cost`."""
    compiles, has_replies = body.format is not None, False
    if isinstance(body, ChatBody):
        compiles = compiles or bool(body.tools)
        has_replies = any(message.role == "assistant" for message in body.messages or ())
    return prepare_cost(len(raw), prompts, compiles=compiles, has_replies=has_replies)


def _logprobs(body: GenerationBody) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None
