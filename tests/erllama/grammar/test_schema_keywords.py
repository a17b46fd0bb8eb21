"""Keywords that llguidance lacks or takes too widely: what is accepted fits the schema as the
standard has it, checked against another implementation of it.
"""

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint
from erllama.grammar.json_schema.formats import ANNOTATIONS, KNOWN, NUMBERS, SAME_AS, TEXTS
from erllama.grammar.json_schema.schema import check_strict
from tests.support.grammar_kit import accepts, blamed, drawn, refusal, schema_of, wrong

PETS = {
    "cat": {"properties": {"kind": {"const": "cat"}, "name": {}}},
    "dog": {"properties": {"kind": {"const": "dog"}, "name": {}}},
}
OPEN = {"type": "object", "additionalProperties": {"type": "integer"}}

KEYWORDS = {
    "exclusive bounds": ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, ["1", "2"], ["0", "3", "-1"]),
    "an excluded zero": ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.1", "0.5"], ["0", "0.0", "0.6"]),
    "an excluded one below zero": ({"minimum": -1.5, "exclusiveMaximum": -1}, ["-1.5", "-1.2"], ["-1", "-1.0", "-1.6"]),
    "exclusive in the words of draft 4": ({"minimum": 0, "exclusiveMinimum": True, "maximum": 9}, ["1"], ["0"]),
    "both bounds of a side": ({"type": "integer", "minimum": 3, "exclusiveMinimum": 5, "maximum": 7}, ["6", "7"], ["3", "5"]),
    "bounds beyond 64 bits": ({"type": "integer", "minimum": -(2**63), "maximum": 2**64}, ["0", "-5"], ["1.5"]),
    "bounds that a double rounds": ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 9}, [str(2**53 + 2)], [str(2**53)]),
    "bounds beyond a double": ({"minimum": -(10**400), "maximum": 1e300}, ["7", "-7"], ["x"]),
    "a bound with many decimals": ({"minimum": 1e-300}, ["0.1", "3"], ["0", "-1"]),
    "counts as floats": ({"type": "array", "maxItems": 2.0, "items": {"type": "null"}}, ["[null]"], ["[null,null,null]"]),
    "huge counts": ({"type": "string", "maxLength": 2**70}, ['"abc"'], ["1"]),
    "a step": ({"type": "integer", "multipleOf": 25}, ["0", "75", "-100"], ["30", "5"]),
    "a decimal step": ({"multipleOf": 0.01}, ["0.25", "3", "-1.1"], ["0.125", "1e3"]),
    "finite numbers": (
        {"type": "array"},
        ["[6.02e23, -1.7e308, 1e-400]", '["1e999", "' + "9" * 400 + '"]'],
        ["[1e999]", "[-1e309]", "[" + "9" * 400 + "]", "[0." + "3" * 400 + "]"],
    ),
    "dependentRequired": (
        {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        ['{"a":1,"b":2}', '{"b":2}', "{}"],
        ['{"a":1}'],
    ),
    "dependentSchemas": (
        {"properties": {"a": {}, "b": {"type": "integer"}}, "dependentSchemas": {"a": {"properties": {"b": {"const": 1}}, "required": ["b"]}}},
        ['{"b":2}', '{"a":0,"b":1}'],
        ['{"a":0}', '{"a":0,"b":2}'],
    ),
    "dependencies of draft 7": ({"properties": {"a": {}, "b": {}}, "dependencies": {"a": ["b"]}}, ["{}", '{"a":1,"b":2}'], ['{"a":1}']),
    "if, then, else": (
        {"properties": {"k": {"enum": ["x", "y"]}, "n": {"type": "integer"}}, "required": ["k"],
         "if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["n"]}, "else": {"properties": {"n": False}}},
        ['{"k":"x","n":1}', '{"k":"y"}'],
        ['{"k":"x"}', '{"k":"y","n":1}'],
    ),
    "conditions on one property": (
        {"properties": {"k": {"enum": [*range(12)]}, **{f"x{i}": {} for i in range(12)}},
         "allOf": [
             *({"if": {"properties": {"k": {"const": i}}, "required": ["k"]}, "then": {"required": [f"x{i}"]}} for i in range(11)),
             {"if": {"properties": {"k": {"enum": [0, 1, 2]}}}, "then": {"properties": {"x5": False}}, "else": {"properties": {"x0": False}}},
         ]},
        ["{}", '{"k":3,"x3":0,"x4":0,"x5":0}', '{"k":11}', '{"k":1,"x1":0}', '{"x0":1}'],
        ['{"k":3}', '{"k":3,"x4":0}', '{"k":1,"x1":0,"x5":0}', '{"k":11,"x0":1}', '{"k":0}', '{"x5":1}'],
    ),
    "then without if": ({"type": "string", "then": {"maxLength": 1}}, ['"abc"'], ["1"]),
    "not a value": ({"type": "string", "not": {"const": "ab"}}, ['"a"', '"abc"', '"xb"', '""'], ['"ab"', '"\\u0061b"']),
    "not some numbers": ({"type": "integer", "not": {"enum": [0, 5]}}, ["1", "-1", "55"], ["0", "5"]),
    "not a type": ({"not": {"type": ["string", "null"]}}, ["1", "{}", "[]", "true"], ['"a"', "null"]),
    "not required": ({"properties": {"a": {}, "b": {}}, "not": {"required": ["a", "b"]}}, ['{"a":1}', "{}"], ['{"a":1,"b":2}']),
    "not beyond": ({"type": "number", "not": {"minimum": 3}}, ["2", "2.9"], ["3", "4"]),
    "contains": (
        {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 2}, "maxItems": 3},
        ["[2]", "[1,2]", "[2,1]", "[2,2]"],
        ["[]", "[1]", "[1,1,1]"],
    ),
    "a number of what it contains": (
        {"items": {"enum": [1, 2]}, "contains": {"const": 2}, "minContains": 2, "maxContains": 2},
        ["[2,2]", "[1,2,2,1]"],
        ["[2]", "[2,2,2]", "[1,1]"],
    ),
    "different items": (
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}, "minItems": 1},
        ['["a"]', '["c","a"]', '["b","a","c"]'],
        ['["a","a"]', '["a","b","a"]', "[]"],
    ),
    "different items of a reference": (
        {"uniqueItems": True, "items": {"$ref": "#/$defs/flag"}, "$defs": {"flag": {"type": "boolean"}}},
        ["[]", "[true,false]"],
        ["[true,true]"],
    ),
    "one item is different": ({"type": "array", "uniqueItems": True, "maxItems": 1}, ['["x"]', "[]"], ["[1,1]"]),
    "names of a list": (OPEN | {"propertyNames": {"enum": ["a", "b"]}}, ['{"a":1}', '{"a":1,"b":2}'], ['{"c":1}', '{"a":"x"}']),
    "names of a pattern": (OPEN | {"propertyNames": {"pattern": "^x_"}}, ['{"x_a":1}', "{}"], ['{"y":1}', '{"x_a":"s"}']),
    "names of a length": (OPEN | {"propertyNames": {"maxLength": 2}}, ['{"ab":1}'], ['{"abc":1}']),
    "names that are texts": (OPEN | {"propertyNames": {"type": "string"}}, ['{"any":1}'], ['{"any":"x"}']),
    "at least two of three": (
        {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2},
        ['{"a":1,"c":1}', '{"a":1,"b":1,"c":1}'],
        ['{"a":1}', "{}"],
    ),
    "at most two of three": ({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, ["{}", '{"b":1,"c":1}'], ['{"a":1,"b":1,"c":1}']),
    "at most what another part needs": (
        {"properties": {"a": {}}, "maxProperties": 1, "allOf": [{"properties": {"b": {}}, "required": ["b"]}]},
        ['{"b":1}'],
        ['{"a":1,"b":1}', '{"a":1}', "{}"],
    ),
    "properties of an open object": (OPEN | {"properties": {"a": {}}, "minProperties": 2}, ['{"a":0,"x":1}', '{"x":1,"y":2}'], ['{"a":0}', "{}"]),
    "unevaluatedProperties": (
        {"allOf": [{"properties": {"a": {}}}], "properties": {"b": {}}, "unevaluatedProperties": False},
        ['{"b":1,"a":2}', "{}"],
        ['{"c":1}'],
    ),
    "additional properties of a part": (
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
        ['{"a":1}', "{}"],
        ['{"a":1,"b":2}', '{"b":2}'],
    ),
    "unevaluatedItems": ({"unevaluatedItems": {"type": "null"}, "prefixItems": [{"const": 1}]}, ["[1]", "[1,null]"], ["[1,2]", "[null]"]),
    "options apart by a property": (
        {"oneOf": [PETS["cat"], PETS["dog"]]},
        ['{"kind":"cat","name":1}', '{"kind":"dog"}'],
        ['{"name":1}', "{}", '{"kind":"cow"}'],
    ),
    "options apart by what they need": (
        {"oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
        ['{"a":1}', '{"b":1}'],
        ["{}", '{"a":1,"b":1}'],
    ),
    "references to the root": ({"properties": {"next": {"$recursiveRef": "#"}}}, ['{"next":{"next":{}}}'], ['{"next":1}']),
    "format of numbers": ({"type": "integer", "format": "int32"}, ["2147483647", "-2147483648"], ["2147483648"]),
    "format of numbers in texts": ({"type": "string", "format": "int64"}, ['"12"', '"-3"'], ['"x"', '"1.5"']),
    "leap days": ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"', '"2023-02-28"'], ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"']),
    "a format beside a pattern": ({"format": "date", "pattern": "^2"}, ['"2024-02-03"'], ['"1999-02-03"', '"2"']),
    "formats that say nothing": ({"type": "string", "format": "password"}, ['"x"'], ["1"]),
    "a pointer": ({"format": "json-pointer"}, ['""', '"/a~1b/0"'], ['"a"', '"/~2"']),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_keyword_is_enforced(name):
    schema, good, bad = KEYWORDS[name]
    assert wrong(schema_of(schema), good, bad) == ([], [])


LOOSE = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"type": "array", "not": {"contains": {"const": 1}}},
    "oneOf": {"oneOf": [{"type": "array"}, {"type": ["array", "null"]}]},
    "pattern": {"type": "array", "items": {"type": "string", "pattern": "^(?!x)"}},
    "format": {"type": "array", "items": {"type": "string", "format": "colour"}},
    "propertyNames": {"type": "array", "items": {"type": "object", "propertyNames": {"not": {"const": "a"}}}},
    "minProperties": {"type": "array", "items": {"properties": {f"p{i}": {} for i in range(30)}, "minProperties": 5}},
}


