"""How requests ask for replies of a certain form: OpenAI's `response_format`, and the fields of
vLLM, SGLang and llama.cpp's server.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ClosedPart(BaseModel):
    """A part of a body that has no other fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _schema(value: Any) -> Any:
    """A schema, which may be sent as its JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON schema or its text") from None


def _text_off(value: Any) -> Any:
    return None if value == "" else value


SchemaField = Annotated[dict[str, Any] | None, BeforeValidator(_schema)]
GrammarField = Annotated[str | None, BeforeValidator(_text_off)]
ChoiceField = Annotated[list[str], Field(min_length=1, max_length=10_000)] | None


class JsonSchema(ClosedPart):
    """With `strict` false what cannot be enforced is left to the model; all else is enforced all the
    same: a grammar costs little, and the reply then parses.
    """

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(ClosedPart):
    """The types `regex` and `grammar` are those of other hosts of open models."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    object_schema: dict[str, Any] | None = Field(default=None, alias="schema")  # llama.cpp: json_object with a schema
    pattern: str | None = None
    grammar: str | None = None


class StructuredOutputs(ClosedPart):
    """vLLM's. One of the fields says what is wanted; its other ones tune vLLM."""

    json_form: SchemaField = Field(default=None, alias="json")
    regex: GrammarField = None
    choice: ChoiceField = None
    grammar: GrammarField = None
    json_object: bool | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
