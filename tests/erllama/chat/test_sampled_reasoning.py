"""Replies that come back with their reasoning, or without it: where a template keeps it, or would
have, the prompt has the ids that were sampled, token by token.
"""

import pytest

from cache_store.format.keys import root_key
from erllama.chat.guard import NO_GUARD
from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolCall
from erllama.chat.tool_formats.choose import choose_format, format_named, opens_reasoning
from erllama.chat.transcript import message_signature, reasoned_signature, reply_signature, transcript_block
from erllama.chat.transcript_prompt import transcript_prompt
from tests.support.llama_cpp_files import real_template, real_templates, real_vocab

ROOT = root_key("test")
USER = {"role": "user", "content": "Is it wet in Ulm?"}
AGAIN = {"role": "user", "content": "And in Bonn?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}},
        },
    }
]


@pytest.fixture(scope="module")
def vocab():
    vocab = real_vocab("qwen35")
    yield vocab
    vocab.close()


GPT_OSS = "openai-gpt-oss-120b"
ENDS = ("<|im_end|>", "<|call|>", "<|end_of_msg|>")
HARMONY_CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"


class Server:
    """What the ingress does with a model, without the model: prompts are answered by what the test
    says was sampled, in ids that no tokenizer would choose.
    """

    def __init__(self, vocab, name, *, keeps=True, **variables):
        self.vocab, self.keeps, self.variables = vocab, keeps, variables
        template = ChatTemplate(real_template(name), bos="", eos="<|im_end|>")
        self.tool_format = choose_format(template)
        self.template = template.with_tool_format(self.tool_format)
        self.store = {}

    def prompt(self, messages):
        return transcript_prompt(
            self.template,
            self.vocab,
            messages,
            tools=TOOLS,
            template_kwargs=self.variables,
            root=ROOT,
            find=self.store.get,
            tool_format=self.tool_format,
            keeps_reasoning=self.keeps,
        )

    def canonical(self, messages):
        return NO_GUARD.tokenize(self.vocab, self.template.render(messages, tools=TOOLS, **self.variables), None)

    def answer(self, messages, thought, text):
        """The prompt and what is sampled for it: the reasoning, then `text`."""
        prompt = self.prompt(messages)
        opening, closing = self.tool_format.reasoning
        opened = opens_reasoning(self.tool_format, self.vocab.detokenize(prompt[-40:], special=True))
        behind = self.tool_format.next_message or "\n\n"
        whole = f"{'' if opened else opening}{thought}{closing}{behind}{text}" if thought else text
        ids = [token for char in whole for token in self.vocab.tokenize(char, add_special=False)]
        block = transcript_block(
            ROOT,
            prompt,
            ids,
            whole,
            self.vocab.token_text,
            self.tool_format,
            in_reasoning=opened,
            keeps_reasoning=self.keeps,
        )
        if block is not None:
            self.store[block.id] = block.tokens.tolist()
        return [*prompt, *ids]

    def call(self, city):
        if self.tool_format.name == "harmony":  # as the model writes it, and not as its template does
            return HARMONY_CALL + f'{{"city": "{city}"}}'
        return self.tool_format.write_calls([ToolCall("weather", f'{{"city": "{city}"}}')])


def called(city, number=0, **more):
    function = {"name": "weather", "arguments": f'{{"city":"{city}"}}'}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
        **more,
    }


def result(number=0):
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": "wet"}


THINKS = {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}
# Templates that show reasoning within a loop of calls, and what of it comes back.
KEPT = {
    "Bielik-11B-v3.0-Instruct": True,
    "ByteDance-Seed-OSS": True,
    "GLM-4.6": True,
    "GLM-4.7-Flash": True,
    "LFM2.5-8B-A1B": True,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": True,
    "Qwen-Qwen3-0.6B": True,
    "Qwen3.5-4B": True,
    "Reka-Edge": True,
    "Spark2.5": True,
    "StepFun3.5-Flash": True,
    "deepseek-ai-DeepSeek-V4": True,
    "deepseek-ai-DeepSeek-V4-Flash-0731": True,
    "inclusionai-ling-3.0-flash": True,
    "openbmb-MiniCPM5-1B": True,
    "poolside-Laguna-S-2.1": True,
    "poolside-Laguna-XS-2.1": True,
    "poolside-Laguna-XS.2": True,
    "tencent-Hy3": True,
    # without its calls a message has another form, or its result is refused: found by names
    "Cohere2MoE": True,
    "Kimi-K2-Thinking": True,
    "MiniMax-M2": True,
    "google-gemma-4-31B-it-interleaved": True,
    "Kimi-K3": True,
    "MiniMax-M3": True,
    "upstage-Solar-Open-100B": True,
    # its replies are rows of messages
    GPT_OSS: True,
    # where the assistant begins to speak cannot be told, or looks otherwise behind a result
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": False,
    "deepseek-ai-DeepSeek-V3.2": False,
    "google-gemma-4-31B-it": False,
    # its replies are rows of messages, too, which no signature covers
    "muse-glimmer": False,
}


