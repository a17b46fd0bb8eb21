"""Bodies of OpenAI's requests, validated. Every fault is an `InvalidParameter` (HTTP 400) whose
`param` is the path of the field.

An argument that nobody knows is refused, as OpenAI does: a typo must not silently change a reply.
Two lists in `knobs` soften that: what never changes a reply here, and options of other servers that
are sent switched off. Types are strict (`"1"` is no number); null means absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from deployments.dialects.openai.extras import Extras
from deployments.dialects.openai.knobs import IGNORED, NEUTRAL, is_neutral
from deployments.dialects.openai.wire_messages import Message, Prediction
from deployments.dialects.openai.wire_structure import (
    ChoiceField,
    ClosedPart,
    GrammarField,
    ResponseFormat,
    SchemaField,
    StructuredOutputs,
)
from deployments.dialects.openai.wire_tools import FunctionCall, FunctionDef, Tool, ToolChoice
from deployments.http.body import Priority, StopField, parse_json
from erllama.errors import InvalidParameter, NotSupported

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_EMBEDDING_INPUTS = 2048  # OpenAI's bound


class Wire(BaseModel):
    """Base of a body. Unknown names are kept until `check_names` has told ignorable from
    unknown.
    """

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    model: str | None = None

    def check_names(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED or (name in NEUTRAL and is_neutral(name, value)):
                continue
            if name in NEUTRAL:
                raise NotSupported(f"{name} is not supported by this server; leave it out", param=name)
            raise InvalidParameter(f"Unrecognized request argument supplied: {name}", param=name)


def _off(off: Any) -> BeforeValidator:
    """Reads a value that llama.cpp and vLLM understand as "off" as absent."""

    def absent(value: Any) -> Any:
        return None if value == off and isinstance(value, bool) == isinstance(off, bool) else value

    return BeforeValidator(absent)


def _top_k(value: Any) -> Any:
    return 0 if value == -1 else value  # both mean all tokens


def _logit_bias(value: Any) -> Any:
    if value is None or value == []:
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


class StreamOptions(ClosedPart):
    """`include_usage` adds a last chunk that has no choices but the usage of all of them."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # pads events against traffic analysis at OpenAI; accepted, not done
    continuous_usage_stats: Literal[False] | None = None  # vLLM's


class GenerationBody(Wire):
    """What chat and completions share. Ranges are checked by `SamplingParams` and
    `GenerationRequest`, in one place for all dialects.
    """

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int | None, BeforeValidator(_top_k)] = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: Annotated[int | None, _off(-1)] = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = Field(  # -1 is llama.cpp's "until the end"
        default=None, validation_alias=AliasChoices("max_tokens", "n_predict")
    )
    stop: StopField = ()
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_logit_bias)] = ()
    n_probs: Annotated[int, Field(ge=0, le=20)] | None = None  # llama.cpp's name of log probabilities
    response_format: ResponseFormat | None = None
    grammar: GrammarField = None  # llama.cpp; those that follow are its own, vLLM's and SGLang's
    json_schema: SchemaField = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaField = None
    guided_regex: GrammarField = None
    guided_choice: ChoiceField = None
    guided_grammar: GrammarField = None
    regex: GrammarField = None
    choice: ChoiceField = None
    ebnf: GrammarField = None
    ignore_eos: bool | None = None
    priority: Priority = None  # vLLM's
    timings_per_token: bool | None = None  # llama.cpp's server; so is the next one
    return_progress: bool | None = None
    prompt_cache_key: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def extras(self) -> Extras:
        """What the stream tells besides; a whole body tells it in any case, or never."""
        return Extras(bool(self.stream and self.timings_per_token), bool(self.stream and self.return_progress))


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    logprobs: Annotated[bool | None, _off(0)] = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = None
    functions: list[FunctionDef] | None = None
    function_call: FunctionCall = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=-1)] | None = None  # -1: no bound
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    prediction: Prediction | None = None


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
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, _off(False)] = None


class EmbeddingBody(Wire):
    input: Annotated[tuple[PromptInput, ...], _at_most(MAX_EMBEDDING_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    priority: Priority = None  # vLLM's; texts to embed are taken as they come


B = TypeVar("B", bound=Wire)


def parse_body(kind: type[B], raw: bytes) -> B:
    """The validated body. Raises `InvalidParameter` or `NotSupported`."""
    body = parse_json(kind, raw)
    body.check_names()
    return body
