"""Grammars: what would hurt llama.cpp is refused before it sees it, and a converted schema accepts exactly what it should."""

import ctypes
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.grammar.gbnf import JSON_OBJECT_GBNF, MAX_GRAMMAR_BYTES, check_gbnf
from erllama.grammar.json_schema import schema_to_gbnf
from erllama.grammar.regex import UnsupportedPattern, pattern_to_gbnf


def refusal(gbnf):
    with pytest.raises(InvalidParameter) as caught:
        check_gbnf(gbnf)
    assert caught.value.param == "grammar"
    return caught.value.message


def blamed(call):
    """The parameter that `call` refuses, None if it accepts. Any other exception is a failure."""
    try:
        call()
    except InvalidParameter as error:
        return error.param
    return None


# -- our own checks


def chain(body, last, n=30):
    """root -> a0 -> a1 ... -> a<n>, where every step is `body` of the next rule."""
    steps = [f"a{i} ::= " + body.replace("X", f"a{i + 1}") for i in range(n)]
    return "\n".join(["root ::= a0", *steps, f"a{n} ::= {last}"])


@pytest.mark.parametrize(
    ("gbnf", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        (3, "it must be a GBNF string"),
        ("# only a comment", 'no rule named "root"'),
        ('a ::= "x"', 'no rule named "root"'),
        ("root ::= nowhere", 'rule "nowhere" is used but not defined'),
        ('root ::= "a\0"', "a NUL character"),
        ('root ::= "\ud800"', "a lone surrogate"),
        ("root ::= " + '"a" ' * 20_000, f"at most {MAX_GRAMMAR_BYTES}"),
        ('root ::= "a', "unexpected end of the grammar (line 1)"),
        ('root ::= "x"\n\na ::= [a', "unexpected end of the grammar (line 3)"),
        ('root ::= "\\q"', "unknown escape \\q"),
        ('root ::= "\\x0', "expected 2 hexadecimal digits"),
        ('root = "a"', "expected '::='"),
        ("root ::= *", "a repetition needs an item before it"),
        ('root ::= ""*', "a repetition needs an item before it"),
        ('root ::= ("a"', "expected ')'"),
        ('root ::= "a"{2', "expected '}'"),
        ('root ::= "a"{x}', "expected a number of repetitions"),
        ('root ::= "a" b ::= "c"', "expected a new line"),
        ("}{", "expected a rule name"),
        ("root ::= [^]", "a character class is empty"),
        ("root ::= !x", "expected '<'"),
        ("root ::= <[99999999999999999999]>", "a token id is too large"),
        ("root ::= <x", "expected '>'"),
        # What follows was seen to crash, hang or mislead llama.cpp; see the table in erllama/grammar/gbnf.py.
        ('root ::= root "x" | "y"', 'rule "root" is left-recursive'),
        ('root ::= "k" e\ne ::= t\nt ::= e "+" | "1"', 'rule "e" is left-recursive'),
        ('root ::= a root "x" | "y"\na ::= b\nb ::= "c" | ', 'rule "root" is left-recursive'),
        (chain("X X", '"x" | '), "items in a row that may be empty"),
        (chain('X | X | "y"', '"x"'), "too many ways to begin"),
        ("root ::= " + "(" * 30_000, "nested more than 100 deep"),
        ('root ::= "a"{5,2}', "{5,2} has its bounds reversed"),
        ('root ::= ("a"? "b"?){64}', "more than 48 items in a row that may be empty"),
        ('root ::= a{0,999}\na ::= b{0,999}\nb ::= "c"{0,999}', "items in a row that may be empty"),
        ('root ::= "a"{0,3000}', "more than 2000 repetitions"),
        ('root ::= "a"{99999999999999999999}', "more than 2000 repetitions"),
        ("root ::= " + '"aaaaaaaaaa"{0,2000} ' * 20, "expands to more than"),
        ('root ::= ("' + "a" * 1000 + '" "b"){2000}', None),
        ("root ::= " + " | ".join(f'"a{i}"' for i in range(5000)), "too many ways to begin"),
    ],
)
def test_a_dangerous_or_malformed_grammar_is_refused_with_its_reason(gbnf, reason):
    if reason is None:
        check_gbnf(gbnf)
    else:
        assert reason in refusal(gbnf)


