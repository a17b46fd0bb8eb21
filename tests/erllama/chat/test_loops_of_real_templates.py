"""Agent loops over the templates of real models: each prompt goes on where the reply before it
ended, whatever the template makes of a history.
"""

from __future__ import annotations

import json

import pytest

from cache_store.format.keys import root_key
from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolCall
from erllama.chat.tool_formats.choose import choose_format
from erllama.chat.transcript import transcript_block
from erllama.chat.transcript_prompt import transcript_prompt
from tests.support.llama_cpp_files import real_template, real_vocab

ROOT = root_key("test")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": PARAMETERS}}
    for name in ("get_weather", "get_time")
]
TURNS = [["get_weather"], ["get_time"], ["get_weather"], ["get_time", "get_weather"], ["get_weather", "get_weather"]]

# in these a reply of a history does not begin as the prompt ended that it answered
OTHER_OPENING = [
    "Apertus-8B-Instruct",
    "Bielik-11B-v3.0-Instruct",
    "GLM-4.6",
    "Kimi-K2-Thinking",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-QwQ-32B",
    "Reka-Edge",
    "deepseek-ai-DeepSeek-V3.2",
    "google-gemma-4-31B-it",
    "google-gemma-4-31B-it-interleaved",
    "llama-cpp-rwkv-world",
    "poolside-Laguna-XS-2.1",
]
# and these write a call in another place than text, or want it before its result
OTHER_PLACE = [
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Kimi-K2-Instruct",
    "meetkai-functionary-medium-v3.1",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "tencent-Hy3",
    "upstage-Solar-Open-100B",
]
ALIKE = ["Qwen-Qwen3-0.6B", "Qwen3-Coder", "deepseek-ai-DeepSeek-V3.1", "unsloth-mistral-Devstral-Small-2507"]


@pytest.fixture(scope="module")
def vocab():
    vocab = real_vocab("gpt-2")
    yield vocab
    vocab.close()


class Server:
    """What the ingress does with a model that has this template."""

    def __init__(self, name, vocab, *, keeps_reasoning=False, **variables):
        self.vocab, self.keeps_reasoning, self.variables, self.store = vocab, keeps_reasoning, variables, {}
        template = ChatTemplate(real_template(name), bos="<bos>", eos="<eos>")
        self.tool_format = choose_format(template)
        self.template = template.with_tool_format(self.tool_format)

    def prompt(self, messages, find=None):
        return transcript_prompt(
            self.template,
            self.vocab,
            messages,
            tools=TOOLS,
            template_kwargs=self.variables,
            root=ROOT,
            find=find or self.store.get,
            tool_format=self.tool_format,
            keeps_reasoning=self.keeps_reasoning,
        )

    def answered(self, prompt, text):
        """The ids of a reply, as no tokenizer would choose them, which are recorded."""
        ids = [token for letter in text for token in self.vocab.tokenize(letter, add_special=False)]
        keeps = self.keeps_reasoning
        block = transcript_block(ROOT, prompt, ids, text, self.vocab.piece, self.tool_format, keeps_reasoning=keeps)
        self.store[block.id] = block.tokens.tolist()
        return ids


def calling(turn, names):
    return [
        {
            "id": f"call_{turn}_{n}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps({"city": "Oslo", "n": turn})},
        }
        for n, name in enumerate(names)
    ]


@pytest.mark.parametrize("keeps_reasoning", [False, True])
@pytest.mark.parametrize("name", [*OTHER_OPENING, *OTHER_PLACE, *ALIKE])
def test_no_token_of_a_loop_is_lost(name, vocab, keeps_reasoning):
    server = Server(name, vocab, keeps_reasoning=keeps_reasoning)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it like there?"}]
    before = []
    for turn, names in enumerate(TURNS):
        prompt = server.prompt(messages)
        assert prompt[: len(before)] == before, turn
        calls = calling(turn, names)
        functions = [call["function"] for call in calls]
        text = server.tool_format.write_calls([ToolCall(one["name"], one["arguments"]) for one in functions])
        before = prompt + server.answered(prompt, text)
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": f'{{"is": "{turn}"}}'} for call in calls]
    prompt = server.prompt(messages)
    assert prompt[: len(before)] == before
    changed = [dict(message) for message in messages]
    changed[2]["tool_calls"] = calling(9, TURNS[0])
    changed[3]["tool_call_id"] = "call_9_0"
    assert server.prompt(changed) == server.prompt(changed, find=lambda id: None)


@pytest.mark.parametrize("keeps_reasoning", [False, True])
@pytest.mark.parametrize("name", ["GLM-4.6", "Qwen-Qwen3-0.6B", "Qwen3.5-4B", "google-gemma-4-31B-it"])
def test_no_token_of_a_chat_without_thoughts_is_lost(name, vocab, keeps_reasoning):
    server = Server(name, vocab, keeps_reasoning=keeps_reasoning, enable_thinking=False)
    messages, before = [], []
    for question in ("Hello!", "Who are you?", "What can you do?"):
        messages.append({"role": "user", "content": question})
        prompt = server.prompt(messages)
        assert prompt[: len(before)] == before
        before = prompt + server.answered(prompt, "the reply")
        messages.append({"role": "assistant", "content": "the reply"})
