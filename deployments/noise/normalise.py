"""Messages and tools without their noise. Pure, and linear in what is searched.

What a rule does with a message depends on that message and on its place from the front, so a
history looks the same in every turn. The one exception is a text that is moved to the end: it leaves
the message that was last a turn before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.noise.report import Report
from deployments.noise.rules import MoveRule, ReplaceRule, Rule, SortToolsRule, TextRule, compiled

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
_JOINT = "\n\n"


@dataclass(frozen=True, slots=True)
class Normalised:
    """`messages` and `tools` without noise, and what was done."""

    messages: list[dict[str, Any]]
    tools: list[Mapping[str, Any]]
    report: Report


def normalise(
    messages: Sequence[Message], tools: Tools, rules: Iterable[Rule], *, late_system: Callable[[], bool]
) -> Normalised:
    """What `rules` make of a conversation, which is not modified. `late_system` tells whether the
    template shows a system message behind the result of a call; asked only where it matters.
    """
    draft = _Draft(messages, tools, late_system)
    for rule in rules:
        if isinstance(rule, SortToolsRule):
            draft.sort_tools(rule)
        elif isinstance(rule, MoveRule):
            draft.move(rule)
        elif isinstance(rule, TextRule):
            draft.rewrite(rule)
    return draft.finished()


class _Draft:
    """A conversation that is being changed."""

    def __init__(self, messages: Sequence[Message], tools: Tools, late_system: Callable[[], bool]) -> None:
        self._messages = [dict(message) for message in messages]
        self._tools = list(tools)
        self._late_system = late_system
        self._done: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._moved: dict[str, list[str]] = {"first_user": [], "last": []}
        self._emptied: list[dict[str, Any]] = []

    def sort_tools(self, rule: SortToolsRule) -> None:
        ordered = sorted(self._tools, key=_tool_name)
        if ordered != self._tools:
            self._done[rule.name] += 1
            self._tools = ordered

    def rewrite(self, rule: TextRule) -> None:
        by = rule.by if isinstance(rule, ReplaceRule) else ""
        for message in self._places(rule):
            text, found = _rewritten(message["content"], rule, by)
            message["content"] = text
            if found:
                self._done[rule.name] += len(found)

    def move(self, rule: MoveRule) -> None:
        has_place = any(message["role"] == "user" for message in self._messages)
        for message in self._places(rule):
            text, found = _rewritten(message["content"], rule, "")
            if not found:
                continue
            if not has_place:
                self._left[rule.name] += len(found)
                continue
            message["content"] = text
            self._emptied += [message] if not text.strip() else []
            self._done[rule.name] += len(found)
            self._moved[rule.to].append("\n".join(filter(None, (rule.label, *(one.strip() for one in found)))))

    def _places(self, rule: TextRule) -> Iterator[dict[str, Any]]:
        """The messages that a rule looks at. The first system message is one that begins the
        conversation.
        """
        if rule.role == "system" and rule.position == "first":
            places = iter(self._messages[:1])
        else:
            places = iter(self._messages)
        mine = (one for one in places if one["role"] == rule.role and isinstance(one.get("content"), str))
        if rule.position == "any":
            yield from mine
        elif (first := next(mine, None)) is not None:
            yield first

    def finished(self) -> Normalised:
        self._leave_out_emptied()
        for to, texts in self._moved.items():
            if texts:
                self._put("\n".join(texts), to)
        return Normalised(self._messages, self._tools, Report(dict(self._done), dict(self._left)))

    def _leave_out_emptied(self) -> None:
        """A message that was nothing but moved text goes, unless it is the user's only one."""
        users = sum(message["role"] == "user" for message in self._messages)
        gone = [one for one in self._emptied if one["role"] != "user" or users > 1]
        self._messages = [one for one in self._messages if not any(one is other for other in gone)]

    def _put(self, text: str, to: str) -> None:
        """Behind the stable prefix. A text that comes last stands in the user's last message, or behind
        the result of a call, where the template shows a system message there.
        """
        users = [message for message in self._messages if message["role"] == "user"]
        if to == "first_user":
            _append(users[0], text)
        elif self._messages[-1]["role"] == "tool" and self._late_system():
            self._messages.append({"role": "system", "content": text})
        else:
            _append(users[-1], text)


def _append(message: dict[str, Any], text: str) -> None:
    said = message.get("content") or ""
    message["content"] = f"{said}{_JOINT}{text}" if said else text


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _rewritten(text: str, rule: TextRule, by: str) -> tuple[str, list[str]]:
    """`text` with `by` in place of what `rule` finds, and that. A match that the end of the searched
    part may have cut short is none.
    """
    window = text[: rule.search_chars]
    cut = len(window) < len(text)
    kept: list[str] = []
    found: list[str] = []
    at = 0
    for match in compiled(rule.pattern).finditer(window):
        start, end = match.span()
        if start == end or (cut and end == len(window)):
            continue
        kept += (window[at:start], by)
        found.append(window[start:end])
        at = end
    return ("".join([*kept, window[at:], text[len(window) :]]), found) if found else (text, found)
