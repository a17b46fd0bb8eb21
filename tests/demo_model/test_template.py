"""The chat template: what training renders is what a server renders."""

import random

import jinja2
import pytest

from demo_model import conversations
from demo_model.entities import Side
from demo_model.template import CHAT_TEMPLATE, render

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


def test_a_chat_without_system_message_gets_none():
    text = render([{"role": "user", "content": "Hello!"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_message_comes_first():
    text = render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_tools_are_listed_in_the_system_turn_one_per_line():
    text = render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], tools=[TOOL, TOOL])
    system = text.split("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    listed = system.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert (
        listed
        == [
            '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}'
        ]
        * 2
    )


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_a_call_and_its_result_take_the_hermes_form(arguments):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    assert render(messages).endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    )


def test_results_of_parallel_calls_share_one_user_turn():
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "rainy"},
    ]
    assert render(messages).endswith(
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response><|im_end|>\n"
    )


def test_the_prompt_of_every_turn_is_a_prefix_of_the_training_text():
    for seed in range(60):
        made = conversations.generate(random.Random(seed), Side.TRAIN, budget=500, count=lambda text: len(text) // 3)
        whole = render(made.messages, tools=made.tools)
        for index, message in enumerate(made.messages):
            if message["role"] == "assistant":
                prompt = render(made.messages[:index], tools=made.tools, add_generation_prompt=True)
                assert whole.startswith(prompt)


def test_every_block_tag_strips_the_whitespace_around_itself():
    # So the text is the same with and without trim_blocks and lstrip_blocks.
    plain = jinja2.Environment().from_string(CHAT_TEMPLATE)
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    assert plain.render(messages=messages, add_generation_prompt=True) == render(messages, add_generation_prompt=True)
