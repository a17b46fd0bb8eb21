"""What a chat template can express, found out by rendering synthetic messages with it. Pure.

A template is a program that nobody declared anything about: it may drop what it does not know,
refuse it in words of its own, or fail. So each ability is tried once, when the model is loaded, with
words that occur nowhere else: a template can do what makes all of these words appear.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from erllama.chat.messages import RawArguments
from erllama.errors import ErllamaError

Messages = Sequence[Mapping[str, Any]]
RawRender = Callable[[Messages, Sequence[Mapping[str, Any]] | None], str]
"""A template without any adaptation. Raises `ErllamaError`."""

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_SHORT_ID = "a1B2c3D4e"


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What one template does with messages as OpenAI's API has them; see `adapt.py` for what is
    done about the rest.

    Attributes
        content: how text is shown: as a string, or as a list of parts only.
        tools: offered tools appear. `bare_tools`: also those without parameters or descriptions.
            `no_tools` is what stands for no tools: some templates loop over those that are not there.
        calls: how a call shows its arguments: given as an object, as JSON text, or not at all.
        call_content: what `content` must be beside a call for the call to be shown.
        text_and_calls: text beside calls is shown, too. `parallel`: a message may have several.
        short_ids: ids of calls must be nine letters or digits (Mistral).
        results: messages of the role "tool" are shown.
        system: where system messages are shown. `system_after_result`: also behind a tool's
            result. `developer`: messages of this role are shown.
        alternates: two messages of users in a row are refused. `user_after_result`: a user may
            speak behind a tool's result. `user_first`: a conversation must begin with a user.
        reasoning: the field in which a message's reasoning is shown, None for none. `reasoning_and_text`:
            a call may have both beside it.
    """

    content: Literal["text", "parts"] = "text"
    tools: bool = True
    bare_tools: bool = True
    no_tools: Literal["none", "empty"] = "none"
    calls: Literal["object", "text"] | None = "object"
    call_content: Literal["text", "null"] = "text"
    raw_arguments: bool = True
    text_and_calls: bool = True
    parallel: bool = True
    short_ids: bool = False
    results: bool = True
    system: Literal["anywhere", "first"] | None = "anywhere"
    system_after_result: bool = True
    developer: bool = True
    alternates: bool = False
    user_after_result: bool = True
    user_first: bool = False
    reasoning: str | None = None
    reasoning_and_text: bool = True


def _message(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


_USER = _message("user", "xUserOnex")
_USER_2 = _message("user", "xUserTwox")
_REPLY = _message("assistant", "xReplyOnex")
_SYSTEM = _message("system", "xSystemOnex")
_SYSTEM_2 = _message("system", "xSystemTwox")
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "xToolx",
        "description": "xDescriptionx",
        "parameters": {
            "type": "object",
            "properties": {"xKeyx": {"type": "string", "description": "A word."}},
            "required": ["xKeyx"],
        },
    },
}
_TOOLS = (_TOOL,)
_BARE_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "xBareOnex"}},
    {"type": "function", "function": {"name": "xBareTwox", "parameters": {"type": "object", "properties": {"a": {}}}}},
]


@dataclass(frozen=True, slots=True)
class _CallForm:
    """One way to write down a call; which of them a template understands is what is tried."""

    arguments: Literal["object", "text"]
    content: Literal["text", "null"]
    short_ids: bool

    def id(self, number: int) -> str:
        return f"{_SHORT_ID[:-1]}{number}" if self.short_ids else f"call_{number}"

    def calling(self, *values: str, text: str = "", **fields: Any) -> dict[str, Any]:
        """A message that calls the tool with each of `values`."""
        calls = [
            {"id": self.id(n), "type": "function", "function": {"name": "xToolx", "arguments": self._written(value)}}
            for n, value in enumerate(values)
        ]
        return _message("assistant", text or (None if self.content == "null" else ""), tool_calls=calls, **fields)

    def _written(self, value: str) -> Any:
        return {"xKeyx": value} if self.arguments == "object" else json.dumps({"xKeyx": value})

    def result(self, text: str, number: int = 0) -> dict[str, Any]:
        return _message("tool", text, tool_call_id=self.id(number), name="xToolx")


_FORMS = tuple(
    _CallForm(arguments, content, short_ids)
    for short_ids in (False, True)
    for content in ("text", "null")
    for arguments in ("object", "text")
)


def probe_traits(render: RawRender) -> TemplateTraits:
    """Some thirty renderings of a few short messages: milliseconds."""
    return _Probe(render).traits()


