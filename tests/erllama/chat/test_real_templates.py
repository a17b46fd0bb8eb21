"""The chat templates of real models: what each can express itself, and that nothing which a client
sends is lost where it cannot.
"""

import json
from dataclasses import fields
from functools import cache

import pytest

from erllama.chat.template import ChatTemplate
from erllama.chat.traits import TemplateTraits, words_in_order
from tests.support.llama_cpp_files import real_template, real_templates

# Where a template differs from `TemplateTraits()`, which can do everything but show reasoning.
TRAITS = {
    "Apertus-8B-Instruct": "bare_tools=False system=first system_after_result=False developer=False",
    "Apriel-1.6-15b-Thinker-fixed": "developer=False",
    "Bielik-11B-v3.0-Instruct": "system=first system_after_result=False developer=False reasoning=reasoning_content",
    "ByteDance-Seed-OSS": "bare_tools=False raw_arguments=False reasoning=reasoning_content",
    "Cohere2MoE": "bare_tools=False text_and_calls=False developer=False reasoning=reasoning_content",
    "CohereForAI-c4ai-command-r-plus-tool_use": "bare_tools=False no_tools=empty developer=False",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "bare_tools=False text_and_calls=False developer=False reasoning=reasoning_content",
    "GLM-4.6": "raw_arguments=False developer=False reasoning=reasoning_content",
    "GLM-4.7-Flash": "raw_arguments=False developer=False reasoning=reasoning_content",
    "GigaChat3-10B-A1.8B": "parallel=False",
    "GigaChat3.1-10B-A1.8B": "parallel=False",
    "HuggingFaceTB-SmolLM3-3B": "tools=False bare_tools=False calls=None raw_arguments=False text_and_calls=False parallel=False system=first system_after_result=False developer=False",
    "Kimi-K2-Instruct": "",
    "Kimi-K2-Thinking": "reasoning=reasoning_content",
    "Kimi-K3": "developer=False reasoning=reasoning_content",
    "LFM2-8B-A1B": "calls=None raw_arguments=False text_and_calls=False parallel=False",
    "LFM2.5-8B-A1B": "raw_arguments=False reasoning=thinking",
    "LFM2.5-Instruct": "calls=None raw_arguments=False text_and_calls=False parallel=False",
    "MiMo-VL": "developer=False",
    "MiniMax-M1": "text_and_calls=False system=first system_after_result=False developer=False",
    "MiniMax-M2": "raw_arguments=False system=first system_after_result=False developer=False reasoning=reasoning_content",
    "MiniMax-M3": "raw_arguments=False system=first system_after_result=False reasoning=reasoning_content",
    "Mistral-Small-3.2-24B-Instruct-2506": "text_and_calls=False short_ids=True system=first developer=False alternates=True user_after_result=False user_first=True",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "raw_arguments=False reasoning=reasoning_content",
    "NVIDIA-Nemotron-Nano-v2": "system=first system_after_result=False developer=False",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "bare_tools=False no_tools=empty text_and_calls=False developer=False",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "bare_tools=False no_tools=empty text_and_calls=False developer=False",
    "Qwen-QwQ-32B": "developer=False",
    "Qwen-Qwen2.5-7B-Instruct": "developer=False",
    "Qwen-Qwen3-0.6B": "developer=False reasoning=reasoning_content",
    "Qwen3-Coder": "raw_arguments=False",
    "Qwen3.5-4B": "raw_arguments=False system=first system_after_result=False developer=False reasoning=reasoning_content",
    "Reka-Edge": "system=first system_after_result=False",
    "Spark2.5": "raw_arguments=False developer=False reasoning=reasoning_content",
    "StepFun3.5-Flash": "raw_arguments=False developer=False reasoning=reasoning_content",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "tools=False bare_tools=False calls=text call_content=null text_and_calls=False system=first system_after_result=False developer=False",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "tools=False bare_tools=False text_and_calls=False system=first system_after_result=False developer=False",
    "deepseek-ai-DeepSeek-V3.1": "tools=False bare_tools=False system=first system_after_result=False developer=False",
    "deepseek-ai-DeepSeek-V3.2": "raw_arguments=False system=first system_after_result=False developer=False",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "raw_arguments=False system=first system_after_result=False",
    "deepseek-ai-DeepSeek-V4": "raw_arguments=False system=first system_after_result=False",
    "fireworks-ai-llama-3-firefunction-v2": "no_tools=empty developer=False",
    "google-gemma-2-2b-it": "tools=False bare_tools=False calls=None raw_arguments=False text_and_calls=False parallel=False results=False system=None system_after_result=False developer=False alternates=True user_after_result=False user_first=True",
    "google-gemma-4-31B-it-interleaved": "text_and_calls=False reasoning=reasoning_content",
    "google-gemma-4-31B-it": "text_and_calls=False reasoning=reasoning_content",
    "ibm-granite-granite-3.3-2B-Instruct": "calls=None raw_arguments=False text_and_calls=False parallel=False",
    "ibm-granite-granite-4.0": "developer=False",
    "ibm-granite-granite-4.1": "developer=False",
    "inclusionai-ling-3.0-flash": "raw_arguments=False developer=False reasoning=reasoning_content",
    "llama-cpp-deepseek-r1": "text_and_calls=False system=first system_after_result=False developer=False",
    "llama-cpp-rwkv-world": "tools=False bare_tools=False calls=None raw_arguments=False text_and_calls=False parallel=False results=False system=first system_after_result=False developer=False user_after_result=False",
    "meetkai-functionary-medium-v3.1": "bare_tools=False",
    "meetkai-functionary-medium-v3.2": "calls=text",
    "meta-llama-Llama-3.1-8B-Instruct": "text_and_calls=False parallel=False",
    "meta-llama-Llama-3.2-3B-Instruct": "text_and_calls=False parallel=False",
    "meta-llama-Llama-3.3-70B-Instruct": "text_and_calls=False parallel=False",
    "microsoft-Phi-3.5-mini-instruct": "tools=False bare_tools=False calls=None raw_arguments=False text_and_calls=False parallel=False results=False system_after_result=False developer=False user_after_result=False",
    "mistralai-Ministral-3-14B-Reasoning-2512": "system=first system_after_result=False developer=False alternates=True user_after_result=False user_first=True",
    "mistralai-Mistral-Nemo-Instruct-2407": "text_and_calls=False short_ids=True system=None system_after_result=False developer=False alternates=True user_after_result=False user_first=True",
    "moonshotai-Kimi-K2": "",
    "muse-glimmer": "bare_tools=False raw_arguments=False text_and_calls=False developer=False reasoning=reasoning_content",
    "openai-gpt-oss-120b": "bare_tools=False parallel=False system=first system_after_result=False reasoning=thinking reasoning_and_text=False",
    "openbmb-MiniCPM5-1B": "raw_arguments=False developer=False reasoning=reasoning_content",
    "poolside-Laguna-S-2.1": "raw_arguments=False developer=False reasoning=reasoning_content",
    "poolside-Laguna-XS-2.1": "raw_arguments=False developer=False reasoning=reasoning_content",
    "poolside-Laguna-XS.2": "raw_arguments=False developer=False reasoning=reasoning_content",
    "tencent-Hy3": "raw_arguments=False system=first system_after_result=False developer=False reasoning=reasoning_content",
    "unsloth-Apriel-1.5": "developer=False",
    "unsloth-mistral-Devstral-Small-2507": "developer=False",
    "upstage-Solar-Open-100B": "text_and_calls=False system=first system_after_result=False developer=False reasoning=reasoning",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tells the {name}.",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]},
        },
    }
    for name in ("weather", "clock")
]
SYSTEM = {"role": "system", "content": "xSystemx"}
SYSTEM_2 = {"role": "system", "content": "xLaterx"}
USER = {"role": "user", "content": "xUserx"}
USER_2 = {"role": "user", "content": "xAgainx"}
REPLY = {"role": "assistant", "content": "xReplyx"}


