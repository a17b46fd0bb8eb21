"""What the tests of all tool formats share: replies in pieces, calls of every kind, and replies
drawn from a format's grammar.
"""

import json
import random
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import CallStart, ToolSpec, collect_parts
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable

END = 256
TABLE = TokenTable([*(bytes([byte]) for byte in range(256)), b"<end>"], special=frozenset({END}), eog=frozenset({END}))
COMPILER = GrammarCompiler(lambda: TABLE)

WEATHER = ToolSpec(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = ToolSpec("get_time", {"type": "object", "properties": {"zone": {"$ref": "#/$defs/zone"}}, "required": ["zone"],
                             "additionalProperties": False, "$defs": {"zone": {"enum": ["UTC", "\"}"]}}})  # fmt: skip
TOOLS = [WEATHER, TIME]


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
    splitter = tool_format.splitter(tools, **kwargs)
    parts = [part for chunk in chunks for part in splitter.push(chunk)]
    return joined(parts + splitter.finish())


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


class PlainLark:
    """A `LarkWriter` for a vocabulary without control tokens."""

    def __init__(self):
        self.parts = []

    def text(self, literal):
        return json.dumps(literal)

    def schema(self, schema):
        name = f"schema{len(self.parts)}"
        self.parts.append((name, Constraint.of_schema(schema, "tools")))
        return name


def drawn_reply(tool_format, seed, *, parallel=True):
    """A reply drawn from the calls that the format's rules admit."""
    write = PlainLark()
    rules = tool_format.calls_rules(TOOLS, write, parallel=parallel)
    matcher = COMPILER.matcher(Constraint(ConstraintKind.LARK, f"start: calls\n{rules}", "tools", tuple(write.parts)))
    draw, reply = random.Random(seed), b""
    while len(reply) < 3000:
        allowed = np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist()
        token = END if END in allowed and draw.random() < 0.5 else draw.choice(allowed)
        if token == END:
            break
        matcher.accept(token)
        reply += TABLE.pieces[token]
    return reply.decode()


def admitted(tool_format, text, *, parallel=True):
    """Whether the rules for calls of `TOOLS` admit the whole text."""
    write = PlainLark()
    rules = tool_format.calls_rules(TOOLS, write, parallel=parallel)
    matcher = COMPILER.matcher(Constraint(ConstraintKind.LARK, f"start: calls\n{rules}", "tools", tuple(write.parts)))
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.allows(END)


def check_calls(calls):
    """Calls that were drawn fit `TOOLS`."""
    assert calls
    for name, arguments in calls:
        if name == "get_weather":
            assert isinstance(arguments["city"], str)
            assert set(arguments) <= {"city", "n"}
        else:
            assert (name, set(arguments)) == ("get_time", {"zone"})
