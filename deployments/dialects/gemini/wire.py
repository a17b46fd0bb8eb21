"""Bodies of Gemini's requests, validated. Every fault is an `InvalidParameter` (HTTP 400) that names
the field.

Names are in camel case, as the API writes them, or in snake case, which it takes too. A field that
nobody here knows passes: clients send settings of Google's servers with every request. What is known
to change the reply, and cannot be done here, is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel, to_snake

from deployments.dialects.gemini.schema import json_schema
from deployments.http.body import Priority, Whole
from erllama.errors import NotSupported

MAX_CANDIDATES = 8  # Google's own limit


class GeminiPart(BaseModel):
    """A part of a body, in either spelling."""

    model_config = ConfigDict(
        strict=True, extra="ignore", hide_input_in_errors=True, alias_generator=to_camel, populate_by_name=True
    )


class FunctionCall(GeminiPart):
    name: str
    args: dict[str, Any] | None = None
    id: str | None = None


class FunctionResponse(GeminiPart):
    name: str
    response: dict[str, Any] | None = None
    id: str | None = None


_REFUSED_PARTS = tuple(
    (name, to_snake(name))
    for name in ("inlineData", "fileData", "executableCode", "codeExecutionResult", "toolCall", "toolResponse")
)
"""Each in both spellings."""


class Part(GeminiPart):
    """A text, one that is a thought, a call, or a call's result."""

    text: str | None = None
    thought: bool = False
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None

    @model_validator(mode="before")
    @classmethod
    def _can_be_read(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, snake in _REFUSED_PARTS:
                if value.get(name) is not None or value.get(snake) is not None:
                    raise ValueError(f"parts with {name} are not supported by this server")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Part:
        if self.text is None and self.function_call is None and self.function_response is None:
            raise ValueError("a part must have text, functionCall or functionResponse")
        return self


class Content(GeminiPart):
    """What one side says. Without a role it is the user."""

    role: Literal["user", "model", "function", "system", ""] | None = None
    parts: list[Part] = Field(default_factory=list)


def _as_content(value: Any) -> Any:
    return {"parts": [{"text": value}]} if isinstance(value, str) else value


class FunctionDeclaration(GeminiPart):
    """`schema` is the JSON schema of the arguments, whichever way it was given."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any] | None:
        given = self.parameters_json_schema
        return given if given is not None or self.parameters is None else json_schema(self.parameters)


class Tool(BaseModel):
    """Functions of the client's own; `other` names a tool that Google's servers would run."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    function_declarations: list[FunctionDeclaration] = Field(
        default_factory=list, validation_alias=AliasChoices("functionDeclarations", "function_declarations")
    )

    @property
    def other(self) -> list[str]:
        return sorted(self.model_extra or ())


class FunctionCallingConfig(GeminiPart):
    mode: Literal["MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"] = "AUTO"
    allowed_function_names: list[str] | None = None


class ToolConfig(GeminiPart):
    function_calling_config: FunctionCallingConfig | None = None


class ThinkingConfig(GeminiPart):
    include_thoughts: bool | None = None
    thinking_budget: Annotated[Whole, Field(ge=-1)] | None = None
    thinking_level: str | None = None


class GenerationConfig(GeminiPart):
    """Ranges are checked by `SamplingParams` and `GenerationRequest`, in one place for all dialects."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    seed: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_output_tokens: Annotated[Whole, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    candidate_count: Annotated[Whole, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum", ""] | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: Annotated[
        dict[str, Any] | None,
        Field(validation_alias=AliasChoices("responseJsonSchema", "_responseJsonSchema", "response_json_schema")),
    ] = None
    response_modalities: list[str] | None = None
    response_logprobs: bool | None = None
    logprobs: Annotated[Whole, Field(ge=0)] | None = None
    thinking_config: ThinkingConfig | None = None
    speech_config: Any = None
    image_config: Any = None

    def check_names(self) -> None:
        """Raises `NotSupported` for what cannot be left out."""
        for name in ("speech_config", "image_config"):
            if getattr(self, name):
                raise NotSupported(
                    f"{to_camel(name)} is not supported by this server", param=f"generationConfig.{to_camel(name)}"
                )
        others = [name for name in self.response_modalities or () if name.upper() != "TEXT"]
        if others:
            raise NotSupported(
                f"responseModalities may be TEXT alone, got {others[0][:40]!r}",
                param="generationConfig.responseModalities",
            )


class GenerateBody(GeminiPart):
    """The body of generateContent and streamGenerateContent."""

    contents: Annotated[list[Content], Field(min_length=1)]
    system_instruction: Annotated[Content | None, BeforeValidator(_as_content)] = None
    tools: list[Tool] | None = None
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig = Field(default_factory=GenerationConfig)
    cached_content: str | None = None
    priority: Priority = None  # not Google's: it says who goes first here

    def check_names(self) -> None:
        """Raises `NotSupported` for what cannot be left out."""
        if self.cached_content:
            raise NotSupported(
                "cachedContent is not supported: prompts that begin alike are cached by themselves",
                param="cachedContent",
            )
        self.generation_config.check_names()


class CountBody(GeminiPart):
    """The body of countTokens: contents alone, or a whole request."""

    contents: list[Content] | None = None
    generate_content_request: GenerateBody | None = None

    @property
    def request(self) -> GenerateBody:
        """Raises nothing: one of the two is there."""
        return self.generate_content_request or GenerateBody(contents=self.contents or [])

    @model_validator(mode="after")
    def _has_contents(self) -> CountBody:
        if not self.contents and self.generate_content_request is None:
            raise ValueError("contents or generateContentRequest is required")
        return self


class EmbedBody(GeminiPart):
    """One text to embed. Kinds of tasks change nothing here."""

    content: Annotated[Content, BeforeValidator(_as_content)]
    output_dimensionality: Annotated[Whole, Field(ge=1)] | None = None

    @property
    def text(self) -> str:
        return "\n".join(part.text or "" for part in self.content.parts)


class BatchEmbedBody(GeminiPart):
    requests: Annotated[list[EmbedBody], Field(min_length=1, max_length=100)]