def calling(*names, content=None, first=0, **more):
    calls = [
        {
            "id": f"call_{first + n}",
            "type": "function",
            "function": {"name": name, "arguments": f'{{"where": "xIn{n}x"}}'},
        }
        for n, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(number=0):
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": f"xResult{number}x"}


# What is sent, with tools or without, and the words of it that must come out in this order.
CONVERSATIONS = {
    "user": ([USER], None, "xUserx"),
    "system": ([SYSTEM, USER], None, "xSystemx xUserx"),
    "turns": ([SYSTEM, USER, REPLY, USER_2], None, "xSystemx xUserx xReplyx xAgainx"),
    "developer": ([{"role": "developer", "content": "xDeveloperx"}, USER], None, "xDeveloperx xUserx"),
    "system in the middle": ([SYSTEM, USER, REPLY, SYSTEM_2, USER_2], None, "xSystemx xUserx xReplyx xLaterx xAgainx"),
    "several systems": ([SYSTEM, SYSTEM_2, USER], None, "xSystemx xLaterx xUserx"),
    "parts": (
        [USER | {"content": [{"type": "text", "text": "xAx"}, {"type": "text", "text": "xBx"}]}],
        None,
        "xAx xBx",
    ),
    "users in a row": ([USER, USER_2], None, "xUserx xAgainx"),
    "assistant first": ([REPLY, USER], None, "xReplyx xUserx"),
    "tools": ([SYSTEM, USER], TOOLS, "weather clock"),
    "null content": ([USER, calling("weather"), result()], TOOLS, "xUserx xIn0x xResult0x"),
    "empty content": ([USER, calling("weather", content=""), result()], TOOLS, "xUserx xIn0x xResult0x"),
    "text and call": ([USER, calling("weather", content="xTextx"), result()], TOOLS, "xUserx xTextx xIn0x xResult0x"),
    "parallel": ([USER, calling("weather", "clock"), result(0), result(1)], TOOLS, "xUserx xIn0x"),
    "user behind a result": ([USER, calling("weather"), result(), USER_2], TOOLS, "xIn0x xResult0x xAgainx"),
    "system behind a result": (
        [SYSTEM, USER, calling("weather"), result(), SYSTEM_2],
        TOOLS,
        "xIn0x xResult0x xLaterx",
    ),
    "second turn": ([USER, calling("weather"), result(), REPLY, USER_2], TOOLS, "xIn0x xResult0x xReplyx xAgainx"),
}
# A loop of calls as coding agents send it: a system message behind every result.
LOOP = [
    *[SYSTEM, USER],
    *[message for n in range(3) for message in (calling("weather", first=n), result(n), SYSTEM_2)],
    *[REPLY, USER_2, calling("clock", first=3), result(3), SYSTEM_2],
]
# Templates that write something else where a conversation ends, and so change it with the next turn.
CHANGES_ITS_END = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "instructions after the last message",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "its plan only within the last loop",
    "Mistral-Small-3.2-24B-Instruct-2506": "the tools before the user's last message",
    "mistralai-Mistral-Nemo-Instruct-2407": "the tools before the user's last message",
    "StepFun3.5-Flash": "empty reasoning only within the last loop",
    "microsoft-Phi-3.5-mini-instruct": "an end of text after the last message",
}


