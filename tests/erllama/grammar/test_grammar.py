"""What a reply must follow: accepted texts are accepted, others are not, and whatever is faulty or
hostile is refused by name.
"""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES, Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable

END, CONTROL, OTHER_END, MERGED, BRACE, NOTHING = range(256, 262)
TABLE = TokenTable(
    [*(bytes([byte]) for byte in range(256)), b"<end>", b"<control>", b"<other end>", b"ab", b'{"', b""],
    special=frozenset({END, CONTROL, OTHER_END}),
    eog=frozenset({END, OTHER_END}),
)
COMPILER = GrammarCompiler(lambda: TABLE)


def gbnf(text):
    return Constraint(ConstraintKind.GBNF, text)


def schema_of(schema):
    if isinstance(schema, str):
        return Constraint(ConstraintKind.JSON_SCHEMA, schema, "response_format")
    return Constraint.of_schema(schema, "response_format")


def accepts(constraint, text):
    """Whether a model may write `text` byte by byte and end there."""
    matcher = COMPILER.matcher(constraint)
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.allows(END)


def wrong(constraint, good, bad):
    """The texts of `good` that are not accepted and those of `bad` that are."""
    return [text for text in good if not accepts(constraint, text)], [text for text in bad if accepts(constraint, text)]


def refusal(make):
    """The error for the constraint that `make` gives."""
    with pytest.raises(InvalidParameter) as caught:
        COMPILER.check(make())
    return caught.value


def blamed(make):
    """The parameter that is refused, None if nothing is. Any other exception is a failure."""
    try:
        COMPILER.check(make())
    except InvalidParameter as error:
        return error.param
    return None


# -- GBNF


def chain(body, last, n=30):
    """root -> a0 -> a1 ... -> a<n>, where every step is `body` of the next rule."""
    steps = [f"a{i} ::= " + body.replace("X", f"a{i + 1}") for i in range(n)]
    return "\n".join(["root ::= a0", *steps, f"a{n} ::= {last}"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        (3, "it must be a string"),
        ("# only a comment", 'no rule named "root"'),
        ('a ::= "x"', 'no rule named "root"'),
        ("root ::= nowhere", 'rule "nowhere" is used but not defined'),
        ('root ::= "a\0"', "a NUL character"),
        ('root ::= "\ud800"', "a lone surrogate"),
        ('root ::= "\\uD800"', "\\uD800 is no character"),
        ('root ::= "\\U00110000"', "\\U00110000 is no character"),
        ("root ::= " + '"a" ' * 20_000, f"at most {MAX_GRAMMAR_BYTES}"),
        ('root ::= "a', "unexpected end of the grammar (line 1)"),
        ('root ::= "x"\n\na ::= [a', "unexpected end of the grammar (line 3)"),
        ('root ::= "\\q"', "unknown escape \\q"),
        ('root ::= "\\x0', "expected 2 hexadecimal digits"),
        ('root = "a"', "expected '::='"),
        ("root ::= *", "a repetition needs an item before it"),
        ('root ::= ("a"', "expected ')'"),
        ('root ::= "a"{2', "expected '}'"),
        ('root ::= "a"{x}', "expected a number of repetitions"),
        ('root ::= "a" b ::= "c"', "expected a new line"),
        ("}{", "expected a rule name"),
        ("root ::= [^]", "a character class is empty"),
        ("root ::= [z-a]", "a character range is reversed"),
        ("root ::= !x", "expected '<'"),
        ("root ::= <[99999999999999999999]>", "a token id is too large"),
        ("root ::= <[1000]>", "<[1000]> is not in the vocabulary"),
        ("root ::= <no such token>", "<no such token> is not exactly one token"),
        ("root ::= <x", "expected '>'"),
        ('root ::= "a"{5,2}', "{5,2} has its bounds reversed"),
        ('root ::= "a"{0,3000}', "more than 2000 repetitions"),
        ('root ::= "a"{99999999999999999999}', "more than 2000 repetitions"),
        ("root ::= root", "no text fits it"),
        ("root ::= a\na ::= b\nb ::= a", "no text fits it"),
        ("root ::= " + "(" * 30_000, "nested more than 100 deep"),
        ('root ::= "a"' + "?" * 20_000, "more than 10000"),
    ],
)
def test_a_faulty_or_hostile_grammar_is_refused_with_its_reason(text, reason):
    error = refusal(lambda: gbnf(text))
    assert error.param == "grammar"
    assert reason in error.message


