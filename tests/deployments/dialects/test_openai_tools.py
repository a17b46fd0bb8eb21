"""What replies with tool calls must follow, held to it by the real matcher."""

from dataclasses import replace

import pytest

from deployments.dialects.openai.params import chat_ask
from deployments.dialects.openai.tools import check_tools, offered_tools
from deployments.dialects.openai.wire import ChatBody
from deployments.generation.chat import chat_constraint, chat_prompt
from deployments.noise.filter import Noise
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable
from tests.support.http_fakes import FakePrompts

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


def ask_of(body, reply=None):
    return replace(chat_ask(body), reply=reply)


def constraint_of(body, reply=None):
    return chat_constraint(ask_of(body, reply), FakePrompts())


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
    constraint = constraint_of(body)
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
    constraint = constraint_of(body_of(tools=[CITY, TREE]), reply)
    assert accepts(constraint, good)
    assert accepts(constraint, f"{PLANT}\n{OTHERS[0]}")
    assert not accepts(constraint, bad)
    assert not accepts(constraint, good + PLANT)


def test_a_free_reply_is_held_to_the_tools_from_the_opening_of_a_call_on():
    body = body_of(tools=[CITY, TREE, ROOTED, BARE])
    constraint = constraint_of(body)
    for text in ("", "Hello <tool", f"Well.\n{PLANT}", "\n".join(OTHERS)):
        assert accepts(constraint, text)
    for text in (
        "<tool_call>",
        call("nobody", "{}"),
        call("plant", '{"tree": 3}'),
        f"Well. {PLANT} {call('nobody', '{}')}",
    ):
        assert not accepts(constraint, text)


def test_what_offers_no_tools_has_no_constraint_but_its_own():
    reply = Constraint(ConstraintKind.GBNF, "root ::= [a]")
    assert constraint_of(body_of(), reply) is reply
    assert constraint_of(body_of()) is None
    none = body_of(tools=[CITY], tool_choice="none")
    assert constraint_of(none, reply) is reply
    assert ask_of(none).callable == []


def test_a_choice_of_none_shows_the_tools_and_allows_no_call():
    none = body_of(tools=[CITY], tool_choice="none")
    assert [tool.name for tool in ask_of(none).tools] == ["get_weather"]
    constraint = constraint_of(none)
    assert accepts(constraint, "It is <b>sunny</b>.")
    assert not accepts(constraint, call("get_weather", '{"city": "Bonn"}'))
    assert not accepts(constraint, f"Well. {call('get_weather', '{}')}")


def test_free_replies_can_be_left_alone():
    prompts = FakePrompts()
    prompts.constrains_calls = False
    assert chat_constraint(ask_of(body_of(tools=[CITY])), prompts) is None
    assert chat_constraint(ask_of(body_of(tools=[CITY], tool_choice="required")), prompts) is not None


@pytest.mark.parametrize("tool_choice", ["required", "auto"])
def test_a_schema_that_cannot_be_enforced_names_the_tools(tool_choice):
    body = body_of(tools=[tool("f", properties={"a": {"$ref": "elsewhere.json"}})], tool_choice=tool_choice)
    constraint = constraint_of(
        body, None if tool_choice == "required" else Constraint.of_schema(JSON_OBJECT, "response_format")
    )
    with pytest.raises(InvalidParameter) as caught:
        GrammarCompiler(AnyTable).check(constraint)
    assert caught.value.param == "tools"


def test_a_strict_tool_is_enforced_or_refused_and_another_is_left_to_the_model():
    different = {"type": "array", "uniqueItems": True}
    loose = body_of(tools=[tool("f", properties={"a": different})], tool_choice="required")
    check_tools(loose)
    assert accepts(constraint_of(loose), call("f", '{"a": [1, 1]}'))
    strict = tool("f", properties={"a": different})
    strict["function"]["strict"] = True
    with pytest.raises(InvalidParameter, match="'uniqueItems' cannot be enforced") as caught:
        chat_prompt(ask_of(body_of(tools=[CITY, strict])), FakePrompts(), Noise().no_filter())
    assert caught.value.param == "tools[1].function.parameters"


def test_tools_are_shown_in_one_order_whatever_the_clients():
    shuffled = {
        "function": {"strict": True, "parameters": {"b": 1, "a": 2}, "description": "d", "name": "f"},
        "type": "function",
        "x": 1,
    }
    shown = offered_tools(body_of(tools=[shuffled]))[0].shown
    assert list(shown) == ["type", "function"]
    assert list(shown["function"]) == ["name", "description", "parameters"]
    assert list(shown["function"]["parameters"]) == ["b", "a"]
