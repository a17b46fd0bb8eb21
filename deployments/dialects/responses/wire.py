"""Bodies of the Responses API, validated. Every fault is an `InvalidParameter` (HTTP 400) whose
`param` is the path of the field.

Fields that nobody knows are accepted: clients send new ones with every version. What would change
the reply and cannot be done is refused by name. Types are strict; null means absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deployments.dialects.responses.wire_tools import ToolChoice, read_choice
from deployments.http.body import Priority, StopField, parse_json
from erllama.errors import NotSupported

_REFUSED = {
    "conversation": "conversations are not stored, so send the whole conversation as input",
    "prompt": "stored prompts do not exist here, so send instructions and input",
}


class Open(BaseModel):
    """A part of a body whose unknown fields are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


def _input(value: Any) -> Any:
    if value is not None and not isinstance(value, str | list):
        raise ValueError("must be a string or a list of items")
    return value


class Reasoning(Open):
    """`summary` asks for a summary of what the model thought; what it thought is then given as
    that.
    """

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # the older name of `summary`


class TextFormat(Open):
    """With `strict` false what cannot be enforced is left to the model."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Text(Open):
    format: TextFormat | None = None
    verbosity: str | None = None


class PromptBody(Open):
    """What makes the prompt: the body of `/v1/responses/input_tokens`, and a part of the other."""

    model: str | None = None
    input: Annotated[str | list[Any] | None, BeforeValidator(_input)] = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[str | ToolChoice | None, BeforeValidator(read_choice)] = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None

    @property
    def referred_ids(self) -> list[str]:
        """The ids of the items that the input only refers to."""
        items = self.input if isinstance(self.input, list) else []
        kinds = [item for item in items if isinstance(item, dict) and item.get("type") == "item_reference"]
        return [item["id"] for item in kinds if isinstance(item.get("id"), str)]

    def check_refused(self) -> None:
        """Raises `NotSupported`, which names the field."""
        for name, reason in _REFUSED.items():
            if getattr(self, name) not in (None, False, ""):
                raise NotSupported(f"{name} is not supported: {reason}", param=name)

    @property
    def effort(self) -> str | None:
        return self.reasoning.effort if self.reasoning else None

    @property
    def summary(self) -> str | None:
        """The kind of summary that is asked for."""
        return (self.reasoning.summary or self.reasoning.generate_summary) if self.reasoning else None

    @property
    def format(self) -> TextFormat | None:
        """The form of the reply, None for free text."""
        wanted = self.text.format if self.text else None
        return None if wanted is None or wanted.type == "text" else wanted


class ResponseBody(PromptBody):
    """`store`: the response is kept, which is the default. `metadata` and such are accepted and, where
    a response shows them, shown. `seed` and what stands around it are not OpenAI's, but of all
    servers of open models.
    """

    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: StopField = ()
    priority: Priority = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @property
    def logprobs(self) -> int | None:
        """How many alternatives per token, None for no log probabilities."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return self.top_logprobs or 0 if asked or self.top_logprobs else None

    @property
    def seals_reasoning(self) -> bool:
        """Whether reasoning items carry what clients without a store send back."""
        return "reasoning.encrypted_content" in (self.include or ())


def parse_prompt(raw: bytes) -> PromptBody:
    """The validated body. Raises `InvalidParameter` or `NotSupported`."""
    body = parse_json(PromptBody, raw)
    body.check_refused()
    return body


def parse_response(raw: bytes) -> ResponseBody:
    """The validated body. Raises `InvalidParameter` or `NotSupported`."""
    body = parse_json(ResponseBody, raw)
    body.check_refused()
    return body
