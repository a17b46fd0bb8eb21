"""The templates of real models: which tool format is chosen for each, by what they write, and that it
reads the calls that they write, which is what the models write.
"""

import json

import pytest

from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolSpec, collect_parts
from erllama.chat.tool_formats.choose import FORMATS, choose_format, format_named, opens_reasoning
from erllama.errors import InvalidParameter
from tests.support.llama_cpp_files import real_template, real_templates
from tests.support.tool_replies import run

CHOSEN = {
    "Apertus-8B-Instruct": "apertus",
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "ByteDance-Seed-OSS": "seed-oss",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command-r-plus",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "GLM-4.6": "glm-4.5",
    "GLM-4.7-Flash": "glm-4.7",
    "GigaChat3-10B-A1.8B": "gigachat-3",
    "GigaChat3.1-10B-A1.8B": "gigachat-3.1",
    "HuggingFaceTB-SmolLM3-3B": "hermes",
    "Kimi-K2-Instruct": "kimi-k2",
    "Kimi-K2-Thinking": "kimi-k2",
    "Kimi-K3": "kimi-k3",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiMo-VL": "hermes",
    "MiniMax-M1": "minimax-m1",
    "MiniMax-M2": "minimax-m2",
    "MiniMax-M3": "minimax-m3",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen3-coder",
    "NVIDIA-Nemotron-Nano-v2": "nemotron-nano-v2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3-coder",
    "Qwen3.5-4B": "qwen3-coder",
    "Reka-Edge": "hermes",
    "Spark2.5": "glm-4.7",
    "StepFun3.5-Flash": "step-3.5",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-v3",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-v3",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1",
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.2",
    "deepseek-ai-DeepSeek-V4": "deepseek-v4",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek-v4",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
    "google-gemma-2-2b-it": "hermes",
    "google-gemma-4-31B-it": "gemma-4",
    "google-gemma-4-31B-it-interleaved": "gemma-4",
    "ibm-granite-granite-3.3-2B-Instruct": "granite-3",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "inclusionai-ling-3.0-flash": "ling-3",
    "llama-cpp-deepseek-r1": "deepseek-v3",
    "llama-cpp-rwkv-world": "hermes",
    "meetkai-functionary-medium-v3.1": "functionary-v3.1",
    "meetkai-functionary-medium-v3.2": "functionary-v3.2",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama-3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-3",
    "microsoft-Phi-3.5-mini-instruct": "hermes",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-nemo",
    "moonshotai-Kimi-K2": "kimi-k2",
    "muse-glimmer": "muse-glimmer",
    "openai-gpt-oss-120b": "harmony",
    "openbmb-MiniCPM5-1B": "minicpm5",
    "poolside-Laguna-S-2.1": "glm-4.7",
    "poolside-Laguna-XS-2.1": "glm-4.5",
    "poolside-Laguna-XS.2": "glm-4.5",
    "tencent-Hy3": "hunyuan-3",
    "unsloth-Apriel-1.5": "apriel",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "upstage-Solar-Open-100B": "solar",
}


def loaded(name):
    return ChatTemplate(real_template(name), bos="<BOS>", eos="<EOS>")


def test_all_templates_are_there():
    assert set(CHOSEN) == set(real_templates())


@pytest.mark.parametrize(("name", "chosen"), CHOSEN.items())
def test_a_real_template_tells_its_format(name, chosen):
    assert choose_format(loaded(name)).name == chosen


TYPES = {"city": "string", "flag": "boolean", "list": "array", "n": "integer", "obj": "object", "x": "number"}
PROPERTIES = {  # some templates ask for all of these keywords
    key: {"type": name, "description": "d", "items": {}, "additionalProperties": {}} for key, name in TYPES.items()
}
PARAMETERS = {
    "get_some": {"type": "object", "properties": PROPERTIES},
    "get_none": {"type": "object", "properties": {}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
    for name, parameters in PARAMETERS.items()
]
SPECS = [ToolSpec(name, parameters) for name, parameters in PARAMETERS.items()]
TEXT = ("get_some", {"city": 'x <b>\n& "q" \'s\' \\ é😀 {"a": 1} </c>\n\tend'})
NESTED = ("get_some", {
    "flag": True, "list": ["x", 1, {"k": [2]}], "n": -3, "obj": {"a": [1.5, False], "b": "q", "c": {"d": [[1], [2]]}}, "x": 0.5,
})  # fmt: skip
NONE = ("get_none", {})
EMPTY = ("get_some", {"city": "", "list": [], "obj": {"a": None}})
CASES = {
    "text": [TEXT], "nested": [NESTED], "no arguments": [NONE], "empty arguments": [EMPTY],
    "two": [TEXT, NESTED], "two, one without arguments": [NESTED, NONE],
}  # fmt: skip
WRITES_NO_NULL = "MiniMax-M3"
WRITES_NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}


