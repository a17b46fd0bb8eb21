"""What stays in a captured body, and what does not."""

import json
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.capture.redact import Redactor

SECRET = "Zebra"
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": f"Reads {SECRET}",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "description": SECRET, "enum": ["a", "b"]}},
            "required": ["name"],
        },
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "read_file", "arguments": f'{{"name": "{SECRET}"}}'}}
BODIES = [
    {
        "model": "demo",
        "messages": [
            {"role": "system", "content": f"Be {SECRET}."},
            {"role": "user", "name": SECRET, "content": [{"type": "text", "text": f"Hi {SECRET}"}]},
            {"role": "assistant", "content": None, "reasoning_content": SECRET, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": SECRET},
        ],
        "tools": [TOOL],
        "user": SECRET,
        "metadata": {"user_id": SECRET},
        "temperature": 0.5,
        "stream": True,
    },
    {"model": "demo", "system": [{"type": "text", "text": SECRET}], "max_tokens": 5,
     "messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"name": SECRET}}]}]},
    {"model": "demo", "instructions": SECRET, "input": SECRET, "prompt_cache_key": SECRET},
    {"model": "demo", "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": f'"{SECRET}"'},
                                {"type": "function_call_output", "call_id": "c", "output": SECRET}]},
    {"contents": [{"role": "user", "parts": [{"text": SECRET}, {"functionCall": {"name": "f", "args": {"type": SECRET}}}]}]},
    {"model": "demo", "prompt": [SECRET, f"{SECRET} {SECRET}"], "suffix": SECRET},
    {"model": "demo", "unheard_of": [{"deep": SECRET}]},
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_nothing_that_was_written_stays_and_the_shape_does(body):
    made = Redactor(b"k" * 32).body(body)
    assert SECRET.lower() not in json.dumps(made).lower()
    assert shape(made) == shape(body)
    assert made.get("model") == body.get("model")


def test_what_says_how_a_request_is_made_stays():
    made = Redactor(b"k" * 32).body(BODIES[0])
    assert [one["role"] for one in made["messages"]] == ["system", "user", "assistant", "tool"]
    function = made["tools"][0]["function"]
    assert function["name"] == "read_file"
    assert function["parameters"]["required"] == ["name"]
    assert function["parameters"]["properties"]["name"]["enum"] == ["a", "b"]
    assert json.loads(made["messages"][2]["tool_calls"][0]["function"]["arguments"]).keys() == {"name"}
    assert made["messages"][3]["tool_call_id"] == made["messages"][2]["tool_calls"][0]["id"] == "call_1"


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_what_texts_share_they_share_afterwards(common, a, b):
    redactor = Redactor(b"k" * 32)
    first, second = (redactor.text(f"{common}\n{rest}") for rest in (a, b))
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert n >= len(redactor.text(common + "\n"))
    assert redactor.text(common) == redactor.text(common)


def test_another_key_makes_other_words():
    text = "several words that somebody wrote in twenty twenty six"
    assert Redactor(b"a" * 32).text(text) != Redactor(b"b" * 32).text(text)


def test_different_short_numbers_stay_different():
    redactor = Redactor(b"k" * 32)
    numbers = [f"{i}" for i in range(10)] + [f"{i:02}" for i in range(100)]
    made = [redactor.text(number) for number in numbers]
    assert len(set(made)) == len(numbers)
    assert [len(number) for number in made] == [len(number) for number in numbers]


@pytest.mark.parametrize("body", [{"prompt": [1, 2]}, {"prompt": ["a", [1]]}, {"input": [[1]]}])
def test_token_ids_cannot_be_replaced(body):
    with pytest.raises(ValueError, match="token ids"):
        Redactor(b"k" * 32).body(body)


def shape(value):
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(one) for one in value] if isinstance(value, list) else type(value)
