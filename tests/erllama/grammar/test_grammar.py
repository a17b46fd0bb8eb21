"""Grammars, regular expressions and Lark: accepted texts are accepted, others are not, and whatever is
faulty or hostile is refused by name.
"""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import MAX_GRAMMAR_BYTES, Constraint, ConstraintKind
from erllama.grammar.expression import optional_parts
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable
from tests.support.grammar_kit import (
    COMPILER,
    CONTROL,
    END,
    MERGED,
    OTHER_END,
    TABLE,
    accepts,
    blamed,
    chain,
    follow,
    gbnf,
    refusal,
    schema_of,
    wrong,
)

# -- GBNF


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
        ("start: part", schema_of({"$ref": "x"}), "response_format"),
        ("start: part", gbnf("root ::= ("), "grammar"),
        ('start: %json {"type": "object"}', schema_of({}), "tools"),
    ],
)
def test_a_faulty_part_names_its_own_field(lark, part, param):
    assert refusal(lambda: Constraint(ConstraintKind.LARK, lark, "tools", (("part", part),))).param == param


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('start: "100%" | /%[a-z]+/ // %json is a comment', ["100%", "%a"], ["%json{}", "100"]),
        ("%llguidance {}\nstart: A+\nA: /a|b/", ["a", "ab"], ["", "c"]),
        ('%import common.INT\n%ignore / +/\nstart: INT "," INT', ["1,2", "1 , 2"], ["1 2", ","]),
        ("start: word?\nword: /[a-z]?/ /x?/", ["", "ax"], ["xxx"]),
    ],
)
def test_lark_of_a_client_holds_what_is_for_clients(text, good, bad):
    assert wrong(Constraint(ConstraintKind.LARK, text), good, bad) == ([], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('start: %json {"type": "object"}', "Lark may hold no %json, only %ignore and %import"),
        ("start: A\n%lark {}", "no %lark"),
        ("start: x\nx: y\n%llguidance {}", "no %llguidance"),
        ("start: A\nA: " + "B " * 20 + "\nB: " + "/.?/ " * 60, "more than 1000 parts"),
        ("start: A\nA: /" + "x?" * 1001 + "/", "more than 1000 parts"),
        ('start: A\nA: B "x"\nB: A', "a terminal contains itself"),
    ],
)
def test_lark_that_is_not_for_clients_is_refused(text, reason):
    error = refusal(lambda: Constraint(ConstraintKind.LARK, text, "guided_grammar"))
    assert error.param == "guided_grammar"
    assert reason in error.message


@pytest.mark.parametrize(
    ("expression", "n"),
    [
        ("", 0), ("abc[?*]\\?", 0), ("a?b*c{0,3}d{1,2}", 3), ("a?|b?c?", 2), ("(a?|b)c?", 2), ("(?:ab)?c", 1), ("((a?)?)?", 1),
        ("(|a)(a|)(a||b)", 3), ("a)b?", 1), ("(a?", 1),
    ],
)  # fmt: skip
def test_parts_that_may_be_left_out_are_counted(expression, n):
    assert optional_parts(expression) == n


@pytest.mark.parametrize(
    "constraint",
    [
        gbnf("root ::= " + ".? " * 20_000),
        gbnf("root ::= | .? " + ".? " * 20_000 + '"x" root "y"'),
        gbnf("root ::= " + "a " * 500 + "\na ::= " + '"b"? ' * 100),
        Constraint(ConstraintKind.REGEX, ".?" * 30_000),
        Constraint(ConstraintKind.REGEX, "(|a)" * 16_000),
    ],
)
def test_what_would_compile_for_minutes_is_refused_at_once(constraint):
    assert "more than 1000 parts of one expression may be left out" in refusal(lambda: constraint).message


def test_a_kind_that_nobody_knows_is_refused():
    with pytest.raises(InvalidParameter, match="one of gbnf, regex, json_schema, lark, got 'ebnf'"):
        Constraint("ebnf", "root ::= x")


def test_only_lark_has_parts():
    with pytest.raises(InvalidParameter, match="only Lark has parts"):
        Constraint(ConstraintKind.GBNF, "root ::= x", parts=(("x", gbnf("root ::= [a]")),))


# -- the matcher


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