def written(template, calls, **fields):
    """What the template makes of calls, from where a reply begins, and whether it begins inside of
    the reasoning.
    """
    ids = [f"call0000{number}" for number in range(len(calls))]
    user = {"role": "user", "content": "Hello."}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": one, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for one, (name, arguments) in zip(ids, calls, strict=True)
        ],
    }
    results = [
        {"role": "tool", "tool_call_id": one, "name": name, "content": "xResultx"}
        for one, (name, _) in zip(ids, calls, strict=True)
    ]
    prompt = template.render([user], tools=TOOLS)
    text = template.render([user, message | fields, *results], tools=TOOLS)
    begin = next((n for n, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))
    while begin < len(prompt) and begin and text[begin - 1] not in ">\n] ":
        begin -= 1  # the prompt says something of the reasoning: to the beginning of a mark
    return text[begin : text.index("xResultx", begin)], opens_reasoning(choose_format(template), prompt[:begin])


def fields_of(template):
    """A text and a thought beside the calls, as far as the template shows them."""
    text = {"content": "xTextx"} if template.traits.text_and_calls else {}
    thought = {template.traits.reasoning: "xThoughtx"} if template.traits.reasoning is not None else {}
    either = [one for one in (text, thought) if one]
    return [{}, *either, *([text | thought] if len(either) == 2 and choose_format(template).name != "harmony" else [])]


def test_templates_that_write_no_calls_are_known():
    assert {name for name in CHOSEN if loaded(name).traits.calls is None} == WRITES_NO_CALLS


@pytest.mark.parametrize("name", sorted(CHOSEN.keys() - WRITES_NO_CALLS))
def test_the_calls_of_a_real_template_are_read_as_they_are(name):
    template = loaded(name)
    tool_format = choose_format(template)
    for case, calls in CASES.items():
        if len(calls) > 1 and not template.traits.parallel:
            continue
        for fields in fields_of(template):
            reply, in_reasoning = written(template, calls, **fields)
            parts = run(tool_format, [reply], SPECS, in_reasoning=in_reasoning)
            assert run(tool_format, list(reply), SPECS, in_reasoning=in_reasoning) == parts, case
            found = collect_parts(parts)
            expected = calls
            if name == WRITES_NO_NULL and case == "empty arguments":
                expected = [("get_some", {"city": "", "list": [], "obj": {}})]
            assert [(call.name, json.loads(call.arguments_json)) for call in found.calls] == expected, (case, reply)
            # Harmony's template makes a thought of a text beside a call
            assert "content" not in fields or "xTextx" in found.content + found.reasoning, reply
            assert fields.keys() <= {"content"} or "xThoughtx" in found.reasoning, reply


@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_a_template_of_bare_objects_tells_its_keys(key):
    source = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}"
        "{% for call in message.get('tool_calls', []) %}"
        '{"name": "{{ call.function.name }}", "KEY": {{ call.function.arguments | tojson }}}{% endfor %}\n'
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ).replace("KEY", key)
    chosen = choose_format(ChatTemplate(source, bos="", eos=""))
    assert chosen.name == {"arguments": "json", "parameters": "llama-3"}[key]


def test_a_model_without_a_template_has_the_format_of_most():
    assert choose_format(ChatTemplate(None, bos="", eos="")).name == "hermes"


def test_formats_have_names_of_their_own():
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    assert all(format_named(one.name) is one for one in FORMATS)
    with pytest.raises(InvalidParameter, match="tool_format must be one of harmony"):
        format_named("nothing")
