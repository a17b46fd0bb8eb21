"""In which part of a prompt a position lies, told from the text that chat templates write around
messages. Pure.

The markers of the common families are known here; of a template that has none of them nothing is
told, and a prompt counts as one text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_ROLES = "system|developer|user|human|assistant|model|chatbot|bot|tool|tools|ipython|observation|function|environment"
_OPENERS = (
    r"<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<\|start_of_role\|>|<start_of_turn>|<\|turn>|<\|start\|>"
    r"|<\|START_OF_TURN_TOKEN\|><\||<\||<\uff5c"
)
_MARKER = re.compile(
    rf"(?i)(?:{_OPENERS})\s*({_ROLES})(?:_token)?(?![a-z])"
    r"(?:<\|end_header_id\|>|<\|header_end\|>|<\|end_of_role\|>|<\|message\|>|\|>|\uff5c>)?[ \n]*"
    r"|\[(/?INST|SYSTEM_PROMPT|/?AVAILABLE_TOOLS|TOOL_RESULTS)\][ \n]*"
)
_LINE = re.compile(r"(?m)^(?:### )?(System|Instruction|User|Human|Assistant|Response)(?i:) ?:[ \n]*", re.IGNORECASE)
_NAMES = {
    "developer": "system", "system_prompt": "system", "human": "user", "inst": "user", "instruction": "user",
    "/inst": "assistant", "model": "assistant", "chatbot": "assistant", "bot": "assistant", "response": "assistant",
    "available_tools": "tools", "/available_tools": "user", "tool_results": "tool", "ipython": "tool",
    "observation": "tool", "function": "tool", "environment": "tool",
}  # fmt: skip
_TOOLS_BEGIN = ("<tools>", '"type": "function"', '"type":"function"', "namespace functions {", "<|tool>")
_TOOLS_END = ("</tools>", "} // namespace functions", "<tool|>")
_CONTROL = re.compile(r"<[^<>\s]{1,40}>")  # a control token by its name
_HEADER_CHARS = 60  # no marker is longer
_INTRODUCTION_CHARS = 800  # what a template says before it lists the tools


class Place(StrEnum):
    """`text`: there are no messages. `head`: before the first one. `opening`: where a reply begins, and a
    side has control tokens there, such as those of reasoning.
    """

    TEXT = "text"
    HEAD = "head"
    SYSTEM = "system"
    TOOLS = "tools"
    MESSAGE = "message"
    OPENING = "opening"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a position lies, the text before it in the same part, and whether it lies in a reply or behind
    one: then the conversation is known, not only how it begins.
    """

    place: Place
    part: str
    has_reply: bool


@dataclass(frozen=True, slots=True)
class _Role:
    name: str
    start: int
    end: int


def find_place(common: str, a: str, b: str) -> Placed:
    """Of the point where two texts that begin with `common` go on as `a`, a prompt, and as `b`."""
    pattern = _MARKER if _MARKER.search(common + a[:_HEADER_CHARS]) else _LINE
    roles, cut = list(_roles(common, pattern)), len(common)
    split = {role.name for side in (a, b) if (role := _split_role(common, side, pattern)) is not None}
    has_reply = any(role.name == "assistant" for role in roles[:-1])
    last = roles[-1] if roles else None
    if split:  # it lies inside of a marker: messages came, went, or have another role
        place = Place.SYSTEM if "system" in split else Place.TOOLS if "tools" in split else Place.MESSAGE
        return Placed(place, "", has_reply or (last is not None and last.name == "assistant"))
    if last is None:
        return Placed(_place_before_messages(common + a, common + b, pattern), common, False)
    place = _place_in(last.name, common[last.end :], a, b)
    in_reply = last.name == "assistant" and place is Place.MESSAGE  # what it answers was known
    return Placed(place, common[last.end : cut], has_reply or in_reply)


def _place_before_messages(a: str, b: str, pattern: re.Pattern[str]) -> Place:
    """Some templates write the system text there, without a marker of its own."""
    heads = [text[: found.start()] for text in (a, b) if (found := pattern.search(text)) is not None]
    if not heads:
        return Place.TEXT
    return Place.SYSTEM if any(re.search(r"\w", _CONTROL.sub("", head)) for head in heads) else Place.HEAD


def _place_in(role: str, part: str, a: str, b: str) -> Place:
    if role == "tools" or (role in ("system", "user") and _in_tools(part, a, b)):
        return Place.TOOLS
    if role == "system" or part.rfind("<<SYS>>") > part.rfind("<</SYS>>"):
        return Place.SYSTEM
    opens = role == "assistant" and not part.strip() and any(side.lstrip()[:1] in ("", "<", "[") for side in (a, b))
    return Place.OPENING if opens else Place.MESSAGE


def _in_tools(part: str, a: str, b: str) -> bool:
    """Whether tools are listed there, or are listed from there on by one side alone."""
    if max(map(part.rfind, _TOOLS_BEGIN)) > max(map(part.rfind, _TOOLS_END)):
        return True
    lists = [any(mark in side[:_INTRODUCTION_CHARS] for mark in _TOOLS_BEGIN) for side in (a, b)]
    return lists[0] != lists[1]


def _roles(text: str, pattern: re.Pattern[str]) -> Iterator[_Role]:
    for match in pattern.finditer(text):
        name = next(group for group in match.groups() if group).lower()
        yield _Role(_NAMES.get(name, name), match.start(), match.end())


def _split_role(common: str, side: str, pattern: re.Pattern[str]) -> _Role | None:
    """The marker in which `common` ends and `side` goes on, up to the end of its role's name."""
    near = common[-_HEADER_CHARS:]
    for match in pattern.finditer(near + side[:_HEADER_CHARS]):
        group = 1 if match.group(1) else 2 if match.re.groups > 1 else 1
        if match.start() < len(near) < match.end(group):
            name = match.group(group).lower()
            return _Role(_NAMES.get(name, name), match.start(), match.end())
    return None
