"""The chat template of a model: messages in, prompt text out.

A GGUF carries its template as Jinja source (`tokenizer.chat_template`). It is rendered the way
transformers does, because that is what template authors test against: sandboxed, `trim_blocks` and
`lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML,
and `{% generation %}` tags that only mark their content.

The template is foreign code from a model file. The sandbox keeps it from reaching Python objects
and from changing its arguments; `range`, `*`, `**` and `+` are bounded, and so is the length of the
prompt. This stops accidents and cheap attacks. It is no defence against a model file made to
exhaust memory (`~` and filters still build strings): operators choose the models they serve.

    no template, or one that does not compile     NotSupported on `render`; the model still serves
                                                  plain completions
    the template refuses the messages, or fails   InvalidParameter, param "messages", with the
                                                  template's own words
    a message of the wrong shape                  InvalidParameter that names the place, e.g.
                                                  messages[2].content[0].type

A `ChatTemplate` is immutable and may be used from any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from erllama.backend.base import Vocab
from erllama.errors import InvalidParameter, NotSupported

MAX_PROMPT_CHARS = 8 * 2**20  # a context of 1M tokens has about 4M characters
# what all range() calls of one rendering may yield; real templates loop over messages, not numbers
MAX_LOOP_ITEMS = 1_000_000
MAX_POWER_BITS = 4096
NO_TEMPLATE = "this model has no chat template; use plain completions"


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens for training; to serve,
    its content is all that matters.
    """

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of jinja2, with the operators bounded that build something large from something
    small.
    """

    intercepted_binops = frozenset({"*", "**", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if (
                    isinstance(text, str | bytes | list | tuple)
                    and isinstance(times, int)
                    and len(text) * times > MAX_PROMPT_CHARS
                ):
                    raise SecurityError(f"a text repeated to more than {MAX_PROMPT_CHARS} characters")
        elif (
            operator == "**"
            and isinstance(left, int)
            and isinstance(right, int)
            and left.bit_length() * right > MAX_POWER_BITS
        ):
            raise SecurityError(f"a power of more than {MAX_POWER_BITS} bits")
        elif (
            operator == "+"
            and isinstance(left, str)
            and isinstance(right, str)
            and len(left) + len(right) > MAX_PROMPT_CHARS
        ):
            raise SecurityError(f"a text of more than {MAX_PROMPT_CHARS} characters")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One model's template. `bos` and `eos` are the texts of its special tokens, "" where it has
    none.

    `source` None or "" means that the model has no template. `now` is the clock behind
    `strftime_now`. Construction never fails on the template: `problem` then says why chat is not
    available, and `render` raises it.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str, now: Callable[[], datetime] = datetime.now) -> None:
        self.source = source or ""
        self.problem: str | None = None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._template: jinja2.Template | None = None
        if not self.source.strip():
            self.problem = NO_TEMPLATE
            return
        try:
            self._template = _environment(now).from_string(self.source)
        # foreign code: besides TemplateSyntaxError its compilation may overflow the stack or the
        # parser
        except Exception as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            self.problem = f"the chat template of this model does not compile: {error}{line}"

    def __repr__(self) -> str:
        return f"<ChatTemplate {self.problem or f'{len(self.source)} characters'}>"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt for `messages`. `add_generation_prompt` False leaves out the opening of the
        assistant's turn.

        `template_kwargs` are variables of the template, e.g. `enable_thinking`; they may not
        replace its own. Raises `NotSupported` without a usable template, `InvalidParameter` for
        messages that it, or we, refuse.
        """
        if self._template is None:
            raise NotSupported(self.problem or NO_TEMPLATE, param="messages")
        variables = {
            "messages": normalise_messages(messages),
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "range": _BoundedRange(),
            **self._tokens,
        }
        for name in template_kwargs:
            if name in variables:
                raise InvalidParameter(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")
        return _render(self._template, {**template_kwargs, **variables})


class _BoundedRange:
    """`range` with one budget for a whole rendering, so that nested loops are bounded too."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_LOOP_ITEMS

    def __call__(self, *args: int) -> range:
        numbers = range(*args)
        self._left -= max(len(numbers), 1)
        if self._left < 0:
            raise SecurityError(f"more than {MAX_LOOP_ITEMS} loop items from range()")
        return numbers


def _environment(now: Callable[[], datetime]) -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes <, >, & and ' for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    n_chars = 0
    try:
        for piece in template.generate(variables):
            n_chars += len(piece)
            if n_chars > MAX_PROMPT_CHARS:
                raise InvalidParameter(f"the rendered prompt exceeds {MAX_PROMPT_CHARS} characters", param="messages")
            pieces.append(piece)
    except InvalidParameter:
        raise
    except SecurityError as error:
        raise NotSupported(
            f"the chat template of this model does something forbidden: {error}", param="messages"
        ) from error
    except Exception as error:  # foreign code: it may raise anything that Python's operators raise
        detail = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        raise InvalidParameter(f"the chat template refuses these messages: {detail}", param="messages") from error
    return "".join(pieces)


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the one shape that templates expect; the argument is not modified.

    `content` becomes a string (None and absent: ""; text parts joined by newlines, as llama-server
    does). The `arguments` of tool calls become objects. All other keys pass through: tool_call_id,
    name, reasoning_content.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidParameter(f"messages must be a list, got {type(messages).__name__}", param="messages")
    if not messages:
        raise InvalidParameter("messages is empty", param="messages")
    return [_normalise_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalise_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(where, "an object", message)
    if not isinstance(message.get("role"), str):
        raise _wrong(f"{where}.role", "a string", message.get("role"))
    normal = dict(message)
    normal["content"] = _normalise_content(message.get("content"), f"{where}.content")
    if message.get("tool_calls") is None:
        normal.pop("tool_calls", None)  # templates ask `if message.tool_calls`, some `is defined`
        return normal
    calls = message["tool_calls"]
    if not isinstance(calls, list | tuple):
        raise _wrong(f"{where}.tool_calls", "a list", calls)
    normal["tool_calls"] = [_normalise_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return normal


def _normalise_content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _wrong(where, "a string or a list of parts", content)
    texts: list[str] = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong(f"{where}[{i}]", "an object", part)
        if part.get("type") != "text":
            raise InvalidParameter(f'{where}[{i}].type must be "text", got {part.get("type")!r}', param="messages")
        if not isinstance(part.get("text"), str):
            raise _wrong(f"{where}[{i}].text", "a string", part.get("text"))
        texts.append(part["text"])
    return "\n".join(texts)


def _normalise_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise _wrong(f"{where}.function", "an object", function)
    if not isinstance(function.get("name"), str):
        raise _wrong(f"{where}.function.name", "a string", function.get("name"))
    arguments = _normalise_arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _normalise_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """OpenAI sends the arguments as JSON text; templates expect the object, which many print with
    `tojson`.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"{where} is not JSON: {error}", param="messages") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise _wrong(where, "a JSON object", arguments)
    return dict(arguments)


def _wrong(where: str, expected: str, got: Any) -> InvalidParameter:
    return InvalidParameter(f"{where} must be {expected}, got {type(got).__name__}", param="messages")


def tokenize_chat(vocab: Vocab, text: str) -> list[int]:
    """Token ids of a rendered conversation. A template that writes BOS itself does not get a second
    one (llama.cpp's rule).
    """
    add_special = vocab.adds_bos and not (vocab.bos_text and text.startswith(vocab.bos_text))
    return vocab.tokenize(text, add_special=add_special, parse_special=True)