def test_every_template_that_shows_reasoning_in_a_loop_is_in_the_table():
    history = [USER, called("Ulm", reasoning_content="xThoughtx"), result()]
    found = {
        name
        for name in real_templates()
        if "xThoughtx" in ChatTemplate(real_template(name), bos="", eos="").render(history, tools=TOOLS, **THINKS)
    }
    assert found == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_a_call_in_a_loop_keeps_its_reasoning(vocab, name):
    server = Server(vocab, name, **THINKS)
    sampled = server.answer([USER], "Grüße, hm.\n", server.call("Ulm"))
    history = [USER, called("Ulm"), result()]
    prompt = server.prompt(history)
    assert (prompt[: len(sampled)] == sampled) == KEPT[name]
    if not KEPT[name]:
        assert prompt == server.canonical(history)


@pytest.mark.parametrize("name", [name for name, kept in KEPT.items() if kept])
def test_each_prompt_of_a_loop_goes_on_from_what_was_sampled(vocab, name):
    server, history = Server(vocab, name, **THINKS), [USER]
    for number, city in enumerate(("Ulm", "Bonn", "Kiel")):
        sampled = server.answer(history, f"Now {city}.\n", server.call(city))
        history += [called(city, number), result(number)]
        prompt = server.prompt(history)
        assert prompt[: len(sampled)] == sampled
        text = vocab.detokenize(prompt, special=True)
        assert [text.count(f"Now {one}.") for one in ("Ulm", "Bonn", "Kiel")] == [int(n <= number) for n in range(3)]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_reasoning_that_is_sent_back_is_as_it_was_sampled(vocab, name, keeps):
    server, history = Server(vocab, name, keeps=keeps, **THINKS), [USER]
    for number, city in enumerate(("Ulm", "Bonn", "Kiel")):
        sampled = server.answer(history, f"Now {city}, grüße.\n", server.call(city))
        history += [called(city, number, reasoning_content=f"Now {city}, grüße.\n"), result(number)]
        prompt = server.prompt(history)
        assert (prompt[: len(sampled)] == sampled) == KEPT[name]
        if KEPT[name]:
            text, told = (vocab.detokenize(ids, special=True) for ids in (prompt, server.canonical(history)))
            assert [text.count(one) for one in ("Now ", *ENDS)] == [told.count(one) for one in ("Now ", *ENDS)]
    if not KEPT[name]:
        assert prompt == server.canonical(history)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "MiniMax-M2", GPT_OSS])
@pytest.mark.parametrize(
    "reply",
    [
        called("Ulm", reasoning_content="Hm, no."),
        called("Bonn", reasoning_content="Hm."),
        called("Ulm", reasoning_content="H m."),
    ],
)
def test_what_else_is_sent_back_is_rendered_as_the_template_does(vocab, name, keeps, reply):
    server = Server(vocab, name, keeps=keeps, **THINKS)
    server.answer([USER], "Hm.", server.call("Ulm"))
    history = [USER, reply, result()]
    assert server.store
    assert server.prompt(history) == server.canonical(history)
    server.answer([USER], "", server.call("Ulm"))  # one that has not thought is not what it says either
    assert server.prompt(history) == server.canonical(history)


def test_a_text_that_is_sent_back_with_its_reasoning_is_as_it_was_sampled(vocab):
    server = Server(vocab, "ByteDance-Seed-OSS", keeps=False)
    sampled = server.answer([USER], "Hm.", "Yes, it is.")
    reply = {"role": "assistant", "content": "Yes, it is."}
    assert server.prompt([USER, reply | {"reasoning_content": "Hm."}, AGAIN])[: len(sampled)] == sampled
    for other in (reply, reply | {"reasoning_content": "Oh."}, reply | {"content": "Yes.", "reasoning_content": "Hm."}):
        assert server.prompt([USER, other, AGAIN]) == server.canonical([USER, other, AGAIN])


@pytest.mark.parametrize("name", [name for name, kept in KEPT.items() if kept and name != GPT_OSS])
def test_calls_at_once_keep_their_reasoning(vocab, name):
    server = Server(vocab, name, **THINKS)
    first, second = called("Ulm", 0), called("Bonn", 1)
    calls = [*first["tool_calls"], *second["tool_calls"]]
    functions = [call["function"] for call in calls]
    text = server.tool_format.write_calls([ToolCall(one["name"], one["arguments"]) for one in functions])
    sampled = server.answer([USER], "Both.", text)
    history = [USER, {**first, "tool_calls": calls}, result(0), result(1)]
    assert server.prompt(history)[: len(sampled)] == sampled


