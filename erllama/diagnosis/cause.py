"""Why tokens of a prompt were computed, from what is known of the two sides. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

from erllama.diagnosis.place import Place
from erllama.diagnosis.record import NOISE_PREFIX, Cause, StoreAnswer

_ALIKE_CHARS = 4  # behind a changed word, for the rest to count as the same
_WORD_CHARS = 80
_NAMED = (
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|mon|tue|wed|thu|fri|sat|sun|january|february|march|april|may|june|july"
    r"|august|september|october|november|december|jan|feb|mar|apr|jun|jul|aug|sep|oct|nov|dec|am|pm"
)
_NUMBER = re.compile(rf"(?i)(?:[\d.,:/+%-]*\d[\d.,:/+%tz-]*|{_NAMED})(?:st|nd|rd|th|ms|s)?")
_ID = re.compile(r"(?i)(?=[\w.:+/=-]*\d)[\w.:+/=-]{8,}|[0-9a-f]{6,}")
_EDGES = " \t\n\"'`()[]{}<>|,;"


@dataclass(frozen=True, slots=True)
class Kept:
    """What can be taken over of a prompt that was seen: nothing of one shorter than `min_tokens` that has
    left the context, and else all but `rounding` tokens, as blocks, slices or checkpoints end. `cuttable`:
    at any token; else at checkpoints alone.
    """

    min_tokens: int = 0
    rounding: int = 0
    cuttable: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one prompt of `n_prompt` tokens, of which `n_cached` were taken over and `n_known` were known;
    what was known has `n_branch` tokens and goes on differently, or `ends` there.

    `similar`: both sides go on mostly alike. `place`, `has_reply`: see `place`; None where nothing
    differs. `rule` would have made both sides equal, "" none. `generated`: see `looks_generated`.
    `kept` says what of a prompt this model keeps, `answer` what the store said (None: it was not asked),
    `unavailable` the tiers that are left alone now.
    """

    n_prompt: int
    n_cached: int
    n_known: int
    n_branch: int = 0
    ends: bool = False
    similar: bool = False
    place: Place | None = None
    has_reply: bool = False
    rule: str = ""
    generated: bool = False
    kept: Kept = Kept()
    answer: StoreAnswer | None = None
    unavailable: tuple[str, ...] = ()


def cause_of(facts: Facts) -> tuple[str, str]:
    """The cause (`noise:<rule>` for that family) and a sentence about it: of whichever tokens were more,
    those that were known and not taken over, or those that were not known.
    """
    n_lost, n_new = facts.n_known - facts.n_cached, facts.n_prompt - facts.n_known
    is_rounding = facts.n_cached > 0 and n_lost <= facts.kept.rounding
    is_between_checkpoints = not facts.kept.cuttable and not facts.ends and n_new > 0
    if n_lost > 1 and not is_rounding and not is_between_checkpoints and n_lost >= n_new:
        return _loss(facts)
    return _divergence(facts, n_new)


def _loss(facts: Facts) -> tuple[Cause, str]:
    answer = facts.answer or StoreAnswer()
    if answer.problem:
        return Cause.STORE_UNAVAILABLE, f"reading it failed: {answer.problem}"
    if answer.n_known - answer.n_readable > facts.kept.rounding:
        return Cause.STORE_UNAVAILABLE, "the tier that has it is left alone after failures"
    if answer.cheaper:
        return Cause.BELOW_THRESHOLD, "computing it was cheaper than reading it"
    if answer.n_readable - facts.n_cached > facts.kept.rounding:
        return Cause.STORE_UNAVAILABLE, "a tier did not give all of it in time"
    if facts.n_branch < facts.kept.min_tokens:
        return Cause.BELOW_THRESHOLD, f"what has fewer than {facts.kept.min_tokens} tokens is not stored"
    if facts.unavailable:
        return Cause.STORE_UNAVAILABLE, f"tiers are left alone after failures: {', '.join(facts.unavailable)}"
    return Cause.EVICTED, "it was computed before, and neither the context nor the store has it any more"


def _divergence(facts: Facts, n_new: int) -> tuple[str, str]:
    if facts.n_known == 0:
        return Cause.FIRST_SEEN, "nothing like it was known"
    if facts.ends or facts.n_known >= facts.n_prompt or facts.place is None:
        return Cause.EXTENDED, "it continues what was known"
    if facts.rule:
        return NOISE_PREFIX + facts.rule, f"the rule {facts.rule!r} would have made both sides equal"
    if facts.generated and (facts.similar or facts.place is not Place.MESSAGE):
        return Cause.DATE_OR_ID, "a time, a number or an id changed, and the text behind it did not"
    if facts.place is Place.OPENING:
        return Cause.TEMPLATE_CHANGED, "what the template writes where a reply begins changed"
    is_mostly_known = facts.place in (Place.SYSTEM, Place.TOOLS) and facts.n_known >= n_new
    if facts.similar or is_mostly_known:
        return _CHANGED[facts.place]
    if facts.has_reply:
        return Cause.EDITED_HISTORY, "the conversation branched behind an earlier reply"
    return Cause.FIRST_SEEN, "another conversation begins the same way"


_CHANGED: dict[Place, tuple[Cause, str]] = {
    Place.TEXT: (Cause.EDITED_HISTORY, "a text in the middle of the prompt changed"),
    Place.HEAD: (Cause.TEMPLATE_CHANGED, "what the template writes before the messages changed"),
    Place.SYSTEM: (Cause.SYSTEM_CHANGED, "the system text changed"),
    Place.TOOLS: (Cause.TOOLS_CHANGED, "the offered tools changed"),
    Place.MESSAGE: (Cause.EDITED_HISTORY, "an earlier message changed"),
    Place.OPENING: (Cause.TEMPLATE_CHANGED, "what the template writes where a reply begins changed"),
}


def n_alike_chars(a: str, b: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def looks_generated(part: str, a: str, b: str) -> bool:
    """Whether behind `part` the two sides have times, numbers or ids in one place, and go on alike."""
    alike = n_alike_chars(a, b)
    part, a, b = part + a[:alike], a[alike:], b[alike:]
    begun = re.split(r"\s", part[-_WORD_CHARS:])[-1]
    (word_a, rest_a), (word_b, rest_b) = _cut_word(a), _cut_word(b)
    for _ in range(4):  # "Friday, November 28" and "Saturday, November 29"
        if not (_generated(begun + word_a) and _generated(begun + word_b)):
            return False
        if rest_a[:_ALIKE_CHARS] == rest_b[:_ALIKE_CHARS]:
            return bool(rest_a)
        (word_a, rest_a), (word_b, rest_b), begun = _cut_word(rest_a[1:]), _cut_word(rest_b[1:]), ""
    return False


def _cut_word(text: str) -> tuple[str, str]:
    found = re.search(r"[\s<|\"'}\])]", text[: _WORD_CHARS + 1])
    at = found.start() if found else min(len(text), _WORD_CHARS)
    return text[:at], text[at:]


def _generated(word: str) -> bool:
    bare = word.strip(_EDGES + ".")
    bare = re.split(r"[\"'=(<>\[{]", bare)[-1]
    return bool(_NUMBER.fullmatch(bare) or _ID.fullmatch(bare))
