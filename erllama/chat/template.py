"""The chat template of a model: messages in, prompt text out.

A GGUF carries its template as Jinja source (`tokenizer.chat_template`; `variants.py` is about files
with several). It is rendered the way transformers does, because that is what template authors test
against: sandboxed, `trim_blocks` and `lstrip_blocks`, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that escapes no HTML, and `{% generation %}` tags that only mark their
content.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from erllama.chat.adapt import adapt, completed_tool, spelled
from erllama.chat.guard import NO_GUARD, ContentGuard, GuardVocab
from erllama.chat.messages import RawArguments, normalise_messages
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.traits import TemplateTraits, probe_traits
from erllama.errors import InvalidParameter, NotSupported

MAX_PROMPT_CHARS = 8 * 2**20  # a context of 1M tokens has about 4M characters
# what all range() calls of one rendering may yield, and lists may gather; real templates loop over
# messages, not numbers
MAX_LOOP_ITEMS = 1_000_000
MAX_PROBE_ITEMS = 20_000  # the same of a rendering that only tries what the template can do
MAX_POWER_BITS = 4096
_LIST_METHODS = ("append", "pop")
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
    small. Lists may grow and shrink: templates gather what they print later, from copies.
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

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (isinstance(obj, list) and attr in _LIST_METHODS) or super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__name__", "") == "append":
            context.resolve("range").spend(1)  # a loop over the list that it appends to would not end
        return super().call(context, obj, *args, **kwargs)


Ending = Literal["opened", "closed", "continued"]
"""How a prompt ends: where the assistant begins to speak, behind the last message, or inside of it
(an assistant's, which is to be continued).
"""


def today() -> datetime:
    """The beginning of this day."""
    return datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Adapted messages, and the variables that are rendered with them. `mark` stands before what
    would read as a control token in a message, None if nothing does; see `guard.py`. `end` stands
    behind the last message's text if the prompt ends there.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: Mapping[str, Any]
    guard: ContentGuard = NO_GUARD
    mark: str | None = None
    ending: Ending = "opened"
    end: str = ""

    def with_messages(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        return replace(self, messages=[dict(message) for message in messages])

    def tokenize(self, vocab: GuardVocab, text: str, *, begins: bool = True) -> list[int]:
        """Token ids of what `render_conversation` made of this, or of a part that does not begin
        it.
        """
        return self.guard.tokenize(vocab, text, self.mark, begins=begins)


class ChatTemplate:
    """One template of a model. `bos` and `eos` are the texts of its special tokens, "" where it has
    none.

    `source` None or "" means that the model has no template. `now` is the clock behind
    `strftime_now`: the date by default, since a clock in a prompt makes every turn a new prompt.
    Construction never fails on the template: `problem` then says why chat is not
    available, and `render` raises it. `traits` is what the template can express.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos: str,
        eos: str,
        now: Callable[[], datetime] = today,
        tool_format: ToolFormat = HERMES,
        guard: ContentGuard = NO_GUARD,
    ) -> None:
        self.source = source or ""
        self.problem: str | None = None
        self.traits = TemplateTraits()
        self.tool_format = tool_format
        self._guard = guard
        self._now = now
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
            return
        self.traits = probe_traits(self._render_probe)

    def with_tool_format(self, tool_format: ToolFormat) -> ChatTemplate:
        """The same template, which writes calls and tools that it does not know in `tool_format`."""
        other = copy(self)
        other.tool_format = tool_format
        return other

    def of_tenant(self, salt: str) -> ChatTemplate:
        """The same template, which remembers the ids of texts for the requests of one salt."""
        other = copy(self)
        other._guard = replace(self._guard, owner=salt)
        return other

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
        ending: Ending = "opened" if add_generation_prompt else "closed"
        conversation = self.conversation(messages, tools=tools, ending=ending, **template_kwargs)
        text = self.render_conversation(conversation)
        return text if conversation.mark is None else text.replace(conversation.mark, "")

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        ending: Ending = "opened",
        **template_kwargs: Any,
    ) -> Conversation:
        """`messages` in the shape that this template can express. Raises what `render` raises."""
        if self._template is None:
            raise NotSupported(self.problem or NO_TEMPLATE, param="messages")
        given = normalise_messages(messages)
        end = _marked_end(given) if ending == "continued" else ""
        shown = adapt(given, tools, self.traits, self.tool_format)
        write = dict if self.traits.bare_tools else completed_tool
        offered = [write(tool) for tool in tools] if tools else None
        mark = self._guard.mark_for(shown, offered, template_kwargs)
        if mark is None:
            return Conversation(shown, offered, template_kwargs, self._guard, None, ending, end)
        shown, offered, variables = (self._guard.marked(value, mark) for value in (shown, offered, template_kwargs))
        return Conversation(shown, offered, variables, self._guard, mark, ending, end)

    def render_conversation(self, conversation: Conversation) -> str:
        text = self._render(
            [spelled(message, self.traits) for message in conversation.messages],
            conversation.tools or ([] if self.traits.no_tools == "empty" else None),
            conversation.ending == "opened",
            conversation.variables,
        )
        if not conversation.end:
            return text
        begun, found, _ = text.rpartition(conversation.end)
        if not found:
            raise NotSupported(
                "the chat template of this model cannot leave its last message open", param="continue_final_message"
            )
        return begun

    def _render_probe(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self._render(messages, tools, True, {}, max_items=MAX_PROBE_ITEMS)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
        max_items: int = MAX_LOOP_ITEMS,
    ) -> str:
        if self._template is None:
            raise NotSupported(self.problem or NO_TEMPLATE, param="messages")
        variables = {
            "messages": deepcopy(list(messages)),  # a template may append to lists
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "range": _BoundedRange(max_items),
            # what firefunction calls them
            "functions": None if tools is None else _to_json([tool["function"] for tool in tools]),
            "datetime": self._now().strftime("%b %d %Y"),
            **self._tokens,
        }
        for name in template_kwargs:
            if name in variables and name != "documents":
                raise InvalidParameter(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")
        return _render(self._template, {**variables, **template_kwargs})


def _marked_end(messages: list[dict[str, Any]]) -> str:
    """Write a word behind the last message, an assistant's, and tell which. It stands nowhere else
    and is made of letters and digits: templates trim, escape and quote other characters.
    """
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise InvalidParameter(
            "only a last message of the assistant, without tool calls, can be continued", param="continue_final_message"
        )
    n, text = 0, json.dumps(messages, ensure_ascii=False, default=str)
    while f"xEnd{n}x" in text:
        n += 1
    last["content"] += f"xEnd{n}x"
    return f"xEnd{n}x"


class _BoundedRange:
    """`range` with one budget for a whole rendering, so that nested loops are bounded too, and
    those over lists that grow.
    """

    __slots__ = ("_left", "_limit")

    def __init__(self, n_items: int) -> None:
        self._limit = self._left = n_items

    def __call__(self, *args: int) -> range:
        numbers = range(*args)
        self.spend(max(len(numbers), 1))
        return numbers

    def spend(self, n_items: int) -> None:
        self._left -= n_items
        if self._left < 0:
            raise SecurityError(f"more than {self._limit} loop items")


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
    if isinstance(value, RawArguments):
        return str(value)
    if isinstance(value, Iterator):  # `| map(...)` without `| list`
        value = list(value)
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