GRAMMARS = {
    "everything at once": (
        'root ::= ("a" | [b-d]+ | . )* "\\n" # comment\n\n  \n',
        ["\n", "abq\n", "é\n\n"],
        ["a", ""],
    ),
    "lines": (
        'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\u2028]+ "\\n"',
        ["- a\n", "- ä b\n- c\n"],
        ["", "- \n", "- a", "- a\u2028\n"],
    ),
    "brackets": ('root ::= s\ns ::= "(" s ")" s | ', ["", "()", "(())()"], ["(", ")(", "())"]),
    "stars of stars": ('root ::= ("a"*)* (" "?){1,3}', ["", "aaa", "a  "], ["b", "    "]),
    "alternates on lines of their own": ('root ::=\n  "a" |\n  "b"\n', ["a", "b"], ["ab", ""]),
    "escapes in a class": ('root ::= [a\\]\\-z-] [^"\\\\]', ["]x", "-y", "az", "z]"], ["bx", 'a"', "a\\"]),
    "a group on two lines": ('root ::= ( "x"\n  | "y" ){2,3}', ["xy", "yyx"], ["x", "xxxx"]),
    "unicode": ('root ::= "é" [à-ÿ]{2} | "\\U0001F600"', ["éàÿ", "😀"], ["éa", "éàà😀"]),
    "a long repetition": ('root ::= char{0,2000}\nchar ::= [^"]', ["", "x" * 2000], ["x" * 2001, '"']),
    "doubling without an end": (chain("X X", '"x"'), [], ["", "x"]),
    "many ways to begin": (chain('X | X | "y"', '"x"'), ["x", "y"], ["", "xy"]),
    "what never ends": ('root ::= "b" root', [], ["", "b", "bbb"]),
    "left recursion": ('root ::= root "x" | "y"', ["y", "yxx"], ["", "x"]),
    "left recursion through another rule": ('root ::= "k" e\ne ::= t\nt ::= e "+" | "1"', ["k1", "k1++"], ["k", "k+"]),
    "left recursion behind nothing": (
        'root ::= a root "x" | "y"\na ::= b\nb ::= "c" | ',
        ["y", "yxx", "ccyxx"],
        ["ccyx"],
    ),
    "an ambiguous grammar": (
        'root ::= s\ns ::= "x" s "1" | "x" s "2" | "y"',
        ["y", "x" * 20 + "y" + "12" * 10],
        ["xy", "xy12"],
    ),
    "white space by recursion": ('root ::= "a" ws "b"\nws ::= ([ \\t\\n] ws)?', ["ab", "a \n b"], ["a", "axb"]),
    "what begins alike": (
        'root ::= [a-z]* "ab" | item "c"\nitem ::= "a" | "ab"',
        ["ab", "xxab", "ac", "abc"],
        ["", "abb", "b"],
    ),
    "deep nesting": ("root ::= " + "(" * 90 + '"a"' + ")*" * 90, ["", "aaa"], ["b"]),
    "deep nesting of a recursive rule": ("root ::= " + "(" * 90 + '"a" root?' + ")?" * 90, ["", "aaa"], ["b"]),
    "an empty repetition": ('root ::= ""* "a"{0} "b"', ["b"], ["", "ab"]),
    "names that differ by case and dashes": (
        'root ::= a-b A-B aB\na-b ::= "1"\nA-B ::= "2"\naB ::= "3" | "(" root ")"',
        ["123"],
        ["12"],
    ),
    "JSON of llama.cpp": (
        r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
""",
        ["{}", '{"a": [1, -2.5e3, {"b": null}], "\\u00e9é": "x"} '],
        ["[]", '{"a"}', '{"a":1,}', "{}x"],
    ),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_accepts_its_texts_and_no_others(name):
    text, good, bad = GRAMMARS[name]
    assert wrong(gbnf(text), good, bad) == ([], [])


def test_tokens_are_referred_to_by_id_or_by_name():
    matcher = COMPILER.matcher(gbnf("root ::= <[97]> <control> !<[98]> !<control>"))
    for allowed, refused in ((97, 98), (CONTROL, 97), (CONTROL, 98), (98, CONTROL)):
        assert matcher.allows(allowed)
        assert not matcher.allows(refused)
        matcher.accept(allowed)
    assert matcher.allows(END)


@given(st.text('ab"[]()|*?{}0,:=\\ \nro!<>.#-', max_size=60).map(lambda t: "root ::= " + t))
def test_any_text_is_accepted_or_refused_but_never_an_error(text):
    assert blamed(lambda: gbnf(text)) in (None, "grammar")


@pytest.mark.parametrize(
    "text",
    [
        chain("X X", '"a" | '),
        ('root ::= ("a"? "b"?){64}'),
        ('root ::= a{0,999}\na ::= b{0,999}\nb ::= "a"{0,999}'),
        ("root ::= " + '"aaaaaaaaaa"{0,2000} ' * 20),
        ('root ::= (("a" "b"? "c"?){900}){900}'),
        ('root ::= s\ns ::= s s | "a" | '),
        ('root ::= ("a" | "b")* "a" ("a" | "b"){1000}'),
        ("root ::= " + " | ".join(f'"a{i}"' for i in range(5000))),
    ],
)
def test_a_costly_grammar_compiles_and_ends_at_worst_its_own_reply(text):
    with suppress(InvalidParameter):
        follow(COMPILER.matcher(gbnf(text)), "a", 100)


# -- regular expressions and Lark


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"(yes|no)!", ["yes!", "no!"], ["yes", "yes!!"]),
        (r"a/b\/c\d", ["a/b/c1"], ["a/b/c"]),
        ("a\nb", ["a\nb"], ["ab"]),
        ("a\\\nb", ["a\nb"], ["a\\\nb"]),
        (r"[/\]]+", ["/]", "]"], ["", "[", "\\"]),
        (r".{2,3}", ["ab", "äöü"], ["a", "abcd", "a\n"]),
    ],
)
def test_a_regular_expression_matches_the_whole_text(pattern, good, bad):
    assert wrong(Constraint(ConstraintKind.REGEX, pattern), good, bad) == ([], [])


@pytest.mark.parametrize("pattern", ["(", "a)", "[b-a]", r"\1", "(?=a)", "\\", "(" * 30_000, "x{3,1}", "a" * 70_000])
def test_a_faulty_regular_expression_is_refused(pattern):
    assert refusal(lambda: Constraint(ConstraintKind.REGEX, pattern)).param == "grammar"


def test_lark_refers_to_constraints_of_other_kinds():
    whole = Constraint(
        ConstraintKind.LARK,
        'start: "<" number ">" | words',
        "tools",
        (("number", schema_of({"type": "integer"})), ("words", gbnf('root ::= "a" x\nx ::= "b" | "(" x ")"'))),
    )
    assert wrong(whole, ["<12>", "ab", "a((b))"], ["<x>", "<12", "a(b", ""]) == ([], [])


@pytest.mark.parametrize(
    ("lark", "part", "param"),
    [
        ("start: (", schema_of({}), "tools"),
        ("start: nowhere", schema_of({}), "tools"),
        ("start: part", schema_of({"not": {}}), "response_format"),
        ("start: part", gbnf("root ::= ("), "grammar"),
        ('start: %json {"type": "object"}', schema_of({}), "tools"),
    ],
)
def test_a_faulty_part_names_its_own_field(lark, part, param):
    assert refusal(lambda: Constraint(ConstraintKind.LARK, lark, "tools", (("part", part),))).param == param


def test_a_kind_that_nobody_knows_is_refused():
    with pytest.raises(InvalidParameter, match="one of gbnf, regex, json_schema, lark, got 'ebnf'"):
        Constraint("ebnf", "root ::= x")


def test_only_lark_has_parts():
    with pytest.raises(InvalidParameter, match="only Lark has parts"):
        Constraint(ConstraintKind.GBNF, "root ::= x", parts=(("x", gbnf("root ::= [a]")),))


# -- schemas: refusals


def references(n, step, last):
    """A schema whose definitions refer to each other in one chain."""
    chained = {f"a{i}": step({"$ref": f"#/$defs/a{i + 1}"}) for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**chained, f"a{n}": last}}


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
        ({"not": {}}, "'not' is not supported"),
        ({"properties": {"x": {"items": {"if": {}}}}}, "'if' is not supported (at #/properties/x/items)"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems (3) is greater than maxItems (2)"),
        ({"type": "string", "minLength": True}, "minLength"),
        ({"pattern": "(?=a)b"}, "look-around"),
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
    "minItems", "maxItems", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "a", "not",
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


# -- depth


def deepest(limit, make):
    """What `make` gives for as many levels as fit into `limit` bytes."""
    n = limit // (len(make(1000)) // 1000)
    while len(make(n)) > limit:
        n = n * limit // len(make(n))
    return make(n)


def deepest_gbnf(body, last='"z"'):
    return gbnf(deepest(MAX_GRAMMAR_BYTES, lambda n: chain(body, last, n)))


def deepest_schema(step):
    return schema_of(deepest(MAX_SCHEMA_BYTES, lambda n: json.dumps(references(n, step, {}))))


def nested(schema, n, key, wrap):
    for _ in range(n):
        schema = {key: wrap(schema)}
    return schema


DEEPEST = {
    "rules": lambda: deepest_gbnf("X"),
    "expressions": lambda: deepest_gbnf('"x"(X|"y")'),
    "recursive rules": lambda: deepest_gbnf("X|a0"),
    "groups": lambda: gbnf(chain("(." * 90 + "X" + ")*" * 90, '"z"', n=100)),
    "repetitions": lambda: gbnf('root ::= "a"' + "?" * 9990),
    "repetitions of a recursive rule": lambda: gbnf('root ::= "b" | "a" root' + "*" * 9990),
    "Lark": lambda: Constraint(
        ConstraintKind.LARK,
        deepest(
            MAX_GRAMMAR_BYTES,
            lambda n: "start: a0\n" + "\n".join(f"a{i}:a{i + 1}" for i in range(n)) + f"\na{n}:part",
        ),
        parts=(("part", schema_of({})),),
    ),
    "references": lambda: deepest_schema(lambda ref: ref),
    "properties": lambda: deepest_schema(lambda ref: {"properties": {"a": ref}}),
    "properties in a circle": lambda: deepest_schema(lambda ref: {"properties": {"a": ref, "b": {"$ref": "#"}}}),
    "patterns of names": lambda: deepest_schema(lambda ref: {"patternProperties": {"a": ref}}),
    "items": lambda: deepest_schema(lambda ref: {"items": {"items": ref}}),
    "unions": lambda: schema_of(references(300, lambda ref: nested(ref, 60, "anyOf", lambda inner: [inner]), {})),
}


@pytest.mark.parametrize("name", DEEPEST)
def test_the_deepest_texts_that_fit_compile_and_then_need_no_stack(name):
    """llguidance recurses while it compiles, and only then: a matcher's steps, copies and end run
    on any thread.
    """
    matchers = [GrammarCompiler(lambda: TABLE).matcher(DEEPEST[name]())]

    def use():
        with suppress(InvalidParameter):
            follow(matchers[0].copy(), "[", 50)
            follow(matchers[0], "a", 50)
        matchers.clear()

    usual = threading.stack_size(256 * 1024)
    thread = threading.Thread(target=use)
    thread.start()
    threading.stack_size(usual)
    thread.join()
    assert not matchers


def test_deep_texts_compile_beside_each_other_and_leave_the_usual_stack_to_other_threads():
    usual = threading.stack_size()
    with ThreadPoolExecutor(4) as pool:
        matchers = list(pool.map(GrammarCompiler(lambda: TABLE).matcher, [DEEPEST["items"]() for _ in range(4)]))
    assert [matcher.allows(ord("[")) for matcher in matchers] == [True] * 4
    assert threading.stack_size() == usual


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
        {"additionalProperties": {"type": "integer"}, "allOf": [{"properties": {"ab": {"type": "null"}}}]},
        ['{"ab":null,"x":1}'],
        ['{"\\u0061b":1}', '{"ab":1}'],
    ),
    "open by its own word": (
        {"allOf": [{"properties": {"a": {"const": 1}}, "additionalProperties": True}, {"properties": {"b": {"const": 2}}}]},
        ['{"a":1,"b":2,"c":3}'],
        ['{"a":2}'],
    ),
    "numbers": ({"minimum": 0, "maximum": 10, "multipleOf": 9999991}, ["0", "9.5", "10", "0.3"], ["-1", "10.5", '"1"']),
    "options of its own are not its author's": ({"x-guidance": {"whitespace_flexible": False}, "type": "array"}, ["[ 1]"], ["[  1]"]),
    "keywords that are ignored": ({"type": "array", "uniqueItems": True, "contains": {"const": 1}, "title": "t"}, ["[2, 2]"], ["{}"]),
    "unknown formats are ignored": ({"type": "string", "format": "colour"}, ['"red"'], ["1"]),
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


# -- random schemas, followed by a model that draws at random

LEAVES = st.sampled_from(
    [{"type": "integer", "minimum": -5, "maximum": 300}, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", "é", 3]},
     {"type": "string", "maxLength": 4}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]
)  # fmt: skip
SIMPLE = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(
            lambda properties, optional: {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name not in optional],
            },
            st.dictionaries(st.sampled_from(["a", "b", 'q"', "ü"]), inner, min_size=1, max_size=3),
            st.sets(st.sampled_from(["a", "b"])),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


def fits(value, schema):
    """A validator for what `SIMPLE` draws."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"] and not isinstance(value, bool)
    match schema["type"]:
        case "integer":
            return type(value) is int and -5 <= value <= 300
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "string" if "pattern" in schema:
            return isinstance(value, str) and 1 <= len(value) <= 3 and set(value) <= set("abc")
        case "string":
            return isinstance(value, str) and len(value) <= 4
        case "array":
            return (
                isinstance(value, list)
                and len(value) <= schema["maxItems"]
                and all(fits(item, schema["items"]) for item in value)
            )
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(properties)
        and all(fits(item, properties[name]) for name, item in value.items())
    )


