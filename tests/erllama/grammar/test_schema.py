"""JSON Schema: what a schema accepts fits it, and what it cannot hold to is refused by name and place."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.grammar.constraint import JSON_OBJECT, MAX_SCHEMA_BYTES
from tests.support.grammar_kit import (
    COMPILER,
    END,
    TABLE,
    accepts,
    blamed,
    references,
    refusal,
    schema_of,
    wrong,
)

# -- schemas: refusals


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "it must be an object"),
        ('{"minimum": NaN}', "NaN is no JSON number"),
        ({"type": "thing"}, "Invalid type: thing"),
        ({"type": []}, "Unsatisfiable"),
        ({"$ref": "https://example.org/s.json"}, "only references within the schema"),
        ({"$ref": "other.json"}, "only references within the schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "no text fits it"),
        ({"allOf": [{"$ref": "#"}]}, "never end"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "string", "enum": [1]}, "Unsatisfiable"),
        ({"anyOf": []}, "anyOf must be a non-empty list"),
        ({"properties": []}, "properties must be an object"),
        ({"required": "a"}, "required must be a list of strings"),
        ({"additionalProperties": 0}, "a schema must be an object, got int (at #/additionalProperties)"),
        ({"properties": {"a": 3}}, "a schema must be an object, got int (at #/properties/a)"),
        ({"properties": {"a": False}, "required": ["a"]}, "Unsatisfiable"),
        ({"not": {}}, "schema is false"),
        (
            {"properties": {"x": {"items": {"not": {"pattern": "a"}}}}},
            "'not' cannot be enforced: the opposite has no words here (at #/properties/x/items)",
        ),
        ({"if": {"pattern": "a"}, "then": {"minLength": 2}}, "'if' cannot be enforced"),
        (
            {"type": "array", "uniqueItems": True},
            "'uniqueItems' cannot be enforced: only items of an enum can be kept apart (at #)",
        ),
        (
            {"uniqueItems": True, "items": {"enum": [*range(9)]}},
            "'uniqueItems' cannot be enforced: its items have more than 400 orders",
        ),
        ({"contains": {"pattern": "a"}, "maxContains": 1}, "'contains' cannot be enforced"),
        ({"propertyNames": {"not": {"const": "a"}}}, "'propertyNames' cannot be enforced"),
        ({"type": "string", "format": "colour"}, "'format' cannot be enforced: 'colour' is not known (at #)"),
        ({"multipleOf": 9999991}, "'multipleOf' cannot be enforced"),
        ({"multipleOf": 0}, "multipleOf must be a number above 0"),
        ({"minimum": 1e20}, "'minimum' cannot be enforced: numbers beyond 64 bits have no ranges"),
        ({"minimum": "1"}, "minimum must be a number, got '1'"),
        ({"maxLength": -1}, "maxLength must be a whole number that is not negative, got -1"),
        ({"enum": [2**53 + 1]}, "'enum' cannot be enforced: 9007199254740993 is no double"),
        (
            {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
            "'oneOf' cannot be enforced: a value may fit its options 0 and 1 (at #)",
        ),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf' cannot be enforced"),
        ({"$dynamicRef": "#node"}, "'$dynamicRef' is followed to # only"),
        ({"dependentRequired": {f"a{i}": ["b"] for i in range(7)}}, "at most 6 dependencies"),
        ({"properties": {f"p{i}": {} for i in range(30)}, "minProperties": 5}, "more than 400 combinations"),
        (
            {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}},
            "expands to more than",
        ),
        (
            {"required": [f"p{i}" for i in range(3000)], "anyOf": [{"required": [f"q{i}"]} for i in range(3000)]},
            "more than 200000 properties",
        ),
        ({"required": ["b"], "properties": {"a": {}}, "maxProperties": 0}, "Unsatisfiable"),
        ({"pattern": ".?" * 1001}, "more than 1000 parts of one expression may be left out"),
        ({"anyOf": [{"pattern": ".?" * 900 + f"{i}"} for i in range(6)]}, "more than 5000 parts of its patterns"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems (3) is greater than maxItems (2)"),
        ({"type": "string", "minLength": True}, "minLength"),
        ({"pattern": "(?=a)b"}, "'pattern' cannot be enforced: it has a look-around"),
        ({"pattern": 3}, "pattern"),
        ({"pattern": "a\\"}, "ends within an escape"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "Unsatisfiable"),
        ({"properties": {f"p{i}": {} for i in range(451)}}, "more than 450 optional properties"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, f"at most {MAX_SCHEMA_BYTES}"),
        ('{"items":' * 500 + "{}" + "}" * 500, "nested too deeply"),
        ('{"items":' * 20_000 + "{}" + "}" * 20_000, "nested too deeply"),
        ('{"const":' + "[" * 200 + "]" * 200 + "}", "recursion limit exceeded"),
        ('{"const":' + "[" * 900 + "]" * 900 + "}", "recursion"),
        ({"x": float("nan"), "minItems": float("inf")}, "it is not JSON"),
        (references(3000, lambda ref: {"allOf": [ref], "properties": {"x": {}}}, {}), "never end"),
        ({"anyOf": [{"$ref": f"#/$defs/{'%61' * n}x"} for n in range(50)], "$defs": {}}, "leads nowhere"),
        (references(25, lambda ref: {"allOf": [ref, ref]}, {}), "expands to more than"),
        (
            {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(12)]},
            "schema too large",
        ),
    ],
)
def test_a_schema_is_refused_with_its_reason(schema, reason):
    error = refusal(lambda: schema_of(schema))
    assert error.param == "response_format"
    assert reason in error.message


def test_a_schema_nested_too_deeply_to_be_written_is_refused():
    schema = {}
    for _ in range(100_000):
        schema = {"items": schema}
    assert "nested too deeply" in refusal(lambda: schema_of(schema)).message
    while schema:  # its own end would recurse as deeply
        schema = schema.pop("items")


@pytest.mark.parametrize(
    "pattern", ["*a", "(a", "a)", "[a", "[b-a]", r"\1", r"\bword", "a^b", "a$b", "(?!x)", r"\x4", "\\", "x{3,1}"]
)
def test_an_unsupported_pattern_is_refused(pattern):
    assert blamed(lambda: schema_of({"pattern": pattern})) == "response_format"


@given(st.text("ab|()[]{}*+?^$\\dws.-01,:<", max_size=20))
def test_any_pattern_is_followed_or_refused(pattern):
    assert blamed(lambda: schema_of({"pattern": pattern})) in (None, "response_format")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.just(10**400)
    | st.sampled_from(["a", "#", "#/properties/a", "object", "integer"])
)
KEYWORDS = [
    "type", "enum", "const", "anyOf", "allOf", "$ref", "properties", "required", "additionalProperties", "items", "prefixItems",
    "minItems", "maxItems", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "a", "not", "if", "then", "else",
    "oneOf", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames", "minProperties", "maxProperties", "multipleOf",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems", "patternProperties",
    "additionalItems", "$dynamicRef", "$recursiveRef", "exclusiveMaximum", "$defs",
]  # fmt: skip
SCHEMA_LIKE = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(KEYWORDS), SCHEMA_LIKE, max_size=5))
def test_any_schema_is_followed_or_refused(schema):
    assert blamed(lambda: schema_of(schema)) in (None, "response_format")


# -- schemas: what fits


json_objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=5),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(value=json_objects, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_the_json_schemas_accept_every_object(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if "\x7f" in text:
        text = text.replace("\x7f", "\\u007f")
    assert accepts(schema_of(JSON_OBJECT), text)
    assert accepts(schema_of({"type": "object", "additionalProperties": True}), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        '"a"',
        "{} ",
        " {}",
        '{"a"}',
        '{"a":1,}',
        '{"a":01}',
        '{"a":\n\n1}',
        "{'a':1}",
        '{"a":"\n"}',
        '{"a":NaN}',
    ],
)
def test_the_schema_of_any_object_refuses_everything_else(text):
    assert not accepts(schema_of(JSON_OBJECT), text)


TREE = {
    "$ref": "#/$defs/My_Node",
    "$defs": {
        "My_Node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/My_Node"}}},
            "required": ["v"],
        }
    },
}

SCHEMAS = {
    "enum": ({"enum": ["a", 'q"\\\n', "😀é", 1, None]}, ['"a"', r'"q\"\\\n"', '"😀é"', "1", "null"], ['"b"', "a", "true"]),
    "const": ({"const": {"a": [1, "x"]}}, ['{"a": [1, "x"]}'], ["{}"]),
    "integer": ({"type": "integer"}, ["0", "-12", "345"], ["01", "1.5", '"1"', "-"]),
    "small range": ({"type": "integer", "minimum": 8, "exclusiveMaximum": 11}, ["8", "9", "10"], ["7", "11", "1"]),
    "natural": ({"type": "integer", "minimum": 0}, ["0", "7"], ["-1"]),
    "number": ({"type": "number"}, ["1", "-1.5", "2e10", "0.5E-3"], [".5", "1.", "NaN"]),
    "boolean or null": ({"type": ["boolean", "null"]}, ["true", "null"], ["0", '"true"']),
    "anything": ({}, ["1", "[]", '{"a": {}}'], ["x"]),
    "closed object": (
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": True}, "required": ["a", "c"]},
        ['{"a":"x","c":1}', '{ "a" : "x", "b": 2, "c": []}'.replace('" :', '":'), '{\n  "a": "x",\n  "c": null\n}'],
        ['{"a":"x"}', '{"c":1,"a":"x"}', '{"a":"x","c":1,"d":1}', '{"a":1,"c":1}', '{"a":"x","c":1,}', "{}"],
    ),
    "all optional": (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
        ["{}", '{"a":null}', '{"b":null}', '{"a":null,"b":null}'],
        ['{"b":null,"a":null}', '{,"a":null}', '{"a":null,}', '{"c":null}'],
    ),
    "additional": (
        {"properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
        ["{}", '{"ab":null}', '{"ab":null,"a":1,"abc":2,"":3,"é":4}', '{"x":1}'],
        ['{"ab":1}', '{"x":1,"ab":null}', '{"x":null}', '{"ab":null,"ab":1}', '{"\\u0061b":1}'],
    ),
    "additional true": (
        {"properties": {"a": {"const": 1}}, "additionalProperties": True},
        ['{"a":1,"b":"x"}', '{"b":[1]}'],
        ['{"a":2}', '{"\\u0061":2}'],
    ),
    "map": ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a":1,"b":2}'], ['{"a":"x"}']),
    "empty object": ({"type": "object", "additionalProperties": False}, ["{}", "{ }"], ['{"a":1}']),
    "required only": ({"required": ["k"]}, ['{"k":1}'], ["{}"]),
    "nested": (
        {"type": "object", "properties": {"item": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}}},
        ['{"item":{"item":"x"}}'],
        ['{"item":"x"}', '{"item":{}}'],
    ),
    "array": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ["[1,2]", "[1, 2, 3]"],
        ["[1]", "[1,2,3,4]", "[]", "[1,]"],
    ),
    "array up to": ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, ["[]", "[1]"], ["[1,2]", '["a"]']),
    "array of none": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "tuple": ({"prefixItems": [{"type": "string"}, {"type": "integer"}]}, ['["a",1]'], ['["a"]', '["a",1,2]', '[1,"a"]']),
    "tuple and more": (
        {"prefixItems": [{"type": "string"}], "items": {"type": "null"}, "maxItems": 2},
        ['["a"]', '["a",null]'],
        ["[]", '["a",null,null]'],
    ),
    "length": ({"type": "string", "minLength": 2, "maxLength": 4}, ['"ab"', '"é😀"', '"a\\nbc"'], ['"a"', '"abcde"', '""']),
    "long": ({"type": "string", "maxLength": 2000}, ['""', '"' + "x" * 500 + '"'], ["x"]),
    "pattern": ({"pattern": r"^\d{3}-[A-Z]+(\.x|_y)?$"}, ['"123-AB"', '"123-A.x"', '"000-Z_y"'], ['"12-A"', '"123-a"', '"123-A.z"']),
    "loose pattern": ({"pattern": "b+"}, ['"abc"', '"b"', '"xxbb"'], ['"a"', '""']),
    "pattern with escapes": ({"pattern": r'^["\\\n]$'}, [r'"\""', r'"\\"', r'"\n"'], ['"a"', '"n"', '"\\t"']),
    "date-time": (
        {"format": "date-time"},
        ['"2026-01-31T23:59:59Z"', '"2026-01-31T23:59:59.5+01:00"'],
        ['"2026-13-01T00:00:00Z"', '"2026-01-31"'],
    ),
    "date and uuid": (
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}]},
        ['"2026-02-03"', '"01234567-89ab-cdef-0123-456789abcdef"'],
        ['"x"'],
    ),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]}, ["3", "[null]"], ["null", '"3"']),
    "anyOf beside properties": (
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a":1}', '{"b":2}', '{"a":1,"b":2}'],
        ["{}"],
    ),
    "nullable object": (
        {"type": ["object", "null"], "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        ["null", '{"a":1}'],
        ["{}", '{"a":null}'],
    ),
    "allOf": (
        {
            "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
            "$defs": {"A": {"properties": {"a": {"type": "null"}}}},
        },
        ['{"b":1}', '{"a":null,"b":1}'],
        ['{"a":null}'],
    ),
    "recursive": (TREE, ['{"v":1}', '{"v":1,"kids":[{"v":2,"kids":[]},{"v":3}]}'], ["{}", '{"v":1,"kids":[1]}']),
    "recursive root": ({"properties": {"next": {"$ref": "#"}}}, ["{}", '{"next":{"next":{}}}'], ['{"next":1}']),
    "ref beside a property of its name": (
        {
            "properties": {"item": {"type": "integer"}, "x": {"$ref": "#/$defs/item"}},
            "required": ["item", "x"],
            "$defs": {"item": {"type": "string"}},
        },
        ['{"item":1,"x":"s"}'],
        ['{"item":1,"x":1}'],
    ),
    "odd names": (
        {"properties": {'a"b': {"const": 1}, "é ü": {"const": 2}, "root": {"const": 3}}},
        ['{"a\\"b":1,"é ü":2,"root":3}'],
        ['{"a":1}'],
    ),
    "pattern of names": ({"patternProperties": {"^x_": {"type": "null"}}}, ["{}", '{"x_a":null}'], ['{"y":null}', '{"x_a":1}']),
    "combined union": (
        {"allOf": [{"anyOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}], "properties": {"c": True}},
        ['{"c":0}', '{"c":0,"a":1}', '{"b":2}'],
        ['{"d":1}'],
    ),
    "union beside a reference": (
        {"$ref": "#/$defs/A", "anyOf": [{"required": ["a"]}, {"$ref": "#/$defs/B"}],
         "$defs": {"A": {"properties": {"a": {"const": 1}}}, "B": {"properties": {"b": {"const": 2}}, "required": ["b"]}}},
        ['{"a":1}', '{"b":2}', '{"a":1,"b":2}'],
        ["{}", '{"c":1}', '{"b":1}'],
    ),
    "definitions are closed where they stand alone": (
        {"properties": {"x": {"$ref": "#/$defs/A"}, "y": {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"const": 2}}}]}},
         "$defs": {"A": {"properties": {"a": {"const": 1}}}}},
        ['{"x":{"a":1},"y":{"a":1,"b":2}}'],
        ['{"x":{"a":1,"b":2}}', '{"y":{"c":1}}'],
    ),
    "unions in unions": (
        {"properties": {"a": True}, "anyOf": [{"anyOf": [{"properties": {"b": True}}, {"properties": {"c": True}}]}, {"required": ["a"]}]},
        ['{"a":1,"b":2}', '{"c":3}', "{}"],
        ['{"b":1,"c":2}', '{"d":1}', "[]"],
    ),
    "unions of both kinds": (
        {"anyOf": [{"required": ["a"]}, {"required": ["c"]}], "oneOf": [{"properties": {"b": {"const": 1}}, "required": ["b"]}]},
        ['{"b":1,"a":0}', '{"b":1,"c":0}'],
        ['{"a":0}', '{"b":1}', '{"b":2,"a":0}', '{"b":1,"a":0,"d":1}'],
    ),
    "nullable by its type alone": (
        {"type": ["object", "null"], "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": True, "b": True}},
        ["null", '{"b":1}'],
        ["{}", "1"],
    ),
    "a type that a part implies": ({"allOf": [{"properties": {"a": True}}, {"title": "t"}, True]}, ['{"a":1}'], ["1", '{"b":1}']),
    "lists of nothing": ({"allOf": [], "prefixItems": [], "items": {"type": "null"}}, ["[]", "[null]"], ["{}", "[1]"]),
    "escapes cannot spell a name again": (
        {"unevaluatedProperties": {"type": "integer"}, "allOf": [{"properties": {"ab": {"type": "null"}}}]},
        ['{"ab":null,"x":1}'],
        ['{"\\u0061b":1}', '{"ab":1}'],
    ),
    "open by its own word": (
        {"allOf": [{"properties": {"a": {"const": 1}}, "additionalProperties": True}, {"properties": {"b": {"const": 2}}}]},
        ['{"a":1,"b":2,"c":3}'],
        ['{"a":2}'],
    ),
    "options of its own are not its author's": ({"x-guidance": {"whitespace_flexible": False}, "type": "array"}, ["[ 1]"], ["[  1]"]),
    "annotations": ({"type": "array", "title": "t", "nullable": True, "x-order": 3, "readOnly": True}, ["[2, 2]"], ["{}"]),
    "a reference into what is no keyword": (
        {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {"properties": {"a": {"const": 1}}}}}},
        ['{"a":1}', "{}"],
        ['{"b":1}', "1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_accepts_what_fits_and_nothing_else(name):
    schema, good, bad = SCHEMAS[name]
    assert wrong(schema_of(schema), good, bad) == ([], [])


@pytest.mark.parametrize(
    "pattern",
    [r"^[^\W\d_]{1,3}$", r"^(?:a|bc)*?d{2,}$", r"^\s\S$", r"^[\w.+-]+@[a-z]+\.[a-z]{2,3}$", "^(x|)y$", "^.$", "^[^a]$"],
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_pattern_accepts_what_it_matches(pattern, data):
    """ECMA's \\w, \\d and \\s are narrower than Python's, so that the examples stay within
    ASCII.
    """
    text = data.draw(
        st.from_regex(pattern.replace("$", r"\Z"), alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E))
    )
    assert accepts(schema_of({"pattern": pattern}), json.dumps(text))


def test_white_space_is_bounded_everywhere():
    """A model that prefers blanks writes JSON all the same."""
    array = {"type": "array", "maxItems": 1, "items": {"type": "null"}}
    matcher, text = COMPILER.matcher(schema_of({"properties": {"a": array}, "required": ["a"]})), b""
    blanks = [ord(char) for char in "\n\t "]
    while not matcher.allows(END):
        token = next((byte for byte in [*blanks, *b'"a:]}nul[{'] if matcher.allows(byte)), None)
        assert token is not None
        assert len(text) < 400
        matcher.accept(token)
        text += bytes([token])
    assert json.loads(text) == {"a": []}


@settings(deadline=None)
@given(name=st.sampled_from(sorted(SCHEMAS)), seed=st.integers(0, 2**32))
def test_the_mask_allows_what_asking_about_each_token_allows(name, seed):
    matcher, draw = COMPILER.matcher(schema_of(SCHEMAS[name][0])), random.Random(seed)
    for _ in range(12):
        allowed = np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist()
        assert allowed == [token for token in range(len(TABLE.pieces)) if matcher.allows(token)]
        token = draw.choice(allowed)
        if token in TABLE.eog:
            break
        matcher.accept(token)


def test_many_definitions_that_do_not_follow_each_other_compile():
    definitions = {f"d{i}": {"properties": {"x": {"anyOf": [{"type": "null"}, {"type": "array"}]}}} for i in range(400)}
    schema = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in definitions], "$defs": definitions}
    assert accepts(schema_of(schema), '{"x":null}')


def test_an_object_may_require_many_properties():
    names = [f"field_{i}" for i in range(1000)]
    schema = {"properties": {name: {"type": "null"} for name in names}, "required": names}
    assert accepts(schema_of(schema), json.dumps(dict.fromkeys(names)))


def test_a_large_flat_schema_compiles():
    schema = {"type": "object", "properties": {f"field_{i}": {"type": "string"} for i in range(450)}, "required": []}
    assert accepts(schema_of(schema), '{"field_7":"x","field_449":""}')
