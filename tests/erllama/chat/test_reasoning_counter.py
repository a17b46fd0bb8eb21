"""How many tokens were reasoning: by the ids of real vocabularies, however they arrive."""

import pytest

from erllama.chat.reasoning_counter import ReasoningCounter
from erllama.chat.tool_formats.base import ToolSpec
from erllama.chat.tool_formats.choose import FORMATS, format_named
from erllama.chat.tool_formats.splitter import reply_splitter
from tests.support.llama_cpp_files import real_vocab

TOOLS = [ToolSpec("f", {"type": "object", "properties": {"a": {"type": "string"}}})]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
HARMONY_CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":"b"}<|call|>'


@pytest.fixture(scope="module")
def vocab():
    vocab = real_vocab("qwen2")
    yield vocab
    vocab.close()


def counted(vocab, tool_format, ids, *, tools=(), in_reasoning=False, step=1):
    counter = ReasoningCounter(reply_splitter(tool_format, tools, in_reasoning=in_reasoning), vocab.token_text)
    for start in range(0, len(ids), step):
        counter.push(ids[start : start + step])
    return counter.n_tokens


# a format, what of the reply is reasoning (the first text, or every other one), and the rest
REPLIES = [
    ("hermes", ["<think>\nGrüße, 😀 hm.\n</think>", "\n\nIt rains."], False),
    ("hermes", ["Hm, well </think>", "\n\nIt rains." + CALL], True),
    ("hermes", ["<think>\nHm, and on and on", ""], False),
    ("hermes", ["", "It rains."], False),
    ("hermes", ["", "It rains. <think>Hm</think> Yes"], False),
    ("hermes", ["", CALL], False),
    ("mistral", ["[THINK]Hm[/THINK]", "It rains."], False),
    ("cohere", ["<|START_THINKING|>Hm<|END_THINKING|>", "<|START_RESPONSE|>It rains.<|END_RESPONSE|>"], False),
    ("functionary-v3.1", ["", "<think>Hm</think>"], False),  # a family that does not think
    (
        "harmony",
        [
            "<|channel|>analysis<|message|>Hm.<|end|>",
            "<|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
        ],
        False,
    ),
    ("harmony", ["<|channel|>analysis<|message|>Hm.<|end|>", "<|start|>assistant" + HARMONY_CALL], False),
    ("harmony", ["", "<|channel|>final<|message|>It rains."], False),
]


@pytest.mark.parametrize(("name", "texts", "in_reasoning"), REPLIES)
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_the_ids_of_the_reasoning_are_counted(vocab, name, texts, in_reasoning, tools):
    reasoning, rest = (vocab.tokenize(text, add_special=False) for text in texts)
    for step in (1, 3, 1000):
        n = counted(vocab, format_named(name), [*reasoning, *rest], tools=tools, in_reasoning=in_reasoning, step=step)
        assert n == len(reasoning)


def test_a_second_thought_of_harmony_counts_too(vocab):
    first, between, second, last = (
        vocab.tokenize(text, add_special=False)
        for text in (
            "<|channel|>analysis<|message|>Hm.<|end|>",
            "<|start|>assistant<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>analysis<|message|",
            ">Hm again.<|end|>",
            "<|start|>assistant<|channel|>final<|message|>It rains.",
        )
    )
    ids = [*first, *between, *second, *last]
    assert counted(vocab, format_named("harmony"), ids) == len(first) + len(second)


def test_every_byte_as_a_token_gives_the_bytes_of_the_reasoning():
    for tool_format in FORMATS:
        if tool_format.reasoning is None:
            continue
        opening, closing = tool_format.reasoning
        heads = {
            "harmony": "<|start|>assistant<|channel|>final<|message|>",
            "muse-glimmer": "<|start|>assistant to=user<|message|>",
        }
        head = heads.get(tool_format.name, "")
        thought, text = f"{opening}Grüße{closing}".encode(), f"{head}😀 yes".encode()
        splitter = reply_splitter(tool_format, ())
        counter = ReasoningCounter(splitter, lambda token: bytes([token]))
        counter.push([*thought, *text])
        assert counter.n_tokens == len(thought), tool_format.name


def test_nothing_is_asked_once_the_reasoning_is_over(vocab):
    asked = []

    def piece(token):
        asked.append(token)
        return vocab.token_text(token)

    ids = vocab.tokenize("It rains, and it rains again.", add_special=False)
    counter = ReasoningCounter(reply_splitter(format_named("hermes"), TOOLS), piece)
    counter.push(ids)
    assert asked == ids[:1]
    ReasoningCounter(None, piece).push(ids)
    assert asked == ids[:1]