# Templates that write tools before the client's system text.
TOOLS_FIRST = {
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GLM-4.6",
    "GLM-4.7-Flash",
    "Kimi-K2-Instruct",
    "Kimi-K2-Thinking",
    "Kimi-K3",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen3.5-4B",
    "Spark2.5",
    "llama-cpp-deepseek-r1",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2",
}


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(real_template(name), bos="<BOS>", eos="<EOS>")


def test_every_template_of_the_package_is_in_the_table():
    assert set(real_templates()) == set(TRAITS)


@pytest.mark.parametrize("name", TRAITS)
def test_what_a_template_can_express_is_found_out(name):
    traits, usual = template(name).traits, TemplateTraits()
    found = {field.name: getattr(traits, field.name) for field in fields(traits)}
    assert " ".join(f"{k}={v}" for k, v in found.items() if v != getattr(usual, k)) == TRAITS[name]


@pytest.mark.parametrize("name", TRAITS)
def test_nothing_that_a_client_sends_is_lost(name):
    for case, (messages, tools, words) in CONVERSATIONS.items():
        text = template(name).render(messages, tools=tools)
        assert words_in_order(words.split(), text) or (case == "tools" and all(w in text for w in words.split())), case


# Those that show neither tools nor calls, so that the order is ours.
TOOLS_FIRST_BY_US = {
    "HuggingFaceTB-SmolLM3-3B",
    "google-gemma-2-2b-it",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}