SAFE = [
    JSON_OBJECT_GBNF,
    'root ::= ("a" | [b-d]+ | . )* "\\n" # comment\n\n  \n',
    "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\u2028]+ \"\\n\"",
    'root ::= s\ns ::= "(" s ")" s | ',
    'root ::= ("a"*)* (" "?){1,3}',
    'root ::=\n  "a" |\n  "b"\n',
    "root ::= [a\\]\\-z-] [^\"\\\\] <[5]>",
    'root ::= ( "x"\n  | "y" ) {2,\n3}?'.replace("{2,\n3}?", "{2,3}?"),
    'root ::= "é" [à-ÿ]{2} | "\\U0001F600"',
    "root ::= char{0,2000}\nchar ::= [^\"]",
    chain("X X", '"x"'),
]  # fmt: skip


@pytest.mark.parametrize("gbnf", SAFE)
def test_ordinary_grammars_pass(gbnf):
    check_gbnf(gbnf)


@given(st.text('ab"[]()|*?{}0,:=\\ \nro!<>.#-', max_size=60).map(lambda t: "root ::= " + t))
def test_any_text_is_accepted_or_refused_but_never_an_error(gbnf):
    assert blamed(lambda: check_gbnf(gbnf)) in (None, "grammar")


# -- schemas: refusals


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "it must be an object"),
        ({"type": "thing"}, "unknown type 'thing'"),
        ({"type": []}, "an empty list of types"),
        ({"$ref": "https://example.org/s.json"}, "only references within the schema"),
        ({"$ref": "other.json"}, "only references within the schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "left-recursive"),
        ({"allOf": [{"$ref": "#"}]}, "never end"),
        ({"enum": []}, "no value of const or enum fits"),
        ({"type": "string", "enum": [1]}, "no value of const or enum fits"),
        ({"anyOf": []}, "anyOf must be a non-empty list"),
        ({"properties": []}, "properties must be an object"),
        ({"required": "a"}, "required must be a list of strings"),
        ({"properties": {"a": 3}}, "a schema must be an object, got int (at main-a)"),
        ({"properties": {"a": False}}, "false admits nothing"),
        ({"not": {}}, "'not' is not supported"),
        ({"patternProperties": {}}, "'patternProperties' is not supported"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems is less than minItems"),
        ({"type": "string", "maxLength": 5000}, "maxLength must be between 0 and 2000"),
        ({"type": "string", "minLength": True}, "minLength must be a number"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"pattern": 3}, "pattern must be a string"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing in common"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "cannot be combined"),
        ({"enum": ["x" * 70_000]}, "at most"),
        ('{"items":' * 500 + "{}" + "}" * 500, "nested too deeply"),
        ('{"items":' * 20_000 + "{}" + "}" * 20_000, "nested too deeply"),
        ({"x": float("nan"), "minItems": float("inf")}, "minItems must be a number"),
    ],
)
def test_a_schema_is_refused_with_its_reason(schema, reason):
    with pytest.raises(InvalidParameter) as caught:
        schema_to_gbnf(schema)
    assert caught.value.param == "response_format"
    assert reason in caught.value.message


@pytest.mark.parametrize(
    "pattern",
    ["a**", "*a", "(a", "a)", "[a", "[b-a]", r"\1", r"\bword", "a^b", "a$b", "^a|b$", "(?!x)", r"\x4", "[\\x00-\\x07]", "\\", "x{3,1}"],
)
def test_an_unsupported_pattern_is_refused(pattern):
    with pytest.raises((UnsupportedPattern, InvalidParameter)):
        check_gbnf(f"root ::= {pattern_to_gbnf(pattern)}\nchar ::= [a]")


@given(st.text("ab|()[]{}*+?^$\\dws.-01,:<", max_size=20))
def test_any_pattern_gives_a_grammar_or_is_refused(pattern):
    assert blamed(lambda: schema_to_gbnf({"pattern": pattern})) in (None, "response_format")


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
def test_any_schema_gives_a_grammar_or_is_refused(schema):
    assert blamed(lambda: schema_to_gbnf(schema)) in (None, "response_format")


# -- with llama.cpp


