"""What the templates of real models make of two calls in the history, which is what the models
write: each family's format reads the same calls out of it.
"""

import json

import pytest

from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolSpec, collect_parts
from erllama.chat.tool_formats.gemma import GEMMA4
from erllama.chat.tool_formats.pythonic import LFM2
from erllama.chat.tool_formats.tagged_format import (
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    GLM,
    GLM_FLAT,
    HUNYUAN3,
    KIMI_K3,
    LING,
    MINICPM5,
    MINIMAX_M2,
    MINIMAX_M3,
    QWEN3_CODER,
    SEED,
    STEP,
)
from tests.support.llama_cpp_files import real_template
from tests.support.tool_replies import run

FORMATS = {
    "ByteDance-Seed-OSS": SEED,
    "GLM-4.6": GLM,
    "GLM-4.7-Flash": GLM_FLAT,
    "Kimi-K3": KIMI_K3,
    "LFM2.5-8B-A1B": LFM2,
    "MiniMax-M2": MINIMAX_M2,
    "MiniMax-M3": MINIMAX_M3,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": QWEN3_CODER,
    "Qwen3-Coder": QWEN3_CODER,
    "Qwen3.5-4B": QWEN3_CODER,
    "Spark2.5": GLM_FLAT,
    "StepFun3.5-Flash": STEP,
    "deepseek-ai-DeepSeek-V3.2": DEEPSEEK_V3_2,
    "deepseek-ai-DeepSeek-V4": DEEPSEEK_V4,
    "deepseek-ai-DeepSeek-V4-Flash-0731": DEEPSEEK_V4,
    "google-gemma-4-31B-it": GEMMA4,
    "google-gemma-4-31B-it-interleaved": GEMMA4,
    "inclusionai-ling-3.0-flash": LING,
    "openbmb-MiniCPM5-1B": MINICPM5,
    "poolside-Laguna-S-2.1": GLM_FLAT,
    "poolside-Laguna-XS-2.1": GLM,
    "poolside-Laguna-XS.2": GLM,
    "tencent-Hy3": HUNYUAN3,
}
ARGUMENTS = {
    "city": 'x <b>\n& "q"',
    "flag": True,
    "list": ["x", None],
    "n": 3,
    "obj": {"a": [1.5, False], "b": "q"},
}
TYPES = {"city": "string", "flag": "boolean", "list": "array", "n": "integer", "obj": "object"}
PARAMETERS = {
    "f": {"type": "object", "properties": {key: {"type": name, "description": "d"} for key, name in TYPES.items()}},
    "g": {"type": "object", "properties": {}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
    for name, parameters in PARAMETERS.items()
]
CALLS = [
    {"id": f"call_{name}aaaaaaa", "type": "function", "function": {"name": name, "arguments": arguments}}
    for name, arguments in (("f", ARGUMENTS), ("g", {}))
]
HISTORY = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "xTextx", "tool_calls": CALLS},
    *({"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": "xResultx"} for call in CALLS),
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_calls_are_read_as_they_are(name):
    tool_format = FORMATS[name]
    text = ChatTemplate(real_template(name), bos="<bos>", eos="<eos>").render(HISTORY, tools=TOOLS)
    begin = text.rindex("xTextx")
    reply = text[begin : text.index("xResultx", begin)]
    specs = [ToolSpec(tool, parameters) for tool, parameters in PARAMETERS.items()]
    parts = run(tool_format, [reply], specs)
    assert run(tool_format, list(reply), specs) == parts
    found = collect_parts(parts)
    # what MiniMax M3's template writes of a null is what it writes of an empty text
    arguments = ARGUMENTS | {"list": ["x", ""]} if tool_format is MINIMAX_M3 else ARGUMENTS
    assert [(call.name, json.loads(call.arguments_json)) for call in found.calls] == [("f", arguments), ("g", {})]
    assert found.content.startswith("xTextx")
