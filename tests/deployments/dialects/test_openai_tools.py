"""The grammar of forced tool calls, made with the real compiler and checked by the real checker."""

import pytest

from deployments.dialects.openai.tools import calls_schema, chat_grammar, check_tools, offered_tools, prefixed
from deployments.dialects.openai.wire import ChatBody
from erllama.errors import InvalidParameter
from erllama.grammar.gbnf import JSON_OBJECT_GBNF, check_gbnf
from erllama.grammar.json_schema import schema_to_gbnf

MESSAGES = [{"role": "user", "content": "x"}]


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


CITY = tool("get_weather", properties={"city": {"type": "string"}}, required=["city"])
TREE = tool(
    "plant",
    properties={"tree": {"$ref": "#/$defs/node"}},
    **{"$defs": {"node": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}},
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


@pytest.mark.parametrize("parallel", [None, False])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "plant"}}])
def test_a_forced_call_compiles_to_a_grammar_that_llama_cpp_may_see(choice, parallel):
    body = body_of(tools=[CITY, TREE, ROOTED, BARE], tool_choice=choice, parallel_tool_calls=parallel)
    check_tools(body)
    gbnf = chat_grammar(body, None, schema_to_gbnf)
    check_gbnf(gbnf)
    assert '"<tool_call>\\n"' in gbnf
    assert ("get_weather" in gbnf) is (choice == "required")
    assert (")*\n" in gbnf) is (choice == "required" and parallel is None)


@pytest.mark.parametrize("reply", [JSON_OBJECT_GBNF, schema_to_gbnf({"type": "object", "properties": {"root": {"enum": ["root ::= x"]}}})])
def test_a_response_format_leaves_room_for_calls(reply):
    body = body_of(tools=[CITY, TREE], response_format={"type": "json_object"})
    gbnf = chat_grammar(body, reply, schema_to_gbnf)
    check_gbnf(gbnf)
    assert gbnf.endswith("root ::= calls | reply-root\n")


def test_free_replies_have_no_grammar():
    assert chat_grammar(body_of(tools=[CITY]), None, schema_to_gbnf) is None
    assert chat_grammar(body_of(), 'root ::= "x"', schema_to_gbnf) == 'root ::= "x"'
    assert chat_grammar(body_of(tools=[CITY], tool_choice="none"), "root ::= [a]", schema_to_gbnf) == "root ::= [a]"


def test_a_schema_that_cannot_be_enforced_names_the_tools():
    body = body_of(tools=[tool("f", properties={"a": {"not": {}}})], tool_choice="required")
    with pytest.raises(InvalidParameter) as caught:
        chat_grammar(body, None, schema_to_gbnf)
    assert caught.value.param == "tools"


def test_a_prefix_touches_rule_names_only():
    gbnf = 'root ::= a-b{2,10} "root \\" x" [a-z\\]x] <[12]> !<think> ( c | "" )? # root\nc ::= .'
    assert prefixed(gbnf, "p-") == 'p-root ::= p-a-b{2,10} "root \\" x" [a-z\\]x] <[12]> !<think> ( p-c | "" )? # root\np-c ::= .'


def test_tools_are_shown_in_one_order_whatever_the_clients():
    shuffled = {"function": {"strict": True, "parameters": {"b": 1, "a": 2}, "description": "d", "name": "f"}, "type": "function", "x": 1}
    [shown] = offered_tools(body_of(tools=[shuffled]))
    assert list(shown) == ["type", "function"]
    assert list(shown["function"]) == ["name", "description", "parameters"]
    assert list(shown["function"]["parameters"]) == ["b", "a"]
