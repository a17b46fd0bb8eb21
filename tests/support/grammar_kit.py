"""Constraints against a vocabulary of bytes: whether they accept a text, and how they are refused."""

import numpy as np
import pytest

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind
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


def references(n, step, last):
    """A schema whose definitions refer to each other in one chain."""
    chained = {f"a{i}": step({"$ref": f"#/$defs/a{i + 1}"}) for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**chained, f"a{n}": last}}


def chain(body, last, n=30):
    """root -> a0 -> a1 ... -> a<n>, where every step is `body` of the next rule."""
    steps = [f"a{i} ::= " + body.replace("X", f"a{i + 1}") for i in range(n)]
    return "\n".join(["root ::= a0", *steps, f"a{n} ::= {last}"])


def follow(matcher, letter, n):
    """Write `letter` up to `n` times, asking for all allowed tokens before each."""
    for _ in range(n):
        matcher.allowed(len(TABLE.pieces))
        if not matcher.allows(ord(letter)):
            break
        matcher.accept(ord(letter))


_SHORT = frozenset(b'abc:,]}"0123456789')


def drawn(constraint, draw):
    """A reply that a model writes at random, which prefers what is short; None for one without an
    end.
    """
    matcher, reply = COMPILER.matcher(constraint), b""
    while len(reply) < 400:
        tokens = [t for t in np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist() if t >= 256 or 32 <= t < 127]
        short = [token for token in tokens if token in _SHORT or token in TABLE.eog]
        token = draw.choice(short if short and draw.random() < 0.8 else tokens)
        if token in TABLE.eog:
            return reply.decode()
        matcher.accept(token)
        reply += TABLE.pieces[token]
    return None
