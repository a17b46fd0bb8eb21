"""Replies that are rows of messages (gpt-oss): in a loop of calls they come back as they were
sampled, and nothing comes back that a row hides.
"""

import pytest

from erllama.chat.tool_formats.harmony import HARMONY
from erllama.chat.transcript import message_signature, reasoned_signature, reply_signature, told_signature
from tests.erllama.chat.test_sampled_reasoning import AGAIN, GPT_OSS, HARMONY_CALL, USER, Server, called, result
from tests.support.llama_cpp_files import real_vocab

START = "<|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|>" + START
SAYS = "<|channel|>commentary<|message|>Let me see.<|end|>" + START
CALL = HARMONY_CALL + '{"city": "Ulm"}'
BY_TEMPLATE = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Ulm"}'
FINAL = "<|channel|>final<|message|>Yes."
YES = {"role": "assistant", "content": "Yes."}


@pytest.fixture(scope="module")
def vocab():
    vocab = real_vocab("qwen35")
    yield vocab
    vocab.close()


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("call", [CALL, BY_TEMPLATE])
def test_a_loop_without_thoughts_comes_back(vocab, keeps, call):
    server, history = Server(vocab, GPT_OSS, keeps=keeps), [USER]
    for number, city in enumerate(("Ulm", "Bonn", "Kiel")):
        sampled = server.answer(history, "", call.replace("Ulm", city))
        history += [called(city, number), result(number)]
        behind = server.vocab.tokenize("<|call|><|start|>functions.weather to", add_special=False)
        assert server.prompt(history)[: len(sampled) + len(behind)] == [*sampled, *behind]
    final = server.answer(history, "", FINAL)
    history += [YES, AGAIN]
    assert server.prompt(history)[: len(final)] == final


@pytest.mark.parametrize("keeps", [False, True])
def test_the_thoughts_of_a_finished_turn_go_with_it(vocab, keeps):
    server = Server(vocab, GPT_OSS, keeps=keeps)
    server.answer([USER], "Hm.", CALL)
    loop = [USER, called("Ulm", reasoning_content="Hm."), result()]
    server.answer(loop, "Wet.", FINAL)
    for final in (YES, YES | {"reasoning_content": "Wet."}):
        assert server.prompt([*loop, final, AGAIN]) == server.canonical([*loop, final, AGAIN])


def test_thoughts_that_are_not_sent_back_stay_away(vocab):
    server = Server(vocab, GPT_OSS, keeps=False)
    server.answer([USER], "Hm.", CALL)
    history = [USER, called("Ulm"), result()]
    assert server.prompt(history) == server.canonical(history)


@pytest.mark.parametrize("call", [called("Bonn"), {**called("Ulm"), "content": "Let me see."}])
@pytest.mark.parametrize("thought", ["", "Hm."])
def test_another_call_is_rendered_as_the_template_does(vocab, call, thought):
    server = Server(vocab, GPT_OSS)
    server.answer([USER], thought, CALL)
    history = [USER, call, result()]
    assert server.prompt(history) == server.canonical(history)


@pytest.mark.parametrize("thought", ["", "Hm."])
def test_text_before_a_call_comes_back_in_its_own_channel(vocab, thought):
    server = Server(vocab, GPT_OSS, keeps=bool(thought))
    sampled = server.answer([USER], thought, SAYS + CALL)
    history = [USER, {**called("Ulm"), "content": "Let me see."}, result()]
    assert server.prompt(history)[: len(sampled)] == sampled


def test_a_text_that_looks_like_a_call_is_none(vocab):
    server = Server(vocab, GPT_OSS)
    server.answer([USER], "", CALL)
    history = [USER, {"role": "assistant", "content": BY_TEMPLATE}, AGAIN]
    assert server.prompt(history) == server.canonical(history)


@pytest.mark.parametrize("text", [CALL, BY_TEMPLATE, CALL + "\n", CALL.replace(" <|constrain|>", " ")])
def test_the_signature_of_a_row_is_the_one_of_its_message(text):
    message = {"content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}]}
    assert reply_signature(text, HARMONY) == message_signature(message, HARMONY)
    reasoned = reasoned_signature(THOUGHT + text, HARMONY, in_reasoning=False)
    assert reasoned == message_signature(message, HARMONY, reasoned=True)
    assert reasoned == reasoned_signature("Oh.<|end|>" + START + text, HARMONY, in_reasoning=True)
    assert reply_signature(THOUGHT + text, HARMONY) is None
    told = [told_signature(one + text, HARMONY, in_reasoning=False) for one in (THOUGHT, THOUGHT * 2, "")]
    assert len({*told, reasoned}) == 4
    assert told[2] is None


@pytest.mark.parametrize(
    "text",
    [
        CALL + "<|call|>",  # which the template writes
        CALL + " and more",
        CALL + "<|call|>" + START + CALL,
        CALL.replace('"Ulm"', '"Ulm", "city": "Bonn"'),
        CALL.replace("{", "[").replace("}", "]"),
        CALL.replace("commentary", "analysis"),
        CALL.replace("json", "code"),
        CALL.replace("<|constrain|>", "x <|constrain|>"),
        CALL.replace("functions.", ""),
        START + CALL,
        FINAL + "<|return|>",
        FINAL + "<|end|>" + START + CALL,
        FINAL + "<|end|>" + START + THOUGHT + FINAL,
        SAYS + FINAL,
        SAYS + SAYS + CALL,
        SAYS + THOUGHT + CALL,
        SAYS.removesuffix("<|end|>" + START),
        THOUGHT.replace("Hm.", "<|message|>Hm.") + CALL,
        THOUGHT.removesuffix(START),
        THOUGHT,
        "Yes." + FINAL,
        BY_TEMPLATE.replace("<|message|>", ""),
    ],
)
def test_a_row_hides_nothing(text):
    for whole in (text, THOUGHT + text):
        assert reply_signature(whole, HARMONY) is None
        assert reasoned_signature(whole, HARMONY, in_reasoning=False) is None
        assert told_signature(whole, HARMONY, in_reasoning=False) is None
