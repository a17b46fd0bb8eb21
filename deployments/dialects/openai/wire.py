"""Bodies of OpenAI's requests, validated. Every fault is an `InvalidParameter` (HTTP 400) whose
`param` is the path of the field.

An argument that nobody knows is refused, as OpenAI does: a typo must not silently change a reply.
Two lists soften that. `IGNORED` can be sent with any value, since it never changes what a model
answers here. `NEUTRAL` are real options of other servers that we lack: they pass with the value
that switches them off, because front ends send their whole panel of knobs. Types are strict (`"1"`
is no number); null means absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from erllama.errors import InvalidParameter, NotSupported

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_EMBEDDING_INPUTS = 2048  # OpenAI's bound

IGNORED = frozenset(
    {
        # OpenAI: accounting, storage, hints to its own caches
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "prediction", "verbosity", "moderation",
        # llama.cpp's server and vLLM: where and when to compute, never what
        "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "slot_id", "timings_per_token",
        "return_progress", "priority", "request_id", "return_tokens",
    }
)  # fmt: skip

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "tfs_z": (1,), "mirostat": (0,), "dry_multiplier": (0,), "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "top_n_sigma": (-1,), "n_probs": (0,), "min_tokens": (0,), "length_penalty": (1,), "use_beam_search": (False,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "add_special_tokens": (True, False),
    "modalities": (["text"],), "functions": ([],), "function_call": ("none",), "audio": (), "web_search_options": (),
    "stop_token_ids": ([],), "samplers": (), "t_max_predict_ms": (0,), "bad_words": ([],), "allowed_token_ids": (),
    "truncate_prompt_tokens": (), "prompt_logprobs": (0,),
}  # fmt: skip


class Wire(BaseModel):
    """Base of a body. Unknown names are kept until `check_names` has told ignorable from
    unknown.
    """

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    model: str | None = None

    def check_names(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED or (name in NEUTRAL and (value is None or value in NEUTRAL[name])):
                continue
            if name in NEUTRAL:
                raise NotSupported(f"{name} is not supported by this server; leave it out", param=name)
            raise InvalidParameter(f"Unrecognized request argument supplied: {name}", param=name)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _OpenPart(BaseModel):
    """Extra fields are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _stop(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise ValueError("must be a string or a list of strings")


def _logit_bias(value: Any) -> Any:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError("must map token ids to biases")
    pairs = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit()):
            raise ValueError(f"keys must be token ids, got {token[:40]!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"biases must be numbers between -100 and 100, got {bias!r} for token {token}")
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


class StreamOptions(_Part):
    """`include_usage` adds a last chunk that has no choices but the usage of all of them."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # pads events against traffic analysis at OpenAI; accepted, not done
    continuous_usage_stats: Literal[False] | None = None  # vLLM's


class JsonSchema(_Part):
    """`strict` false is enforced all the same: a grammar costs little, and the reply then
    parses.
    """

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    object_schema: dict[str, Any] | None = Field(default=None, alias="schema")  # llama.cpp: json_object with a schema


class GenerationBody(Wire):
    """What chat and completions share. Ranges are checked by `SamplingParams` and
    `GenerationRequest`, in one place for all dialects.
    """

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = None  # -1 is llama.cpp's "until the end"
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop)] = ()
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_logit_bias)] = ()
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def _content(value: Any) -> Any:
    """Text, or text parts joined by line breaks (what llama.cpp and vLLM give to templates)."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text" if kind == "text" else "refusal") if kind in ("text", "refusal") else None
        if kind in ("text", "refusal") and not isinstance(text, str):
            raise ValueError(f"a part of type {kind} must carry it as a string")
        if not isinstance(text, str):
            raise ValueError(f"only content parts of type text are supported, got {str(kind)[:40]!r}")
        texts.append(text)
    return "\n".join(texts)


class CalledFunction(_Part):
    name: str
    arguments: str


class ToolCallPart(_OpenPart):  # streamed calls come back with their `index`
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_OpenPart):
    """Clients send replies back whole, with `refusal`, `annotations` and `audio`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_content)] = None
    name: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionDef(_OpenPart):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_OpenPart):
    type: Literal["function"]
    function: FunctionDef


class NamedFunction(_Part):
    name: str


class NamedTool(_Part):
    type: Literal["function"]
    function: NamedFunction


def _tool_choice(value: Any) -> Any:
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        raise ValueError("must be none, auto, required or an object that names a function")
    return NamedTool.model_validate(value) if isinstance(value, dict) else value


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[str | NamedTool | None, BeforeValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=-1)] | None = None  # -1: no bound


PromptInput = str | tuple[int, ...]
"""A prompt as a client sends it: text or token ids."""


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and 0 <= token < 2**31 for token in value)


def _prompts(value: Any) -> tuple[PromptInput, ...]:
    """One text, texts, one list of ids, or lists of ids: always a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if _token_ids(value):
        return (tuple(value),)
    if isinstance(value, list) and value:
        if all(isinstance(text, str) for text in value):
            return tuple(value)
        if all(_token_ids(ids) for ids in value):
            return tuple(tuple(ids) for ids in value)
    raise ValueError(
        "must be a string, a list of strings, a list of token ids or a list of such lists, none of them empty"
    )


def _at_most(limit: int) -> PlainValidator:
    def check(value: Any) -> tuple[PromptInput, ...]:
        prompts = _prompts(value)
        if len(prompts) > limit:
            raise ValueError(f"has {len(prompts)} entries, at most {limit}")
        return prompts

    return PlainValidator(check)


class CompletionBody(GenerationBody):
    prompt: Annotated[tuple[PromptInput, ...], _at_most(MAX_PROMPTS)]
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingBody(Wire):
    input: Annotated[tuple[PromptInput, ...], _at_most(MAX_EMBEDDING_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


B = TypeVar("B", bound=Wire)


def parse_body(kind: type[B], raw: bytes) -> B:
    """The validated body. Raises `InvalidParameter` or `NotSupported`."""
    try:
        body = kind.model_validate_json(raw or b"null")
    except ValidationError as exc:
        raise _as_parameter_error(kind, exc) from None
    body.check_names()
    return body


def _as_parameter_error(kind: type[Wire], exc: ValidationError) -> InvalidParameter:
    """The first fault of several: clients fix one at a time, and the path of one is unambiguous."""
    fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return InvalidParameter(f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}")
    if not fault["loc"]:
        return InvalidParameter("The body must be a JSON object")
    path = _path(fault["loc"])
    if fault["type"] == "missing":
        return InvalidParameter(f"Missing required parameter: '{path}'.", param=path)
    return InvalidParameter(f"Invalid value for '{path}': {message[:1].lower()}{message[1:]}.", param=path)


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].role`, as OpenAI writes it."""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
