"""Text to tokens and back, and conversations to text: llama.cpp's forms of these calls and vLLM's,
told apart by their fields.
"""

from __future__ import annotations

from typing import Any

from deployments.dialects.llama_server.params import prompt_ids, text_of
from deployments.dialects.llama_server.wire import DetokenizeBody, TokenizeBody
from deployments.dialects.openai.normal import normal_chat
from deployments.dialects.openai.params import chat_ask
from deployments.dialects.openai.tools import check_tools
from deployments.dialects.openai.wire import ChatBody
from deployments.generation.chat import chat_prompt, chat_text
from deployments.http.body import encode
from deployments.http.ports import PromptPort
from deployments.noise.filter import NoiseFilter
from erllama.errors import InvalidParameter


def tokenize_body(body: TokenizeBody, chat: ChatBody | None, prompts: PromptPort, noise: NoiseFilter) -> bytes:
    """vLLM's form for a `prompt` or a `chat`, else llama.cpp's. May take long: see `PromptPort`."""
    if chat is not None:
        return _counted(body, list(chat_prompt(chat_ask(chat), prompts, noise).prompt.tokens), prompts)
    if body.prompt is not None:
        return _counted(body, prompts.tokenize(body.prompt, body.add_special_tokens is not False), prompts)
    if body.content is None:
        raise InvalidParameter("Missing required parameter: 'content'.", param="content")
    [parts] = body.content
    special, parse = bool(body.add_special), body.parse_special is not False
    ids = prompt_ids(parts, prompts, "content", add_special=special, parse_special=parse)
    tokens: list[Any] = [_with_piece(token, prompts) for token in ids] if body.with_pieces else list(ids)
    return encode({"tokens": tokens}).encode()


def _with_piece(token: int, prompts: PromptPort) -> dict[str, Any]:
    """A piece that is no text by itself is a list of its bytes."""
    piece = prompts.token_text(token)
    try:
        return {"id": token, "piece": piece.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}


def _counted(body: TokenizeBody, ids: list[int], prompts: PromptPort) -> bytes:
    texts = [text_of([token], prompts) for token in ids] if body.return_token_strs else None
    return encode({"count": len(ids), "max_model_len": prompts.n_ctx, "tokens": ids, "token_strs": texts}).encode()


def detokenize_body(body: DetokenizeBody, prompts: PromptPort) -> bytes:
    """vLLM calls the text `prompt`; its bodies name a model."""
    prompts.check_tokens(body.tokens, "tokens")
    text = text_of(body.tokens, prompts)
    return encode({"content": text} | ({} if body.model is None else {"prompt": text})).encode()


def template_body(chat: ChatBody, prompts: PromptPort, noise: NoiseFilter) -> bytes:
    """The text of the prompt that this chat would have."""
    return encode({"prompt": chat_text(chat_ask(chat), prompts, noise)}).encode()


def checked_chat(chat: ChatBody) -> ChatBody:
    """A chat as OpenAI's dialect reads it. Raises `InvalidParameter` and `NotSupported`."""
    chat.check_names()
    chat = normal_chat(chat)
    check_tools(chat)
    return chat