@pytest.mark.parametrize("keyword", LOOSE)
def test_what_cannot_be_enforced_is_refused_or_without_strict_left_to_the_model(keyword):
    schema = LOOSE[keyword]
    assert f"'{keyword}' cannot be enforced" in refusal(lambda: schema_of(schema)).message
    with pytest.raises(InvalidParameter, match=f"'{keyword}' cannot be enforced") as caught:
        check_strict(schema, "tools[0].function.parameters")
    assert caught.value.param == "tools[0].function.parameters"
    loose = Constraint.of_schema(schema, "response_format", strict=False)
    assert wrong(loose, ["[]"], ['"x"', "{}"]) == ([], [])


# -- random schemas, followed by a model that draws at random

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([None, True, False, 0, 1, 2, -1, 1.5, "a", "b", "", "ab", [1], {"a": 1}])
NUMBERS_NEAR = st.sampled_from([-2, -1, 0, 1, 2, 1.5, 0.1, 5])
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTED = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
HOLDERS = (
    "additionalProperties", "propertyNames", "unevaluatedProperties", "items", "contains", "unevaluatedItems", "not", "if",
    "then", "else",
)  # fmt: skip
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object", ["string", "null"], ["integer", "object"]]


def keyword(inner):
    named = {
        "type": st.sampled_from(TYPES),
        "enum": st.lists(VALUES, min_size=1, max_size=4),
        "const": VALUES,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 0.25]),
        "pattern": st.sampled_from(["^a", "b$", "[ab]", "^.{2}$"]),
        "uniqueItems": st.booleans(),
        "required": st.lists(NAMES, unique=True, max_size=2),
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "^[bc]"]), inner, max_size=2),
        "prefixItems": st.lists(inner, min_size=1, max_size=2),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=2), max_size=2),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
        **dict.fromkeys(BOUNDS, NUMBERS_NEAR),
        **dict.fromkeys(COUNTED, st.integers(0, 3)),
        **dict.fromkeys(HOLDERS, inner),
        **dict.fromkeys(("anyOf", "oneOf", "allOf"), st.lists(inner, min_size=1, max_size=3)),
    }
    return st.one_of([st.tuples(st.just(name), values) for name, values in named.items()])