@settings(max_examples=150, deadline=None)
@given(schema=SIMPLE, seed=st.integers(0, 2**32))
def test_what_is_drawn_under_a_schema_parses_and_fits_it(schema, seed):
    matcher, draw, reply = COMPILER.matcher(schema_of(schema)), random.Random(seed), []
    while True:
        token = draw.choice(np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist())
        if token in TABLE.eog:
            break
        assert matcher.allows(token)
        matcher.accept(token)
        reply.append(TABLE.pieces[token])
        assert len(reply) < 3000
    assert fits(json.loads(b"".join(reply).decode()), schema)


# -- the matcher


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


def test_a_finished_text_allows_every_end_and_nothing_else():
    matcher = COMPILER.matcher(gbnf('root ::= "ab"'))
    assert not matcher.allows(END)
    matcher.accept(MERGED)
    assert np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist() == [END, OTHER_END]
    assert matcher.allows(END)
    assert matcher.allows(OTHER_END)
    matcher.accept(END)


def test_any_token_but_one_is_no_end():
    matcher = COMPILER.matcher(gbnf("root ::= !<[98]>"))
    assert np.flatnonzero(~matcher.allowed(len(TABLE.pieces))).tolist() == [98, END, OTHER_END]
    assert not matcher.allows(END)
    matcher.accept(CONTROL)
    assert np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist() == [END, OTHER_END]


