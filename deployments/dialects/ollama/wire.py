"""Bodies of Ollama's requests, validated. Every fault is an `InvalidParameter` (HTTP 400) that names
the field.

Ollama passes over fields that it does not know, and its clients send them: so does this. What would
change the reply and cannot be done is refused by name, unless it is sent empty. Types are strict
(`"1"` is no number); null means absent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from deployments.dialects.ollama.options import Options
from deployments.dialects.ollama.wire_messages import Message, Tool, no_images
from deployments.http.body import Priority, parse_json
from erllama.errors import NotSupported

MAX_EMBEDDING_INPUTS = 2048

LEVELS = ("low", "medium", "high", "max")
"""How hard a model may be told to think."""

_NO_TIME = re.compile(r"[+-]?0*(\.0*)?\s*(ns|us|µs|ms|s|m|h)?")


def _format(value: Any) -> Any:
    """Ollama takes "json" and a schema; "" and null ask for nothing."""
    if value is None or value == "":
        return None
    if value == "json" or isinstance(value, dict):
        return value
    raise ValueError('must be "json" or a JSON schema, an object')


def _think(value: Any) -> Any:
    if value is None or isinstance(value, bool) or value in LEVELS:
        return value
    raise ValueError(f"must be true, false or one of {', '.join(LEVELS)}")


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number of seconds or a duration as text, such as 5m")
    return value


class Wire(BaseModel):
    """Base of a body. `refused` are fields that this server cannot serve, with the reason."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    refused: ClassVar[dict[str, str]] = {}

    model: str | None = None
    keep_alive: Annotated[float | str | None, BeforeValidator(_number)] = None

    def check_refused(self) -> None:
        """Raises `NotSupported` for a field that says something which cannot be done."""
        for name, reason in self.refused.items():
            if (self.model_extra or {}).get(name):
                raise NotSupported(f"{name} is not supported by this server: {reason}", param=name)

    @property
    def unloads(self) -> bool:
        """Whether `keep_alive` says that the model shall go at once."""
        given = self.keep_alive
        return given == 0 or (isinstance(given, str) and given != "" and _NO_TIME.fullmatch(given) is not None)


class GenerationBody(Wire):
    """What chat and generate share. Without `stream` a reply is streamed."""

    stream: bool | None = None
    format: Annotated[str | dict[str, Any] | None, BeforeValidator(_format)] = None
    options: Options = Field(default_factory=Options)
    think: Annotated[bool | str | None, BeforeValidator(_think)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    priority: Priority = None  # not Ollama's: it says who goes first here

    @property
    def streams(self) -> bool:
        return self.stream is not False


class ChatBody(GenerationBody):
    refused = {"_debug_render_only": "it generates and does not render alone"}

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateBody(GenerationBody):
    """`context` are the ids that an earlier reply ended with: this one goes on from there."""

    refused = {
        "template": "the model's own is used; send raw: true with a whole prompt",
        "width": "it makes no images",
        "height": "it makes no images",
        "steps": "it makes no images",
        "_debug_render_only": "it generates and does not render alone",
    }

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    images: Annotated[list[Any] | None, AfterValidator(no_images)] = None


def _texts(value: Any) -> Any:
    """One text or several; an empty one asks for nothing."""
    if isinstance(value, str):
        return (value,) if value else ()
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("must be a string or a list of strings")
    if len(value) > MAX_EMBEDDING_INPUTS:
        raise ValueError(f"has {len(value)} entries, at most {MAX_EMBEDDING_INPUTS}")
    return tuple(value)


class EmbedBody(Wire):
    """Of `/api/embed`."""

    input: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0)] | None = None


class EmbeddingsBody(Wire):
    """Of `/api/embeddings`, the older of the two."""

    prompt: str | None = None


class ShowBody(Wire):
    """`name` is the older name of `model`."""

    name: str | None = None
    verbose: bool | None = None


B = TypeVar("B", bound=Wire)


def parse_body(kind: type[B], raw: bytes) -> B:
    """The validated body. Raises `InvalidParameter` or `NotSupported`."""
    body = parse_json(kind, raw)
    body.check_refused()
    return body
