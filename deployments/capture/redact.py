"""Bodies without what people and models wrote in them. Pure, given a key.

Each word becomes another one that follows from it and from a key of this process: equal texts stay
equal, so prompts share what they shared, and nobody who has the files but not the key can look a
word up. Spaces, line breaks and punctuation stay, and so do the names and schemas of tools: without
them the requests would not be accepted again.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_WORD = re.compile(r"[^\W\d_]+|\d+")
# keys whose texts say how a request is made, not what it says
_KEPT_TEXT = (
    "role type model object name tool_choice id tool_call_id tool_use_id call_id status phase format "
    "effort verbosity detail media_type encoding syntax include truncation service_tier tool_format "
    "grammar regex choice ebnf guided_grammar guided_regex guided_choice keep_alive ttl response_format "
    "reasoning_effort response_mime_type responseMimeType function_call"
)
_KEPT = frozenset(_KEPT_TEXT.split())
_PEOPLE = ("user", "system", "developer", "assistant")  # whose messages may have their names
# below them everything is a JSON schema, where these say what is allowed
_SCHEMAS_TEXT = "parameters input_schema schema json_schema guided_json response_schema responseSchema"
_SCHEMAS = frozenset(_SCHEMAS_TEXT.split())
_SCHEMA_KEPT_TEXT = "type required format pattern enum const $ref $schema name"
_SCHEMA_KEPT = frozenset(_SCHEMA_KEPT_TEXT.split())
_VALUES_TEXT = "input arguments args response"
_VALUES = frozenset(_VALUES_TEXT.split())  # of calls: nothing in them is structure
_WORDS_TEXT = (
    "able acid aged also area army away baby back ball band bank base bath bear beat beer bell belt best "
    "bill bird blow blue boat body bold bone book boom born boss both bowl bulk burn bush busy cake call "
    "calm camp card care case cash cast cell chat chip city club coal coat code cold come cook cool cope "
    "copy core cost crew crop dark data date dawn days deal dear debt deep deny desk dial diet disc disk "
    "does done door dose down draw drew drop drug dual duke dust duty each earn ease east easy edge else "
    "even ever evil exit face fact fail fair fall farm fast fate fear feed feel feet fell felt file fill "
    "film find fine fire firm fish five flat flow food foot ford form fort four free from fuel full fund "
    "gain game gate gave gear gene gift girl give glad goal goes gold golf gone good gray grew grow gulf "
    "hair half hall hand hang hard harm hate have head hear heat held help here hero high hill hire hold "
    "hole holy home hope host hour huge hung hunt hurt idea inch into iron item jack join jump jury just "
    "keen keep kept kick kind king knee knew know lack lady laid lake land lane last late lead left less"
)
_WORDS = _WORDS_TEXT.split()


class Redactor:
    """`key`: at least 16 random bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, str] = {}
        self._short_numbers = _shuffled(key, 1) | _shuffled(key, 2)  # there are too few for different ones to differ

    def body(self, body: Any) -> Any:
        """A parsed body without its texts. Raises `ValueError` for one whose prompt is token ids, which are
        text that cannot be replaced.
        """
        if isinstance(body, dict):
            for name in ("prompt", "input", "tokens"):
                if _holds_ids(body.get(name)):
                    raise ValueError(f"{name} holds token ids")
            return {name: self._field(name, value, top=True) for name, value in body.items()}
        return self._walked(body)

    def text(self, text: str) -> str:
        return _WORD.sub(lambda match: self._word(match.group()), text)

    def _field(self, name: str, value: Any, *, top: bool = False) -> Any:
        if name in _SCHEMAS:
            return self._schema(value)
        if name in _VALUES and not top:
            return self._value(name, value)
        return value if name in _KEPT and _is_plain(value) else self._walked(value)

    def _walked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._walked(item) for item in value]
        if isinstance(value, dict):
            walked = {name: self._field(name, inner) for name, inner in value.items()}
            if value.get("role") in _PEOPLE and isinstance(value.get("name"), str):
                walked["name"] = self.text(value["name"])
            return walked
        return value

    def _schema(self, value: Any) -> Any:
        """Property names and what is allowed stay, descriptions go."""
        if isinstance(value, dict):
            return {
                name: inner if name in _SCHEMA_KEPT and _is_plain(inner) else self._schema(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self._schema(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def _value(self, name: str, value: Any) -> Any:
        """What a call says: all of its texts, also inside of JSON that is a text."""
        if isinstance(value, str) and name == "arguments":
            try:
                return json.dumps(self._value("", json.loads(value)), ensure_ascii=False)
            except ValueError:
                return self.text(value)
        if isinstance(value, dict):
            return {key: self._value("", inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._value("", item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def _word(self, word: str) -> str:
        if word not in self._known:
            if len(self._known) > 1 << 16:
                self._known.clear()
            self._known[word] = self._made(word)
        return self._known[word]

    def _made(self, word: str) -> str:
        digest = hashlib.blake2b(word.encode(errors="replace"), key=self._key).digest()
        if word in self._short_numbers:
            return self._short_numbers[word]
        if word.isdecimal():
            return "".join(str(byte % 10) for byte in (digest * (len(word) // len(digest) + 1))[: len(word)])
        made = _WORDS[int.from_bytes(digest[:4]) % len(_WORDS)]
        return made.capitalize() if word[0].isupper() else made


def _shuffled(key: bytes, n_digits: int) -> dict[str, str]:
    """Each number of so many digits, and another one for it."""
    numbers = [f"{number:0{n_digits}}" for number in range(10**n_digits)]
    order = sorted(numbers, key=lambda number: hashlib.blake2b(number.encode(), key=key).digest())
    return dict(zip(numbers, order, strict=True))


def _is_plain(value: Any) -> bool:
    """A text, or a list of texts and numbers: no structure of its own."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str | int) for one in value))


def _holds_ids(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return any(type(one) is int or (isinstance(one, list) and any(type(id) is int for id in one)) for one in value)
