"""The deepest texts that the limits let through compile, on a thread with the stack for them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES, Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from tests.support.grammar_kit import (
    TABLE,
    chain,
    follow,
    gbnf,
    references,
    schema_of,
)


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
