"""What a rule says, typed, and the rules of the package. A fault is refused with its place when the
rules are read.

A rule is a function of one message and of where that message stands among those of its role, counted
from the front: so the next turn treats the same message in the same way. A rule for the last
message would not; it cannot be written.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

import re2
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

DialectName = Literal["openai", "anthropic", "responses", "ollama", "gemini"]
MAX_PATTERN_CHARS = 1000
MAX_SEARCH_CHARS = 1_048_576
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # the refusal says it


@cache  # of what a configuration lists; RE2's own cache takes 5 us to look up, for each message
def compiled(pattern: str) -> Any:
    """The pattern as RE2 runs it: in time linear in the text. Raises `ValueError`."""
    try:
        return re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args else ""
        raise ValueError(f"is no regular expression that RE2 knows: {reason}") from None


def _pattern(value: str) -> str:
    if compiled(value).search("") is not None:
        raise ValueError("matches the empty text, so it would match everywhere")
    return value


def _agent(value: str) -> str:
    compiled(value)
    return value


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS), AfterValidator(_pattern)]
AgentPattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS), AfterValidator(_agent)]
RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)]


class _Rule(BaseModel):
    """What all rules say.

    name: lower-case words with hyphens; it stands in the header of answers.
    about: for people.
    opt_in: it does nothing unless `http.noise.opt_in` names it.
    dialects: whose requests it is for; empty: all.
    user_agent: a pattern of the clients that it is for; None: every client.
    action: what the rule does with what it finds: `replace`, `drop`, `move`, `sort_tools` or `keep`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: RuleName
    about: str = ""
    opt_in: bool = False
    dialects: Annotated[tuple[DialectName, ...], Field(strict=False)] = ()
    user_agent: AgentPattern | None = None

    def is_for(self, dialect: str, user_agent: str) -> bool:
        if self.dialects and dialect not in self.dialects:
            return False
        return self.user_agent is None or compiled(self.user_agent).search(user_agent) is not None


class _TextRule(_Rule):
    """A rule that looks for a pattern in messages.

    role: whose messages.
    position: the first one of that role, or any.
    search_chars: characters at the head of a message in which it looks; what does not end within them
        is not found.
    pattern: RE2's; it must not match the empty text.
    """

    role: Literal["system", "user", "assistant", "tool"]
    position: Literal["first", "any"]
    search_chars: Annotated[int, Field(ge=1, le=MAX_SEARCH_CHARS)] = 4096
    pattern: Pattern


class ReplaceRule(_TextRule):
    """What is found becomes another text.

    by: that text.
    """

    action: Literal["replace"]
    by: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)]


class DropRule(_TextRule):
    """What is found is left out."""

    action: Literal["drop"]


class MoveRule(_TextRule):
    """What is found is left out there and stands, behind `label`, further back.

        first_user      at the end of the user's first message: nothing moves from turn to turn, and
                        a change costs what follows the system text and the tools
        last            behind all that was said: a change costs itself, but each turn computes
                        the reply before it again, because that stood behind the moved text

    Only the first message of a role can give text away: what later ones say is history, and belongs
    to its place.

    to: where it goes (`first_user` or `last`).
    label: a text that stands before it there.
    """

    action: Literal["move"]
    position: Literal["first"]
    to: Literal["first_user", "last"]
    label: Annotated[str, Field(max_length=MAX_PATTERN_CHARS)] = ""


class SortToolsRule(_Rule):
    """Tools are shown in the order of their names."""

    action: Literal["sort_tools"]


class KeepRule(_Rule):
    """Documents what is left as it is."""

    action: Literal["keep"]


TextRule = ReplaceRule | DropRule | MoveRule
Rule = Annotated[ReplaceRule | DropRule | MoveRule | SortToolsRule | KeepRule, Field(discriminator="action")]

_RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(tuple[Rule, ...])


def read_rules(text: str) -> tuple[Rule, ...]:
    """The rules in a YAML list. Raises pydantic's `ValidationError`, and `ValueError` for two of one
    name.
    """
    rules = _RULES.validate_python(tuple(yaml.safe_load(text) or ()))
    check_names(rules)
    return rules


def check_names(rules: tuple[Rule, ...]) -> None:
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two rules have the name {twice!r}")


@cache
def packaged_rules() -> tuple[Rule, ...]:
    """The rules of the package, read once."""
    return read_rules(resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8"))
