"""Replies in a tool format: cut anywhere and read, calls of every kind, and replies drawn at random
under the format's rules.
"""

import json
import random
import re
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import CallStart, ToolSpec, collect_parts
from erllama.chat.tool_formats.lark_writer import forced_calls
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable

END = 256
ENOUGH = 60  # characters; from here on the reply is brought to its end
_LONGEST = 4000


def joined(parts):
    """The parts with neighbouring pieces of one kind joined."""
    whole = []
    for part in parts:
        if whole and type(part) is type(whole[-1]) and not isinstance(part, CallStart):
            whole[-1] = type(part)(whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def run(tool_format, chunks, tools=(), **kwargs):
    stream = tool_format.splitter(tools, **kwargs)
    parts = [part for chunk in chunks for part in stream.push(chunk)]
    return joined(parts + stream.finish())


def cut(text, cuts):
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def read(tool_format, text, tools=(), cuts=(), **kwargs):
    """Content, reasoning, and calls with their arguments parsed."""
    reply = collect_parts(run(tool_format, cut(text, cuts), tools, **kwargs))
    return reply.content, reply.reasoning, [(call.name, json.loads(call.arguments_json)) for call in reply.calls]


CUTS = st.lists(st.integers(0, 400), max_size=10)


def calls_with(*texts):
    """Names with arguments of all JSON types, in which `texts` occur, too."""
    json_values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.text(max_size=8)
        | st.sampled_from(['"', "\\", "{", "]", *texts]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    arguments = st.dictionaries(st.text(min_size=1, max_size=5), json_values, max_size=3)
    name = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
    return st.lists(st.tuples(name, arguments), min_size=1, max_size=3)


TOOLS = [
    ToolSpec(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "n": {"type": "integer", "minimum": -5, "maximum": 99},
                "unit": {"enum": ["C", "50% F"]},
                "spot": {"$ref": "#/$defs/spot"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "size": {"enum": [1, "big"]},
            },
            "required": ["city", "n"],
            "additionalProperties": False,
            "$defs": {"spot": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
        },
    ),
    ToolSpec(
        "get_time",
        {
            "type": "object",
            "properties": {"zone": {"$ref": "#/$defs/zone"}},
            "required": ["zone"],
            "additionalProperties": False,
            "$defs": {"zone": {"enum": ["UTC", '"}']}},
        },
    ),
    ToolSpec("now", {"type": "object", "properties": {}, "additionalProperties": False}),
]


def is_right(name, arguments):
    """Whether a call fits `TOOLS`."""
    if name != "get_weather":
        return (name, arguments) in [("now", {}), ("get_time", {"zone": "UTC"}), ("get_time", {"zone": '"}'})]
    return (
        {"city", "n"} <= set(arguments) <= {"city", "n", "unit", "spot", "note", "size"}
        and isinstance(arguments["city"], str)
        and type(arguments["n"]) is int
        and -5 <= arguments["n"] <= 99
        and arguments.get("unit", "C") in ("C", "50% F")
        and all(isinstance(item, bool) for item in arguments.get("spot", []))
        and (arguments.get("note") is None or isinstance(arguments["note"], str))
        and arguments.get("size", 1) in (1, "big")
    )


def random_reply(tool_format, tools, seed, *, parallel=True, control=(), hints=('"', '"}', "}", "]")):
    """What a model that draws at random writes if it has to call. `hints` are texts that it tries
    more often, so that texts come to an end.
    """
    return drawn(forced_calls(tool_format, tools, control_ids(control), parallel=parallel), seed, control, hints)


def admits_calls(tool_format, text, *, parallel=True):
    """Whether the whole text may be calls of `TOOLS`."""
    return admits(forced_calls(tool_format, TOOLS, {}, parallel=parallel), text)


def compiler_for(control=()):
    """A compiler for single bytes and control tokens, which have the ids after `END`."""
    table = TokenTable(
        [*(bytes([byte]) for byte in range(256)), b"<end>", *(text.encode() for text in control)],
        special=frozenset(range(END, END + 1 + len(control))),
        eog=frozenset({END}),
    )
    return GrammarCompiler(lambda: table)


def control_ids(control):
    return {text: END + 1 + number for number, text in enumerate(control)}


def tokens_of(text, control=()):
    """The bytes of a text, in which those of `control` are tokens."""
    ids = control_ids(control)
    pattern = "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or r"(?!)"
    pieces = re.split(f"({pattern})", text)
    return [token for piece in pieces for token in ([ids[piece]] if piece in ids else piece.encode())]


def admits(constraint, text, control=()):
    """Whether the constraint admits the whole text."""
    matcher = compiler_for(control).matcher(constraint)
    for token in tokens_of(text, control):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.allows(END)


def drawn(constraint, seed, control=(), hints=(), begun=()):
    """What a model that draws at random writes under a constraint, with the tokens that it has
    `begun` with.
    """
    pieces = [*(bytes([byte]) for byte in range(256)), b"<end>", *(text.encode() for text in control)]
    matcher = compiler_for(control).matcher(constraint)
    for token in begun:
        matcher.accept(token)
    return b"".join([*map(pieces.__getitem__, begun), _drawn(matcher, pieces, random.Random(seed), hints)]).decode(
        errors="replace"
    )


def _drawn(matcher, pieces, draw, hints):
    reply, plan = [], b""
    while len(reply) < _LONGEST:
        allowed = np.flatnonzero(matcher.allowed(len(pieces))).tolist()
        if END in allowed and (len(reply) > ENOUGH or draw.random() < 0.5 or len(allowed) == 1):
            return b"".join(pieces[token] for token in reply)
        allowed = [token for token in allowed if token != END]
        controls = [token for token in allowed if token > END]
        if not plan and hints and draw.random() < (0.6 if len(reply) > ENOUGH else 0.2):
            plan = draw.choice(hints).encode()
        if controls and (len(controls) == len(allowed) or draw.random() < 0.3):
            token = draw.choice(controls)
        elif plan and plan[0] in allowed:
            token, plan = plan[0], plan[1:]
        else:
            plan = b""
            token = draw.choice(allowed)
        matcher.accept(token)
        reply.append(token)
    raise AssertionError(b"".join(pieces[token] for token in reply))
