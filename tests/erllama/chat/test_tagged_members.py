"""MiniMax M3's values: members of objects and lists stand between tags of their own."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import ToolCall, ToolSpec, collect_parts, split_reply
from erllama.chat.tool_formats.tagged_format import MINIMAX_M3
from tests.support.tool_replies import cut, random_reply, run

M3 = MINIMAX_M3.shape.mark


def nested(text):
    """A call of `f`, of whose tags `text` lacks the marks."""
    return re.sub("<(?=/?[a-z])", M3 + "<", f'<tool_call>\n<invoke name="f">{text}</invoke>\n</tool_call>')


NESTED = {
    "type": "object",
    "properties": {
        "spots": {"type": "array", "items": {"$ref": "#/$defs/spot"}, "minItems": 1, "maxItems": 3},
        "filter": {"anyOf": [{"$ref": "#/$defs/spot"}, {"type": "null"}]},
        "any": {},
        "free": {"type": "object"},
        "tree": {"$ref": "#/$defs/tree"},
        "unit": {"enum": ["C", "F", 3]},
    },
    "required": ["spots"],
    "$defs": {
        "spot": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "n": {"type": "integer"}, "item": {"type": "boolean"}},
            "required": ["city"],
        },
        "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
    },
}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<spots><item><city> 3\n</city><n>3</n></item>\n<item><city></city></item></spots>",
         {"spots": [{"city": " 3\n", "n": 3}, {"city": ""}]}),
        ("<spots></spots><filter>\n<item>true</item>\n</filter><free></free>",
         {"spots": [], "filter": {"item": True}, "free": {}}),
        ("<any><item>3</item><item>x</item><item><a>null</a></item></any>", {"any": [3, "x", {"a": None}]}),
        ("<any><a>1</a><b><c></c></b></any>", {"any": {"a": 1, "b": {"c": ""}}}),
        ("<any>]<]mini</any><tree><item></item><item><item></item></item></tree>", {"any": "]<]mini", "tree": [[], [[]]]}),
        ('<spots>[{"city": "x"}]</spots><unit>3</unit>', {"spots": [{"city": "x"}], "unit": 3}),
        ("<spots><item><city>x</spots><unit>C</unit>", {"spots": [{"city": "x"}], "unit": "C"}),
        ("<spots><item><city>x<n>3</n></item></spots>", {"spots": [{"city": "x", "n": 3}]}),
        ("<any>x<unit>F</unit>", {"any": "x", "unit": "F"}),
    ],
)  # fmt: skip
def test_minimax_m3_has_tags_for_members(text, arguments):
    tools, whole = [ToolSpec("f", NESTED)], nested(text)
    (call,) = split_reply(MINIMAX_M3, whole, tools).calls
    assert json.loads(call.arguments_json) == arguments
    assert run(MINIMAX_M3, list(whole), tools) == run(MINIMAX_M3, [whole], tools)


def schema_of(value):
    match value:
        case dict():
            return {"type": "object", "properties": {key: schema_of(one) for key, one in value.items()}}
        case list():
            return {"type": "array", "items": {"anyOf": [schema_of(one) for one in value]} if value else {}}
    return {"type": {str: "string", bool: "boolean", int: "integer", type(None): "null"}[type(value)]}


KEY = st.text(min_size=1, max_size=5).filter(lambda key: not set(key) & set('<>\r\n"') and not key.startswith("/"))
TEXT = st.lists(st.text(max_size=6) | st.sampled_from(["3", " ", "\n", "<", "</", "<item>", M3[:-1], '"']), max_size=4)
TEXT = TEXT.map("".join).filter(lambda text: M3 not in text)
WORD = TEXT.map(lambda text: "x" + text)  # in a list with numbers, a text is one if it does not read as one
MEMBERS = st.recursive(
    WORD | st.integers(-99, 99) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(KEY, MEMBERS, max_size=3), st.lists(st.integers(0, 400), max_size=6))
def test_minimax_m3_reads_the_members_that_it_writes(arguments, cuts):
    tools = [ToolSpec("f", schema_of(arguments))]
    text = MINIMAX_M3.write_calls([ToolCall("f", json.dumps(arguments))])
    parts = run(MINIMAX_M3, cut(text, cuts), tools)
    assert parts == run(MINIMAX_M3, list(text), tools)
    (call,) = collect_parts(parts).calls
    assert json.loads(call.arguments_json) == arguments


def leaves(value):
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if not members else [leaf for one in members for leaf in leaves(one)]


def is_nested_right(arguments):
    spots = [*arguments["spots"], *([arguments["filter"]] if arguments.get("filter") is not None else [])]
    return (
        set(arguments) <= set(NESTED["properties"])
        and 1 <= len(arguments["spots"]) <= 3
        and all(isinstance(spot["city"], str) and type(spot.get("n", 0)) is int for spot in spots)
        and all(isinstance(spot.get("item", True), bool) for spot in spots)
        and isinstance(arguments.get("free", {}), dict)
        and arguments.get("unit", 3) in ("C", "F", 3)
        and all(leaf == [] for leaf in leaves(arguments.get("tree", [])))
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), with_control=st.booleans())
def test_minimax_m3_is_held_to_members(seed, with_control):
    control = MINIMAX_M3.markers if with_control else ()
    tools = [ToolSpec("f", NESTED)]
    hints = ("</city>", "</any>", M3, '"', "}", "]", "</item>", "</tree>")
    text = random_reply(MINIMAX_M3, tools, seed, parallel=True, control=control, hints=hints)
    reply = split_reply(MINIMAX_M3, text, tools)
    assert reply.content == ""
    assert reply.calls
    assert all(is_nested_right(json.loads(call.arguments_json)) for call in reply.calls), text