@pytest.fixture(scope="session")
def vocab(tmp_path_factory):
    import llama_cpp
    from gguf import GGUFWriter

    from erllama.testing.random_vocab import add_byte_level_vocabulary

    path = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(add_byte_level_vocabulary(writer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


class Constrained:
    """A grammar in llama.cpp, asked whether it would let a model write a text byte by byte and end there."""

    def __init__(self, vocab, gbnf):
        import llama_cpp as llama

        from erllama.llama.grammar import check_grammar

        check_grammar(gbnf, vocab)
        self.llama, self.vocab, self.gbnf = llama, vocab, gbnf
        self.eos = llama.llama_vocab_eos(vocab)
        piece = ctypes.create_string_buffer(64)
        self.byte_tokens = {}
        for token in range(llama.llama_vocab_n_tokens(vocab)):
            if llama.llama_token_to_piece(vocab, token, piece, 64, 0, False) == 1:
                self.byte_tokens.setdefault(piece.raw[0], token)

    def allows(self, sampler, token):
        data = (self.llama.llama_token_data * 1)(self.llama.llama_token_data(id=token, logit=0.0, p=0.0))
        candidates = self.llama.llama_token_data_array(data=data, size=1, selected=-1, sorted=False)
        self.llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return data[0].logit == 0.0

    def accepts(self, text):
        sampler = self.llama.llama_sampler_init_grammar(self.vocab, self.gbnf.encode(), b"root")
        try:
            for byte in text.encode():
                token = self.byte_tokens[byte]
                if not self.allows(sampler, token):
                    return False
                self.llama.llama_sampler_accept(sampler, token)
            return self.allows(sampler, self.eos)
        finally:
            self.llama.llama_sampler_free(sampler)


@pytest.mark.model
@pytest.mark.parametrize("gbnf", SAFE)
def test_llama_cpp_takes_what_passes(vocab, gbnf):
    Constrained(vocab, gbnf)


@pytest.mark.model
@pytest.mark.parametrize("gbnf", ["root ::= <no such token>", 'root ::= ("a" | "")*', 'root ::= (("a" "b"? "c"?){900}){900}'])
def test_what_only_llama_cpp_refuses_is_reported_too(vocab, gbnf):
    from erllama.llama.grammar import check_grammar

    check_gbnf(gbnf)
    with pytest.raises(InvalidParameter, match=r"llama\.cpp refuses the grammar"):
        check_grammar(gbnf, vocab)


json_objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=5),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@pytest.mark.model
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=json_objects, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_the_json_grammars_accept_every_object(vocab, value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if "\x7f" in text:
        text = text.replace("\x7f", "\\u007f")
    assert Constrained(vocab, JSON_OBJECT_GBNF).accepts(text)
    assert Constrained(vocab, schema_to_gbnf({"type": "object"})).accepts(text)


@pytest.mark.model
@pytest.mark.parametrize(
    "text", ["", "[]", "1", '"a"', "{} ", " {}", '{"a"}', '{"a":1,}', '{"a":01}', '{"a":\n\n1}', "{'a':1}", '{"a":"\n"}', '{"a":NaN}']
)
def test_the_json_object_grammar_refuses_everything_else(vocab, text):
    assert not Constrained(vocab, JSON_OBJECT_GBNF).accepts(text)


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
    "additional true": ({"properties": {"a": {"const": 1}}, "additionalProperties": True}, ['{"a":1,"b":"x"}', '{"b":[1]}'], ['{"a":2}']),
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
}


@pytest.mark.model
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_accepts_what_fits_and_nothing_else(vocab, name):
    schema, good, bad = SCHEMAS[name]
    grammar = Constrained(vocab, schema_to_gbnf(schema))
    assert [text for text in good if not grammar.accepts(text)] == []
    assert [text for text in bad if grammar.accepts(text)] == []


@pytest.mark.model
@pytest.mark.parametrize(
    "pattern", [r"^[^\W\d_]{1,3}$", r"^(?:a|bc)*?d{2,}$", r"^\s\S$", r"^[\w.+-]+@[a-z]+\.[a-z]{2,3}$", "^(x|)y$", "^.$", "^[^a]$"]
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_pattern_accepts_what_it_matches(vocab, pattern, data):
    """ECMA's \\w, \\d and \\s are narrower than Python's, so that the examples stay within ASCII."""
    text = data.draw(st.from_regex(pattern.replace("$", r"\Z"), alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
    assert Constrained(vocab, schema_to_gbnf({"pattern": pattern})).accepts(json.dumps(text))


def test_a_large_flat_schema_converts_quickly():
    schema = {"type": "object", "properties": {f"field_{i}": {"type": "string"} for i in range(200)}, "required": []}
    assert len(schema_to_gbnf(schema)) < MAX_GRAMMAR_BYTES