class _Probe:
    def __init__(self, render: RawRender) -> None:
        self._render = render
        self._parts = False
        self._none: list[Mapping[str, Any]] | None = None

    def traits(self) -> TemplateTraits:
        self._find_basics()
        form = next((form for form in _FORMS if self._shows_call(form)), None)
        known = form or _CallForm("object", "text", False)
        call, result = known.calling("xValueOnex"), known.result("xResultOnex")
        with_text = known.calling("xValueOnex", text="xTextx")
        results = self._shows("xResultOnex", [_USER, call if form else _REPLY, result])
        loop = [_USER, call, result] if results else [_USER, _REPLY]
        reasoning = self._reasoning(form)
        with_text_too = self._shows("xTextx xValueOnex", [_USER, with_text, result])
        with_all = known.calling("xValueOnex", text="xTextx", **({reasoning: "xThoughtx"} if reasoning else {}))
        return TemplateTraits(
            content="parts" if self._parts else "text",
            tools=self._shows("xToolx", [_USER]),
            bare_tools=all(self._shows(tool["function"]["name"], [_USER], [tool]) for tool in _BARE_TOOLS),
            no_tools="none" if self._none is None else "empty",
            calls=None if form is None else form.arguments,
            call_content="text" if form is None else form.content,
            raw_arguments=form is not None and self._shows_raw(form),
            text_and_calls=with_text_too,
            parallel=self._shows_parallel(known),
            short_ids=form is not None and form.short_ids,
            results=results,
            system=self._system(),
            system_after_result=results and self._shows("xResultOnex xSystemTwox", [_SYSTEM, *loop, _SYSTEM_2]),
            developer=self._shows("xDeveloperx", [_message("developer", "xDeveloperx"), _USER], None),
            alternates=not self._shows("xUserOnex xUserTwox", [_USER, _USER_2], None),
            user_after_result=results and self._shows("xResultOnex xUserTwox", [*loop, _USER_2]),
            user_first=not self._shows("xReplyOnex xUserOnex", [_REPLY, _USER], None),
            reasoning=reasoning,
            reasoning_and_text=not with_text_too or self._shows("xTextx xValueOnex", [_USER, with_all, result]),
        )

    def _find_basics(self) -> None:
        """How a template must be spoken to for it to show a user's message at all."""
        for self._parts, self._none in ((False, None), (True, None), (False, []), (True, [])):
            if self._shows("xUserOnex", [_USER], None):
                return
        self._parts, self._none = False, None

    def _shows(self, words: str, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = _TOOLS) -> bool:
        """Whether all `words` are in what the template makes of `messages`, in this order."""
        if self._parts:
            messages = [in_parts(message) for message in messages]
        try:
            text = self._render(messages, tools or self._none)
        except ErllamaError:
            return False
        return words_in_order(words.split(), text)

    def _shows_call(self, form: _CallForm) -> bool:
        """Whether a call is shown, and its arguments as JSON: what is given as the wrong kind
        comes out quoted as Python or JSON would.
        """
        messages = [_USER, form.calling("xValueOnex"), form.result("xResultOnex")]
        if not self._shows("xValueOnex", messages):
            return False
        return not any(
            self._shows(wrong, messages) for wrong in ("{'xKeyx': 'xValueOnex'", '{\\"xKeyx\\": \\"xValueOnex')
        )

    def _shows_parallel(self, form: _CallForm) -> bool:
        calls, results = (
            form.calling("xValueOnex", "xValueTwox"),
            [form.result("xResultOnex"), form.result("xResultTwox", 1)],
        )
        return self._shows("xValueOnex xValueTwox xResultOnex xResultTwox", [_USER, calls, *results])

    def _shows_raw(self, form: _CallForm) -> bool:
        message = form.calling("xValueOnex")
        message["tool_calls"][0]["function"]["arguments"] = RawArguments('{"xKeyx": "xCutx')
        return self._shows('{"xKeyx": "xCutx', [_USER, message, form.result("xResultOnex")])

    def _system(self) -> Literal["anywhere", "first"] | None:
        # one that writes it beside the user's last message changes the beginning with every turn
        if not self._shows("xSystemOnex xUserOnex xUserTwox", [_SYSTEM, _USER, _REPLY, _USER_2], None):
            return None
        messages = [_SYSTEM, _USER, _REPLY, _SYSTEM_2, _USER_2]
        return "anywhere" if self._shows("xSystemOnex xReplyOnex xSystemTwox xUserTwox", messages, None) else "first"

    def _reasoning(self, form: _CallForm | None) -> str | None:
        """A model's reasoning within a loop of calls is what most templates keep."""
        for name in REASONING_FIELDS:
            thought: dict[str, Any] = {name: "xThoughtx"}
            if self._shows("xThoughtx", [_USER, {**_REPLY, **thought}, _USER_2], None):
                return name
            if form is None:
                continue
            loop = [_USER, form.calling("xValueOnex", **thought), form.result("xResultOnex")]
            if self._shows("xThoughtx xValueOnex", loop):
                return name
        return None


def words_in_order(words: Sequence[str], text: str) -> bool:
    at = 0
    for word in words:
        at = text.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its text as a list of one part, which some templates demand."""
    content = message.get("content")
    return (
        dict(message) if not isinstance(content, str) else {**message, "content": [{"type": "text", "text": content}]}
    )
