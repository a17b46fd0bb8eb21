"""What the constraints of replies with tools admit: exactly what the splitter reads as calls."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from erllama.chat.tool_formats.base import ToolSpec, split_reply
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.tool_formats.lark_writer import forced_calls, free_reply, reasoned_reply
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import TokenTable

END, OPEN, CLOSE, THINK, THOUGHT = 256, 257, 258, 259, 260
CONTROLS = {"<tool_call>": OPEN, "</tool_call>": CLOSE, "<think>": THINK, "</think>": THOUGHT}
NAMES = {token: text for text, token in CONTROLS.items()}
TABLE = TokenTable(
    [*(bytes([byte]) for byte in range(256)), b"<end>", *(text.encode() for text in CONTROLS)],
    frozenset({END, *CONTROLS.values()}),
    frozenset({END}),
)
COMPILER = GrammarCompiler(lambda: TABLE)
TOOLS = [
    ToolSpec(
        "weather", {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
    ),
    ToolSpec("clock"),
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "wether"'


def ids_of(text, controls):
    ids = []
    while text:
        name = next((name for name in controls if text.startswith(name)), None)
        ids += [controls[name]] if name else text[0].encode()
        text = text[len(name) :] if name else text[1:]
    return ids


def reach(constraint, text, controls):
    """How many characters or tokens are admitted, and whether the reply may end there."""
    matcher = COMPILER.matcher(constraint)
    for n, token in enumerate(ids_of(text, controls)):
        if not matcher.allows(token):
            return n, False
        matcher.accept(token)
    return len(ids_of(text, controls)), matcher.allows(END)


def admits(constraint, text, controls):
    return reach(constraint, text, controls) == (len(ids_of(text, controls)), True)


@pytest.fixture(params=[{}, CONTROLS], ids=["text", "control tokens"])
def controls(request):
    return request.param


@pytest.mark.parametrize(
    ("text", "ok"),
    [("Hello <b>", True), ("", True), (CALL, True), (f"Well.\n{CALL}", True), (f"{CALL}\n{CLOCK}\nDone.", True), (WRONG, False),
     (f"{CALL} {WRONG}", False), (f"<think>I could {WRONG}</think>\n\n{CALL}", True), ("<think>Hm</think>Hi", True),
     ("<tool_call>\nno", False)],
)  # fmt: skip
def test_a_free_reply_is_any_text_with_sound_calls(text, ok, controls):
    if controls and text.startswith("<think>I"):
        pytest.skip("a control token in the reasoning is no text")
    assert admits(free_reply(HERMES, TOOLS, controls, parallel=True), text, controls) == ok


def test_a_free_reply_without_parallel_calls_ends_with_the_first(controls):
    constraint = free_reply(HERMES, TOOLS, controls, parallel=False)
    assert admits(constraint, f"Well.\n{CALL}", controls)
    assert not admits(constraint, f"{CALL}\n{CLOCK}", controls)
    assert not admits(constraint, f"{CALL} Done.", controls)


def test_reasoning_that_the_prompt_opened_ends_before_anything_else(controls):
    free = free_reply(HERMES, TOOLS, controls, parallel=True, in_reasoning=True)
    forced = forced_calls(HERMES, TOOLS, controls, parallel=True, in_reasoning=True)
    assert admits(free, f"Hm.\n</think>\n\n{CALL}", controls)
    assert admits(forced, f"Hm.\n</think>\n\n{CALL}", controls)
    assert not admits(forced, CALL, controls)


def test_a_reply_of_a_form_follows_the_reasoning_that_the_prompt_opened(controls):
    number = Constraint.of_schema({"type": "integer"}, "response_format")
    constraint = reasoned_reply(HERMES, controls, number)
    assert constraint.param == "response_format"
    assert admits(constraint, "Let me count: 1, 2.\n</think>\n\n12", controls)
    assert not admits(constraint, "12", controls)
    assert not admits(constraint, "Hm.</think>twelve", controls)
    assert reasoned_reply(replace(HERMES, reasoning=None), controls, number) is number


def test_forced_calls_are_all_there_is(controls):
    constraint = forced_calls(HERMES, TOOLS, controls, parallel=True)
    assert admits(constraint, f"{CALL}\n{CLOCK}", controls)
    assert not admits(constraint, "Well.", controls)
    assert not admits(constraint, "", controls)
    assert not admits(forced_calls(HERMES, TOOLS, controls, parallel=False), f"{CALL}\n{CLOCK}", controls)


def test_calls_or_a_reply(controls):
    reply = Constraint(ConstraintKind.REGEX, "yes|no", "response_format")
    constraint = forced_calls(HERMES, TOOLS, controls, parallel=True, reply=reply)
    assert admits(constraint, "yes", controls)
    assert admits(constraint, CALL, controls)
    assert not admits(constraint, "maybe", controls)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_admitted_is_read_as_calls(seed, controls):
    matcher, draw = COMPILER.matcher(forced_calls(HERMES, TOOLS, controls, parallel=True)), random.Random(seed)
    reply = b""
    while len(reply) < 4000:
        allowed = np.flatnonzero(matcher.allowed(len(TABLE.pieces))).tolist()
        token = END if END in allowed and draw.random() < 0.3 else draw.choice(allowed)
        if token == END:
            break
        matcher.accept(token)
        reply += TABLE.pieces[token]
    read = split_reply(HERMES, reply.decode())
    assert read.content == ""
    assert read.calls
    for call in read.calls:
        assert call.name in ("weather", "clock")
        arguments = json.loads(call.arguments_json)
        assert call.name == "clock" or isinstance(arguments["city"], str)


def test_a_schema_that_cannot_be_followed_names_the_tools():
    with pytest.raises(InvalidParameter) as caught:
        COMPILER.check(forced_calls(HERMES, [ToolSpec("f", {"not": {}})], {}, parallel=True))
    assert caught.value.param == "tools"