def schemas(inner):
    return st.lists(keyword(inner), max_size=4).map(dict)


DEFINED = st.recursive(st.booleans() | schemas(st.booleans()), schemas, max_leaves=10)
REFERRING = st.recursive(
    st.booleans() | st.just({"$ref": "#/$defs/x"}) | schemas(st.booleans()), schemas, max_leaves=10
)


@settings(max_examples=400, deadline=None)
@given(schemas(REFERRING), DEFINED, st.integers(0, 2**32))
def test_what_is_drawn_under_a_schema_is_valid(schema, defined, seed):
    schema = {**schema, "$defs": {"x": defined}}
    constraint, draw = schema_of(schema), random.Random(seed)
    if blamed(lambda: constraint) is not None:
        return
    for reply in (drawn(constraint, draw) for _ in range(3)):
        if reply is not None:
            jsonschema.Draft202012Validator(schema).validate(json.loads(reply))


@pytest.mark.parametrize("name", sorted({*TEXTS, *KNOWN, *SAME_AS}))
def test_what_is_drawn_in_a_format_is_valid(name):
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    constraint, draw = schema_of({"type": "string", "format": name, "maxLength": 40}), random.Random(name)
    replies = [reply for reply in (drawn(constraint, draw) for _ in range(40)) if reply is not None]
    assert replies
    for reply in replies:
        checker.check(json.loads(reply), {"url": "uri"}.get(name, name))


def test_every_format_that_is_known_is_one_of_a_kind():
    assert not ANNOTATIONS & {*TEXTS, *NUMBERS, *KNOWN, *SAME_AS}
    assert all(accepts(schema_of({"type": "integer", "format": name}), "1") for name in NUMBERS)
