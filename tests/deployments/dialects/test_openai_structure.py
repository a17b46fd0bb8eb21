"""The ways in which a request asks for a form of its reply, those of other servers among them."""

import json

import pytest

from deployments.dialects.openai.structure import asked_form, reply_constraint
from deployments.dialects.openai.wire import ChatBody, CompletionBody, parse_body
from erllama.errors import InvalidParameter
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
RULE = 'root ::= "yes" | "no"'
LARK = 'start: "yes" | NO\nNO: /no+/'


def body_of(**fields):
    return parse_body(ChatBody, json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode())


def accepts(constraint, text):
    compiler = GrammarCompiler(AnyTable)
    matcher = compiler.matcher(constraint)
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.allows(256)


WAYS = [
    ({"response_format": {"type": "json_object"}}, "response_format", '{"x": 1}', "1"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format", '{"a": 1}', "{}"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}, "response_format", '{"a": 1}', "{}"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}}}, "response_format", '{"a": 1}', "{}"),
    ({"response_format": {"type": "regex", "pattern": "[0-9]{3}"}}, "response_format", "123", "12"),
    ({"response_format": {"type": "grammar", "grammar": RULE}}, "response_format", "yes", "maybe"),
    ({"grammar": RULE}, "grammar", "no", "nope"),
    ({"grammar": "%llguidance {}\n" + LARK}, "grammar", "nooo", "n"),
    ({"ebnf": RULE}, "ebnf", "no", "nope"),
    ({"guided_grammar": LARK}, "guided_grammar", "nooo", "n"),
    ({"guided_grammar": RULE}, "guided_grammar", "yes", "y"),
    ({"regex": "a+"}, "regex", "aa", "b"),
    ({"guided_regex": "a/b|\\d"}, "guided_regex", "a/b", "a"),
    ({"choice": ["one", 'two "2"\n']}, "choice", 'two "2"\n', "two"),
    ({"guided_choice": ["é", "\\", "a|b", "\u0001"]}, "guided_choice", "a|b", "a"),
    ({"json_schema": SCHEMA}, "json_schema", '{"a": 1}', "{}"),
    ({"json_schema": json.dumps(SCHEMA)}, "json_schema", '{"a": 1}', "{}"),
    ({"guided_json": SCHEMA}, "guided_json", '{"a": 1}', "{}"),
    ({"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "xgrammar"}, "guided_json", '{"a": 1}', "{}"),
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", '{"a": 1}', "{}"),
    ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", "{}", "[]"),
    ({"structured_outputs": {"regex": "a+", "disable_fallback": True}}, "structured_outputs.regex", "a", "b"),
    ({"structured_outputs": {"choice": ["x", "y"]}}, "structured_outputs.choice", "y", "z"),
    ({"structured_outputs": {"grammar": RULE}}, "structured_outputs.grammar", "no", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "good", "bad"), WAYS)
def test_a_form_is_asked_for_in_many_ways(fields, param, good, bad):
    body = body_of(**fields)
    constraint = reply_constraint(body)
    assert constraint.param == param
    assert asked_form(body) == param.split(".")[0]
    assert accepts(constraint, good)
    assert not accepts(constraint, bad)


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": {"type": "text"}}, {"grammar": ""}, {"guided_json": None}, {"structured_outputs": {}}, {"regex": ""}],
)  # fmt: skip
def test_free_text_has_no_form(fields):
    assert reply_constraint(body_of(**fields)) is None


def test_a_completion_has_the_same_ways():
    body = parse_body(CompletionBody, json.dumps({"prompt": "x", "guided_choice": ["a"]}).encode())
    assert accepts(reply_constraint(body), "a")


def test_a_schema_that_is_not_strict_leaves_what_cannot_be_enforced_to_the_model():
    schema = {"type": "array", "uniqueItems": True}
    loose = {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}
    assert accepts(reply_constraint(body_of(response_format=loose)), "[1, 1]")
    for strict in ({"schema": schema}, {"schema": schema, "strict": True}):
        constraint = reply_constraint(body_of(response_format={"type": "json_schema", "json_schema": strict}))
        with pytest.raises(InvalidParameter, match="'uniqueItems' cannot be enforced"):
            GrammarCompiler(AnyTable).check(constraint)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"grammar": RULE, "response_format": {"type": "json_object"}}, "grammar", "exclude each other"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "guided_regex and guided_json exclude each other"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex", "exclude each other"),
        ({"response_format": {"type": "regex"}}, "response_format.pattern", "Missing required parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "Missing required parameter"),
    ],
)  # fmt: skip
def test_two_forms_or_half_a_form_are_refused(fields, param, words):
    with pytest.raises(InvalidParameter, match=words) as caught:
        reply_constraint(body_of(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 3}, "guided_json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_a_faulty_form_is_refused_by_name(fields, param):
    with pytest.raises(InvalidParameter) as caught:
        body_of(**fields)
    assert caught.value.param == param
