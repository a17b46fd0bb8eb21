"""Computing a prefix before anyone asks for it: its tokens, and the request that stores their KV."""

from __future__ import annotations

from deployments.dialects.erllama_admin.wire import ComputeBody
from deployments.dialects.openai.params import template_message
from deployments.dialects.openai.tools import offered_tools
from deployments.dialects.openai.wire import ChatBody
from deployments.generation.pins import chat_head
from deployments.generation.reply import check_fits
from deployments.http.ports import PromptPort
from deployments.noise.canonical import canonical_messages
from deployments.noise.filter import NoiseFilter
from erllama.errors import InvalidParameter
from erllama.request import GenerationRequest, Pin, Prompt


def prefix_prompt(body: ComputeBody, prompts: PromptPort, noise: NoiseFilter) -> Prompt:
    """The tokens. Of messages those with which every chat begins that has them in front, without what
    `noise` takes out. May take long. Raises `InvalidParameter`, `NotSupported` and `ContextOverflow`.
    """
    if body.messages is not None:
        chat = ChatBody(messages=body.messages, tools=body.tools)
        tools = [dict(tool.shown) for tool in offered_tools(chat)]
        messages = canonical_messages([template_message(message) for message in chat.messages])
        normal = noise.apply(messages, tools, lambda: prompts.shows_late_system(tools=bool(tools)))
        prompt, param = Prompt.of(chat_head(prompts, normal.messages, normal.tools or None)), "messages"
    else:
        ids = prompts.tokenize(body.prompt) if isinstance(body.prompt, str) else body.prompt or []
        prompts.check_tokens(ids)
        prompt, param = Prompt.of(ids), "prompt"
    if not len(prompt):
        raise InvalidParameter(f"{param} has no tokens that later prompts could begin with", param=param)
    check_fits(prompt, prompts.n_ctx, param)
    return prompt


def prefix_request(body: ComputeBody, prompt: Prompt, engine_id: str) -> GenerationRequest:
    """Computes and saves, generates nothing."""
    pin = None if body.pin is None or body.pin.name else Pin(len(prompt), body.pin.ttl_s)
    return GenerationRequest(engine_id, prompt, max_tokens=0, pin=pin)