def test_the_text_is_the_one_of_a_client_that_sends_the_reasoning(vocab):
    server = Server(vocab, "Qwen-Qwen3-0.6B")
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    prompt = server.prompt([USER, called("Ulm"), result()])
    told = server.canonical([USER, called("Ulm", reasoning_content="Hm."), result()])
    assert vocab.detokenize(prompt, special=True).split() == vocab.detokenize(told, special=True).split()


def test_reasoning_of_an_earlier_turn_goes_where_the_template_drops_it(vocab):
    server = Server(vocab, "Qwen-Qwen3-0.6B")
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    server.answer([USER, called("Ulm"), result()], "\nWet.\n", "Yes.")
    history = [USER, called("Ulm"), result(), {"role": "assistant", "content": "Yes."}, AGAIN]
    assert server.prompt(history) == server.canonical(history)


def test_reasoning_of_an_earlier_turn_stays_where_the_template_shows_it(vocab):
    server = Server(vocab, "ByteDance-Seed-OSS")
    sampled = server.answer([USER], "Hm.", "Yes, it is.")
    history = [USER, {"role": "assistant", "content": "Yes, it is."}, AGAIN]
    assert server.prompt(history)[: len(sampled)] == sampled


@pytest.mark.parametrize(
    "reply",
    [
        called("Bonn"),
        called("Ulm", reasoning_content="Something else."),
        {**called("Ulm"), "content": "Let me see."},
        {"role": "assistant", "content": "Yes."},
    ],
)
def test_another_reply_is_rendered_as_the_template_does(vocab, reply):
    server = Server(vocab, "Qwen-Qwen3-0.6B")
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    history = [USER, reply, result()]
    assert server.prompt(history) == server.canonical(history)


def test_another_question_is_not_answered_with_this_reasoning(vocab):
    server = Server(vocab, "Qwen-Qwen3-0.6B")
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    history = [AGAIN, called("Ulm"), result()]
    assert server.prompt(history) == server.canonical(history)


def test_nothing_is_kept_unless_it_is_asked_for(vocab):
    server = Server(vocab, "Qwen-Qwen3-0.6B", keeps=False)
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    history = [USER, called("Ulm"), result()]
    assert server.prompt(history) == server.canonical(history)
    server.keeps = True
    server.answer([USER], "\nHm.\n", server.call("Ulm"))
    server.keeps = False
    assert server.prompt(history) == server.canonical(history)


def test_a_reply_without_reasoning_still_comes_back_as_sampled(vocab):
    server = Server(vocab, "Qwen-Qwen3-0.6B")
    prompt, text = server.prompt([USER]), "Yes, well."
    ids = [token for char in text for token in vocab.tokenize(char, add_special=False)]
    block = transcript_block(ROOT, prompt, ids, text, vocab.piece, server.tool_format, in_reasoning=False)
    server.store[block.id] = block.tokens.tolist()
    after = server.prompt([USER, {"role": "assistant", "content": text}, AGAIN])
    assert after[: len(prompt) + len(ids)] == [*prompt, *ids]


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "in_reasoning"),
    [
        ("<think>Hm", False),  # not to its end
        ("Hm</think>Yes", False),  # never opened
        (f"<think>Hm</think>{CALL} and more", False),
        ('<think>Hm</think><tool_call>\n{"name": "f", "arguments": {"a": 1, "a": 2}}\n</tool_call>', False),
        ("<think>Hm</think><think>Hm</think>Yes", False),
    ],
)
def test_a_signature_hides_nothing_but_the_reasoning(text, in_reasoning):
    assert reasoned_signature(text, format_named("hermes"), in_reasoning=in_reasoning) is None


def test_a_call_that_ends_the_reasoning_is_not_hidden_in_it():
    text = '<|inner_prefix|>Hm<|tools_prefix|>[{"f": {}}]<|tools_suffix|> so<|inner_suffix|>Yes'
    assert reasoned_signature(text, format_named("apertus"), in_reasoning=False) is None


def test_a_reply_is_never_taken_for_one_with_reasoning():
    hermes, message = format_named("hermes"), {"role": "assistant", "content": "Yes"}
    reasoned = reasoned_signature("<think>Hm</think>\n\nYes", hermes, in_reasoning=False)
    assert reasoned == reasoned_signature("Hm</think>Yes", hermes, in_reasoning=True)
    assert reasoned == message_signature(message, hermes, reasoned=True)
    assert reasoned not in (None, message_signature(message, hermes), reply_signature("Yes", hermes))