def test_the_name_of_a_control_token_is_text_like_any_other():
    matcher = COMPILER.matcher(gbnf('root ::= "<control>"'))
    assert not matcher.allows(CONTROL)
    assert accepts(gbnf('root ::= "<control>"'), "<control>")


def test_accepting_what_is_not_allowed_fails_and_asking_does_not():
    matcher = COMPILER.matcher(gbnf('root ::= "ab"'))
    assert not matcher.allows(ord("x"))
    assert matcher.allows(ord("a"))
    with pytest.raises(InvalidParameter) as caught:
        matcher.accept(ord("x"))
    assert caught.value.param == "grammar"


def test_matchers_of_one_grammar_do_not_share_their_state():
    first, second = COMPILER.matcher(gbnf('root ::= "ab"')), COMPILER.matcher(gbnf('root ::= "ab"'))
    first.accept(ord("a"))
    assert first.allows(ord("b"))
    assert second.allows(ord("a"))


def follow(matcher, letter, n):
    """Write `letter` up to `n` times, asking for all allowed tokens before each."""
    for _ in range(n):
        matcher.allowed(len(TABLE.pieces))
        if not matcher.allows(ord(letter)):
            break
        matcher.accept(ord(letter))


def test_a_step_beyond_the_limits_fails_with_the_field():
    matcher = COMPILER.matcher(
        Constraint(ConstraintKind.REGEX, "(((a{0,50}|b){0,50}|c){0,50}|d){0,50}", "response_format")
    )
    with pytest.raises(InvalidParameter) as caught:
        follow(matcher, "a", 200)
    assert caught.value.param == "response_format"


def test_a_vocabulary_without_an_end_masks_its_own_tokens_only():
    table = TokenTable([bytes([byte]) for byte in range(256)], frozenset(), frozenset())
    matcher = GrammarCompiler(lambda: table).matcher(gbnf('root ::= "a"'))
    matcher.accept(ord("a"))
    assert not matcher.allowed(256).any()


def test_the_table_is_read_once_and_not_before_the_first_grammar():
    reads = []
    compiler = GrammarCompiler(lambda: reads.append(1) or TABLE)
    assert reads == []
    for text in ('root ::= "a"', 'root ::= "b"', 'root ::= "a"'):
        compiler.check(gbnf(text))
    assert reads == [1]


def test_more_grammars_than_are_kept_are_compiled_again():
    compiler = GrammarCompiler(lambda: TABLE)
    for n in range(100):
        compiler.check(gbnf(f'root ::= "a{n}"'))
    assert compiler.matcher(gbnf('root ::= "a0"')).allows(ord("a"))


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
