"""Which tool format is chosen for the templates of real models, by what they write."""

import pytest

from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.choose import FORMATS, choose_format, format_named
from erllama.errors import InvalidParameter
from tests.support.llama_cpp_files import real_template

CHOSEN = {
    "Apertus-8B-Instruct": "apertus",
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command-r-plus",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "GigaChat3-10B-A1.8B": "gigachat-3",
    "GigaChat3.1-10B-A1.8B": "gigachat-3.1",
    "HuggingFaceTB-SmolLM3-3B": "hermes",
    "Kimi-K2-Instruct": "kimi-k2",
    "Kimi-K2-Thinking": "kimi-k2",
    "Kimi-K3": "kimi-k3",
    "MiMo-VL": "hermes",
    "MiniMax-M1": "minimax-m1",
    "MiniMax-M3": "minimax-m3",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "NVIDIA-Nemotron-Nano-v2": "nemotron-nano-v2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Reka-Edge": "hermes",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-v3",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-v3",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
    "google-gemma-2-2b-it": "hermes",
    "ibm-granite-granite-3.3-2B-Instruct": "granite-3",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
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
    "unsloth-Apriel-1.5": "apriel",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "upstage-Solar-Open-100B": "solar",
}


@pytest.mark.parametrize(("name", "chosen"), CHOSEN.items())
def test_a_real_template_tells_its_format(name, chosen):
    assert choose_format(ChatTemplate(real_template(name), bos="<BOS>", eos="<EOS>")).name == chosen


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
