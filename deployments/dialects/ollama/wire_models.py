"""Bodies of Ollama's routes for models: pull, create, copy, delete, push."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from deployments.dialects.ollama.options import NEUTRAL, Options
from deployments.dialects.ollama.wire import Wire
from deployments.http.body import parse_value
from erllama.chat.template import ChatTemplate
from erllama.errors import InvalidParameter
from erllama.request import SamplingParams

_LINE = re.compile(r"^\s*([A-Za-z]+)\s+(.*)$")
_NUMBERS = (int, float)
_GO = re.compile(r"\{\{-?\s*[.$]")


class NamedBody(Wire):
    """`name` is the older name of `model`."""

    name: str | None = None
    stream: bool | None = None

    @property
    def named(self) -> str:
        """Raises `InvalidParameter` without one."""
        return _required(self.model or self.name, "model")


class PullBody(NamedBody):
    """`insecure` is passed over: what a source may be is the server's configuration."""

    insecure: bool | None = None


class DeleteBody(NamedBody):
    pass


class CopyBody(Wire):
    source: str | None = None
    destination: str | None = None

    @property
    def pair(self) -> tuple[str, str]:
        return _required(self.source, "source"), _required(self.destination, "destination")


def _jinja(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value or None
    if _GO.search(value):
        raise ValueError("is a template of Go; chat templates are Jinja here")
    if "{{" not in value and "{%" not in value:
        raise ValueError("must be a chat template in Jinja, and has no Jinja in it")
    problem = ChatTemplate(value, bos="", eos="").problem
    if problem is not None:
        raise ValueError(f"is no chat template in Jinja: {problem}")
    return value


class CreateBody(NamedBody):
    """`modelfile` is how older clients say the rest, as text."""

    refused: ClassVar[dict[str, str]] = {
        "files": "models come from a pull or from another model (from)",
        "adapters": "an adapter comes with the model that is pulled",
        "messages": "a model has a system text, and no messages",
        "license": "a license comes with the model that is pulled",
        "quantize": "it serves files as they are",
        "quantization": "it serves files as they are",
        "path": "send modelfile or from",
    }

    from_: Annotated[str | None, Field(alias="from")] = None
    template: Annotated[str | None, BeforeValidator(_jinja)] = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    modelfile: str | None = None

    @property
    def base(self) -> str:
        return _required(self.from_, "from")

    def check_parameters(self) -> None:
        """Raises `InvalidParameter` for a value that no server could take: a wrong type, or out of range.
        What only this server cannot do is passed over when the model is loaded.
        """
        given = {name: value for name, value in (self.parameters or {}).items() if name not in NEUTRAL}
        options = parse_value(Options, given, "parameters")
        try:
            options.sampling(SamplingParams())
        except InvalidParameter as error:
            name = (error.param or "").replace("options.", "parameters.", 1)
            raise InvalidParameter(error.message.replace("options.", "parameters.", 1), param=name) from None
        n_ctx = given.get("num_ctx")
        if n_ctx is not None and (type(n_ctx) is not int or n_ctx < 1):
            raise InvalidParameter(
                f"parameters.num_ctx must be a whole number of at least 1, got {n_ctx!r:.60}",
                param="parameters.num_ctx",
            )


def created(body: CreateBody) -> CreateBody:
    """The body with what its modelfile says. Raises `InvalidParameter`."""
    if body.modelfile is None:
        return body
    given: dict[str, Any] = {"parameters": dict(body.parameters or {})}
    for instruction, text in _instructions(body.modelfile):
        match instruction:
            case "FROM":
                given["from"] = text
            case "SYSTEM" | "TEMPLATE":
                given[instruction.lower()] = text
            case "PARAMETER":
                name, _, value = text.partition(" ")
                _add(given["parameters"], name, _value(value.strip()))
            case _:
                raise InvalidParameter(f"modelfile: {instruction} is not supported by this server", param="modelfile")
    known = {name: value for name, value in body.model_dump(by_alias=True).items() if value is not None}
    return parse_value(CreateBody, {**known, **given, "modelfile": None}, "modelfile")


def _instructions(modelfile: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    lines = iter(modelfile.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise InvalidParameter(f"modelfile: {line[:80]!r} is no instruction", param="modelfile")
        text = match[2].strip()
        if text.startswith('"""'):
            text = text[3:]
            while not text.endswith('"""'):
                following = next(lines, None)
                if following is None:
                    raise InvalidParameter('modelfile: a text that begins with """ has no end', param="modelfile")
                text += "\n" + following
            text = text[:-3]
        found.append((match[1].upper(), text.strip('"') if len(text) > 1 and text[0] == text[-1] == '"' else text))
    return found


def _add(parameters: dict[str, Any], name: str, value: Any) -> None:
    """`stop` may come several times."""
    if name == "stop":
        parameters[name] = [*parameters.get(name, []), str(value)]
    else:
        parameters[name] = value


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (str, bool, *_NUMBERS)) else text


def _required(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidParameter(f"you must provide {name}, a text that is not empty", param=name)
    return value
