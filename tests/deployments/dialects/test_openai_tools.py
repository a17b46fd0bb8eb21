"""What replies with tool calls must follow, held to it by the real matcher."""

import pytest

from deployments.dialects.openai.tools import calls_schema, chat_constraint, check_tools, offered_tools
from deployments.dialects.openai.wire import ChatBody
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable

MESSAGES = [{"role": "user", "content": "x"}]


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


CITY = tool("get_weather", properties={"city": {"type": "string"}}, required=["city"])
TREE = tool(
    "plant",
    properties={"tree": {"$ref": "#/$defs/node"}},
    **{
        "$defs": {
            "node": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
        }
    },
)
ROOTED = tool("nest", properties={"inner": {"$ref": "#"}})
BARE = {"type": "function", "function": {"name": "now"}}


def body_of(**fields):
    return ChatBody.model_validate({"messages": MESSAGES, **fields})


def test_the_schema_of_a_call_moves_the_references_of_each_tool():
    schema = calls_schema(body_of(tools=[CITY, TREE, ROOTED]).tools)
    assert [variant["properties"]["name"]["const"] for variant in schema["anyOf"]] == ["get_weather", "plant", "nest"]
    tree = schema["$defs"]["tool1"]
    assert tree["properties"]["tree"] == {"$ref": "#/$defs/tool1/$defs/node"}
    assert tree["$defs"]["node"]["properties"]["kids"]["items"] == {"$ref": "#/$defs/tool1/$defs/node"}
    assert schema["$defs"]["tool2"]["properties"]["inner"] == {"$ref": "#/$defs/tool2"}


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def accepts(constraint, text):
    matcher = GrammarCompiler(AnyTable).matcher(constraint)
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.allows(256)


PLANT = call("plant", '{"tree": {"kids": [{}, {"kids": []}]}}')
OTHERS = (call("get_weather", '{"city": "Bonn"}'), call("nest", '{"inner": {"inner": {}}}'), call("now", "{}"))


@pytest.mark.parametrize("parallel", [None, False])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "plant"}}])
def test_a_forced_call_is_all_that_may_be_said(choice, parallel):
    body = body_of(tools=[CITY, TREE, ROOTED, BARE], tool_choice=choice, parallel_tool_calls=parallel)
    check_tools(body)
    constraint = chat_constraint(body, None)
    assert accepts(constraint, PLANT)
    assert [accepts(constraint, other) for other in OTHERS] == [choice == "required"] * 3
    assert accepts(constraint, f"{PLANT}\n{PLANT}") is (choice == "required" and parallel is None)
    for wrong in (
        "",
        "Hello",
        PLANT + "\n",
        call("plant", '{"tree": 3}'),
        call("plant", '{"city": "Bonn"}'),
        call("nobody", "{}"),
    ):
        assert not accepts(constraint, wrong)


@pytest.mark.parametrize(
    ("reply", "good", "bad"),
    [
        (Constraint.of_schema(JSON_OBJECT, "response_format"), '{"a": 1}', "[]"),
        (
            Constraint.of_schema({"properties": {"root": {"enum": ["root ::= x"]}}}, "response_format"),
            '{"root":"root ::= x"}',
            '{"a":1}',
        ),
        (Constraint(ConstraintKind.GBNF, 'root ::= call\ncall ::= "(" call ")" | "start"'), "((start))", "((start)"),
    ],
)
def test_a_constrained_reply_leaves_room_for_calls(reply, good, bad):
    constraint = chat_constraint(body_of(tools=[CITY, TREE]), reply)
    assert accepts(constraint, good)
    assert accepts(constraint, f"{PLANT}\n{OTHERS[0]}")
    assert not accepts(constraint, bad)
    assert not accepts(constraint, good + PLANT)


def test_free_replies_have_no_constraint():
    reply = Constraint(ConstraintKind.GBNF, "root ::= [a]")
    assert chat_constraint(body_of(tools=[CITY]), None) is None
    assert chat_constraint(body_of(), reply) is reply
    assert chat_constraint(body_of(tools=[CITY], tool_choice="none"), reply) is reply


@pytest.mark.parametrize("tool_choice", ["required", "auto"])
def test_a_schema_that_cannot_be_enforced_names_the_tools(tool_choice):
    body = body_of(tools=[tool("f", properties={"a": {"not": {}}})], tool_choice=tool_choice)
    constraint = chat_constraint(
        body, None if tool_choice == "required" else Constraint.of_schema(JSON_OBJECT, "response_format")
    )
    with pytest.raises(InvalidParameter) as caught:
        GrammarCompiler(AnyTable).check(constraint)
    assert caught.value.param == "tools"


def test_tools_are_shown_in_one_order_whatever_the_clients():
    shuffled = {
        "function": {"strict": True, "parameters": {"b": 1, "a": 2}, "description": "d", "name": "f"},
        "type": "function",
        "x": 1,
    }
    [shown] = offered_tools(body_of(tools=[shuffled]))
    assert list(shown) == ["type", "function"]
    assert list(shown["function"]) == ["name", "description", "parameters"]
    assert list(shown["function"]["parameters"]) == ["b", "a"]