def test_the_order_of_tools_and_system_text_is_the_templates_where_it_has_one():
    """docs/internals.md has the numbers."""
    texts = {name: template(name).render([SYSTEM, USER], tools=TOOLS) for name in TRAITS}
    first = {name for name, text in texts.items() if text.index("weather") < text.index("xSystemx")}
    assert first == TOOLS_FIRST | TOOLS_FIRST_BY_US
    assert {template(name).traits.tools for name in TOOLS_FIRST} == {True}
    assert {(template(name).traits.tools, template(name).traits.calls) for name in TOOLS_FIRST_BY_US} == {(False, None)}
    assert (len(texts), len(TOOLS_FIRST), len(TOOLS_FIRST_BY_US)) == (70, 16, 4)


@pytest.mark.parametrize("name", sorted(TOOLS_FIRST | TOOLS_FIRST_BY_US))
def test_sessions_with_other_system_texts_share_the_prompt_up_to_the_end_of_the_tools(name):
    one, other = (
        template(name).render([SYSTEM | {"content": text}, USER], tools=TOOLS).partition(text)[0]
        for text in ("xOnex", "xTwox")
    )
    assert one == other
    assert "weather" in one
    assert "Tells the clock." in one


@pytest.mark.parametrize("name", TRAITS)
def test_parallel_calls_and_their_results_are_all_there(name):
    text = template(name).render([USER, calling("weather", "clock"), result(0), result(1)], tools=TOOLS)
    assert all(word in text for word in ("xIn0x", "xIn1x", "xResult0x", "xResult1x"))


@pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if "reasoning=" in traits])
def test_reasoning_that_a_template_shows_is_shown_whatever_a_client_calls_it(name):
    for field in ("reasoning_content", "reasoning"):
        text = template(name).render([USER, calling("weather", **{field: "xThoughtx"}), result()], tools=TOOLS)
        assert text.count("xThoughtx") == 1


@pytest.mark.parametrize("name", TRAITS)
def test_a_call_may_have_reasoning_and_text_beside_it(name):
    message = calling("weather", reasoning_content="xThoughtx") | {"content": "xSaidx"}
    text = template(name).render([USER, message, result()], tools=TOOLS)
    assert words_in_order(["xSaidx", "xResult0x"], text)
    assert "xIn0x" in text


@pytest.mark.parametrize("name", TRAITS)
def test_arguments_that_were_cut_off_do_not_end_a_conversation(name):
    cut = calling("weather")
    cut["tool_calls"][0]["function"]["arguments"] = '{"where": "xCutx'
    assert "xCutx" in template(name).render([USER, cut, result()], tools=TOOLS)


@pytest.mark.parametrize("name", TRAITS)
def test_a_last_message_of_the_assistant_can_be_continued(name):
    begun = [USER, {"role": "assistant", "content": "xBegunx yes "}]
    conversation = template(name).conversation(begun, ending="continued")
    text = template(name).render_conversation(conversation)
    assert text.endswith("xBegunx yes ")
    assert words_in_order(["xUserx", "xBegunx"], text)


@pytest.mark.parametrize("name", sorted(TRAITS.keys() - CHANGES_ITS_END))
def test_each_turn_of_a_loop_begins_with_the_turn_before(name):
    before = ""
    for end, message in enumerate(LOOP, 1):
        if message["role"] != "assistant" and (end == len(LOOP) or LOOP[end]["role"] == "assistant"):
            text = template(name).render(LOOP[:end], tools=TOOLS, add_generation_prompt=False)
            assert text.startswith(before)
            before = text


@pytest.mark.parametrize("name", TRAITS)
def test_a_tool_needs_neither_parameters_nor_descriptions(name):
    tools = [
        {"type": "function", "function": {"name": "xBarex"}},
        {
            "type": "function",
            "function": {"name": "xPlainx", "parameters": {"type": "object", "properties": {"a": {}}}},
        },
    ]
    text = template(name).render([USER], tools=tools)
    assert "xBarex" in text
    assert "xPlainx" in text


def test_a_message_as_text_or_as_one_block_is_the_same_prompt():
    blocks = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in (SYSTEM, USER)]
    for name in TRAITS:
        assert template(name).render(blocks) == template(name).render([SYSTEM, USER])


def test_arguments_are_shown_as_the_object_that_they_are():
    for name in TRAITS:
        text = template(name).render([USER, calling("weather"), result()], tools=TOOLS)
        assert json.dumps('{"where": "xIn0x"}')[1:-1] not in text
        assert "{'where': 'xIn0x'" not in text
