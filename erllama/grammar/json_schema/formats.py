"""The formats of JSON Schema and OpenAPI: what a text or a number of a format looks like.

Regular expressions are written without anchors, for the whole text; they may be narrower than
their standard, so that every validator takes what fits them. Sources: RFC 3339 (dates without leap
seconds, which validators refuse), RFC 3986, RFC 6570, RFC 6901, OpenAPI's registry of formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # 0001 to 9999
_LEAP_YEAR = (
    r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"  # without the year 0000
)
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOUR = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR})"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_URI_CHARS = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_REFERENCE = (
    rf"(?:/?(?:{_URI_CHARS}+(?:/(?:{_URI_CHARS}|:)*)*)?)"
    rf"(?:\?(?:{_URI_CHARS}|[:/?])*)?(?:#(?:{_URI_CHARS}|[:/?])*)?"
)
_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+(?:\.(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+)*(?:\*|:[1-9][0-9]{0,3})?"
_TEMPLATE = rf"(?:[A-Za-z0-9._~:/?#@!$&()*+,;=\[\]-]|%[0-9A-Fa-f]{{2}}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_DIGITS = r"-?(?:0|[1-9][0-9]{0,17})"

TEXTS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]?)(?:#|{_POINTER})",
    "uri-reference": _REFERENCE,
    "iri-reference": _REFERENCE,
    "uri-template": _TEMPLATE,
    "byte": _BASE64,
    "base64": _BASE64,
    "int32": r"-?(?:0|[1-9][0-9]{0,8})",
    "int64": _DIGITS,
    "uint32": r"(?:0|[1-9][0-9]{0,8})",
    "uint64": r"(?:0|[1-9][0-9]{0,17})",
}
"""Regular expressions of the formats that llguidance lacks or takes too widely; numbers in texts as
protocol buffers write them.
"""

NUMBERS: Mapping[str, Mapping[str, int]] = {
    "int8": {"minimum": -(2**7), "maximum": 2**7 - 1},
    "uint8": {"minimum": 0, "maximum": 2**8 - 1},
    "int16": {"minimum": -(2**15), "maximum": 2**15 - 1},
    "uint16": {"minimum": 0, "maximum": 2**16 - 1},
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "uint32": {"minimum": 0, "maximum": 2**32 - 1},
    "int64": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "uint64": {"minimum": 0, "maximum": 2**64 - 1},
}
"""The ranges of numbers of a format."""

SAME_AS: Mapping[str, str] = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "url": "uri"}
"""Formats whose narrower relative llguidance has."""

KNOWN = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Formats that llguidance enforces itself."""

ANNOTATIONS = frozenset({"float", "double", "decimal", "password", "binary", "unknown"})
"""Formats that say nothing of how a value is written."""


def format_keywords(name: Any) -> dict[str, Any] | None:
    """What a value of the format `name` must fit, in other keywords; None for an unknown format."""
    if not isinstance(name, str):
        return None
    name = SAME_AS.get(name, name)
    if name in KNOWN:
        return {"format": name}
    text = {"pattern": f"^(?:{TEXTS[name]})$"} if name in TEXTS else {}
    numbers = NUMBERS.get(name, {})
    return {**text, **numbers} if text or numbers or name in ANNOTATIONS else None
