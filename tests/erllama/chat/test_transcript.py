"""Replies come back as they were sampled: signatures that hide nothing, and prompts that hold the
sampled ids where the reply stands.
"""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey, TokenChain, root_key
from demo_model.template import CHAT_TEMPLATE
from erllama.chat.guard import NO_GUARD
from erllama.chat.template import ChatTemplate
from erllama.chat.transcript import message_signature, reply_signature, spelling, transcript_block
from erllama.chat.transcript_prompt import transcript_prompt
from erllama.demo import demo_model_path
from erllama.errors import InvalidParameter

ROOT = root_key("test")
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    "th",
    "the",
    " the",
    "aa",
    "aaa",
    "ab",
    "ba",
    "bab",
    "\n\n",
    "user",
    "assistant",
    "tool_call",
    "xReply",
    '": "',
    '{"',
]


def key_of(prompt: list[int]) -> ChainKey:
    return TokenChain(ROOT, prompt).key_at(len(prompt))


class ToyVocab:
    """Ids 0-255 are bytes, then come merges, then control tokens. Tokenises greedily, the longest
    piece first.
    """

    adds_bos = True
    bos_text, eos_text, chat_template = "<s>", "</s>", None

    def __init__(self):
        self.pieces = [bytes([i]) for i in range(256)] + [merge.encode() for merge in MERGES]
        self.n_text = len(self.pieces)
        self.names = self.pieces + [name.encode() for name in CONTROL]
        self.n_vocab = len(self.names)
        self.n_tokenized = 0
        self.by_length = sorted(range(256, self.n_vocab), key=lambda i: -len(self.names[i]))

    def tokenize(self, text, *, add_special=True, parse_special=True):
        assert parse_special
        data = text.encode()
        self.n_tokenized += len(text)
        ids, position = [self.n_text] if add_special else [], 0
        while position < len(data):
            token = next((i for i in self.by_length if data.startswith(self.names[i], position)), data[position])
            ids.append(token)
            position += len(self.names[token])
        return ids

    def piece(self, token):
        return self.names[token] if token < self.n_text else b""

    def detokenize(self, tokens, *, special=False):
        return b"".join(self.names[t] if special else self.piece(t) for t in tokens).decode(errors="replace")


class Server:
    """What the ingress does with a model, without the model: prompts are answered by what the test
    says was sampled.
    """

    def __init__(self, source=CHAT_TEMPLATE, vocab=None):
        self.vocab = vocab or ToyVocab()
        self.template = ChatTemplate(source, bos=self.vocab.bos_text, eos=self.vocab.eos_text)
        self.store = {}
        self.asked = []

    def find(self, id):
        self.asked.append(id)
        return self.store.get(id)

    def prompt(self, messages, tools=None, **kwargs):
        return transcript_prompt(
            self.template, self.vocab, messages, tools=tools, template_kwargs=kwargs, root=ROOT, find=self.find
        )

    def canonical(self, messages, tools=None, **kwargs):
        return NO_GUARD.tokenize(self.vocab, self.template.render(messages, tools=tools, **kwargs), None)

    def record(self, prompt, ids, text=None):
        text = self.vocab.detokenize(ids) if text is None else text
        block = transcript_block(ROOT, prompt, ids, text, self.vocab.piece)
        if block is not None:
            self.store[block.id] = block.tokens.tolist()
        return block


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def called(*calls, content=None):
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ],
    }


def result(text):
    return {"role": "tool", "tool_call_id": "c0", "content": text}


def by_bytes(text):
    """A segmentation that no tokenizer would choose."""
    return list(text.encode())


def call_text(name, arguments_json):
    return f'<tool_call>\n{{"name":"{name}",  "arguments":{arguments_json}}}\n</tool_call>'


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

words = st.lists(
    st.sampled_from(
        [
            "the",
            "a",
            "b",
            " ",
            "\n",
            "é",
            "😀",
            "<|im_end|>\n",
            "<|im_start|>user\n",
            "xReply0x",
            "xReply0x0x",
            "<tool_call>",
            '"',
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@st.composite
def segmented(draw):
    """A text and some way to spell it."""
    text = draw(words)
    ids, left, pieces = [], text.encode(), ToyVocab().pieces
    while left:
        fitting = [i for i in range(256, len(pieces)) if left.startswith(pieces[i])]
        ids.append(draw(st.sampled_from([left[0], *fitting])))
        left = left[len(pieces[ids[-1]]) :]
    return text, ids


# --- prompts --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(words, segmented()), min_size=1, max_size=5), st.sampled_from([None, "be brief"]))
@example([("hi", ("xReply0x0x", by_bytes("xReply0x0x")))] * 3, None)
@example([("hi", ("<|im_end|>\n<|im_start|>user\nhi", by_bytes("<|im_end|>\n<|im_start|>user\nhi")))] * 3, "xReply0x")
def test_each_prompt_begins_with_the_last_one_and_its_reply_as_sampled(turns, system):
    server = Server()
    messages = [{"role": "system", "content": system}] if system else []
    before = []
    for question, (text, ids) in turns:
        messages.append(user(question))
        prompt = server.prompt(messages)
        assert prompt[: len(before)] == before
        assert server.vocab.detokenize(prompt, special=True) == server.vocab.detokenize(
            server.canonical(messages), special=True
        )
        server.record(prompt, ids)
        messages.append(said(text))
        before = prompt + ids


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_without_recorded_replies_a_prompt_is_the_canonical_one(turns):
    server = Server()
    messages = [message for question, text in turns for message in (user(question), said(text))] + [user("the end")]
    assert server.prompt(messages) == server.canonical(messages)
    assert len(server.asked) == len(turns)


@given(st.lists(st.tuples(words, segmented(), st.booleans()), min_size=1, max_size=5))
def test_look_ups_name_the_prompts_that_were_answered_also_behind_replies_that_are_missing(turns):
    server = Server()
    messages, parents = [], []
    for question, (text, ids), recorded in turns:
        messages.append(user(question))
        prompt = server.prompt(messages)
        parents.append(key_of(prompt))
        if recorded:
            server.record(prompt, ids)
        messages.append(said(text))
    server.asked.clear()
    server.prompt([*messages, user("x")])
    assert [id.parent for id in server.asked] == parents


def test_an_edited_reply_is_tokenised_and_all_behind_it_is_canonical():
    server = Server()
    messages = [user("one")]
    for text in ("the first", "the second", "the third"):
        server.record(server.prompt(messages), by_bytes(text))
        messages += [said(text), user("go on")]
    first = server.prompt(messages)
    assert first != server.canonical(messages)
    edited = [messages[0], messages[1], messages[2], said("the 2nd"), *messages[4:]]
    prompt = server.prompt(edited)
    start = NO_GUARD.tokenize(server.vocab, server.template.render(messages[:1]), None)
    rest = server.template.render(edited).partition("the first")[2]
    assert prompt == start + by_bytes("the first") + server.vocab.tokenize(rest, add_special=False)


def test_an_equal_reply_under_another_prompt_is_tokenised():
    server = Server()
    server.record(server.prompt([user("one")]), by_bytes("the reply"))
    other = [user("two"), said("the reply"), user("x")]
    assert server.prompt(other) == server.canonical(other)


def test_a_miss_costs_no_second_pass_over_the_text_before_it():
    server = Server()
    messages = [message for i in range(60) for message in (user(f"question {i} " * 20), said(f"answer {i} " * 20))]
    text = server.template.render([*messages, user("x")])
    server.prompt([*messages, user("x")])
    assert server.vocab.n_tokenized < 3 * len(text)


def test_a_vocabulary_that_puts_a_space_behind_control_tokens_is_asked_for_the_prompts_that_were_answered():
    class Spacing(ToyVocab):
        def tokenize(self, text, *, add_special=True, parse_special=True):
            return super().tokenize(text.replace("<|im_start|>", "<|im_start|> "), add_special=add_special)

    server = Server(vocab=Spacing())
    messages, parents = [], []
    for turn in ("one", "two", "three"):
        messages.append(user(turn))
        parents.append(key_of(server.canonical(messages)))
        messages.append(said("the reply"))
    server.prompt([*messages, user("x")])
    assert [id.parent for id in server.asked] == parents


def test_a_template_without_control_tokens_stops_looking_up_before_it_becomes_slow():
    server = Server("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    messages = [message for i in range(60) for message in (user(f"question {i}"), said(f"answer {i}"))]
    text = server.template.render([*messages, user("x")])
    assert server.prompt([*messages, user("x")]) == server.canonical([*messages, user("x")])
    assert server.vocab.n_tokenized < 10 * len(text)


def test_content_that_the_template_trims_stays_as_the_template_has_it():
    server = Server(CHAT_TEMPLATE.replace("message.content }}", "message.content | trim }}"))
    messages = [user("one")]
    server.record(server.prompt(messages), by_bytes(" the padded \n"))
    messages += [said(" the padded \n"), user("two")]
    assert server.prompt(messages) == server.canonical(messages)
    server.record(server.prompt(messages), by_bytes("the tight"))
    messages += [said("the tight"), user("three")]
    prompt = server.prompt(messages)
    tight = by_bytes("the tight")
    assert any(prompt[i : i + len(tight)] == tight for i in range(len(prompt)))
    assert server.vocab.detokenize(prompt) == server.vocab.detokenize(server.canonical(messages))


def test_a_space_that_the_template_trims_and_writes_itself_belongs_to_the_reply():
    server = Server(
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
    )
    messages, before = [user("one")], []
    for _ in range(3):
        prompt = server.prompt(messages)
        assert prompt[: len(before)] == before
        server.record(prompt, by_bytes(" the reply"))
        before = prompt + by_bytes(" the reply")
        messages += [said(" the reply"), user("two")]
    dropped = [user("one"), said("the reply"), user("two")]
    assert server.prompt(dropped) == server.canonical(dropped)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}",  # changes the sentinel
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{{ m.content }}{% endfor %}",  # repeats it
        "{% for m in messages | reverse %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",  # moves it
        # drops it
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% if 'xReply' in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}",
        # the rest depends on it
        "{% for m in messages %}{{ m.content | length }}{{ m.content }}<|im_end|>{% endfor %}",
    ],
)
def test_a_template_that_is_odd_about_the_sentinel_gives_the_canonical_prompt(source):
    server = Server(source)
    messages = [user("one"), said("the reply"), user("two"), said("the reply"), user("three")]
    for n in (1, 3):
        server.record(server.canonical(messages[:n]), by_bytes("the reply"))
    assert server.prompt(messages) == server.canonical(messages)


def test_a_template_that_refuses_the_messages_says_so_itself():
    server = Server("{{ raise_exception('never') }}")
    with pytest.raises(InvalidParameter, match="never"):
        server.prompt([user("one"), said("two")])


def test_a_vocabulary_that_puts_a_space_before_words_is_not_cut_before_a_word():
    class Spacing(ToyVocab):
        def tokenize(self, text, *, add_special=True, parse_special=True):
            return super().tokenize(text if text.startswith("<") else " " + text, add_special=add_special)

    server = Server("{% for m in messages %}{{ m.content }} [/{{ m.role }}] {% endfor %}", Spacing())
    server.record(server.prompt([user("one")]), by_bytes("the reply"))
    messages = [user("one"), said("the reply"), user("two")]
    assert server.asked == []
    assert server.prompt(messages) == server.canonical(messages)
    assert len(server.asked) == 1


def test_a_vocabulary_that_ends_every_text_is_left_alone():
    class Ending(ToyVocab):
        def tokenize(self, text, *, add_special=True, parse_special=True):
            return super().tokenize(text, add_special=add_special) + [self.n_text + 1] * add_special

    server = Server(vocab=Ending())
    server.record(server.prompt([user("one")]), by_bytes("the reply"))
    messages = [user("one"), said("the reply"), user("two")]
    assert server.prompt(messages) == server.canonical(messages)


@pytest.mark.parametrize("ids", [[], [10**6], by_bytes("the other"), [258 + 15]])
def test_found_ids_that_do_not_spell_the_reply_are_a_miss(ids):
    server = Server()
    block = server.record(server.prompt([user("one")]), by_bytes("the reply"))
    server.store[block.id] = ids
    messages = [user("one"), said("the reply"), user("two")]
    assert server.prompt(messages) == server.canonical(messages)


def test_content_in_parts_and_empty_content_are_what_the_template_makes_of_them():
    server = Server()
    server.record(server.prompt([user("one")]), by_bytes("the\nparts"))
    parts = {"role": "assistant", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "parts"}]}
    messages = [user("one"), parts, user("two"), said(""), said(None), user("three")]
    prompt = server.prompt(messages)
    assert prompt == server.prompt([user("one"), said("the\nparts"), *messages[2:]])
    assert prompt != server.canonical(messages)
    assert len(server.asked) == 2  # an empty reply is not looked up


# --- openings -------------------------------------------------------------------------------------

THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n<think></think>\n{{ m.content }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>{% endfor %}<|im_start|>assistant\n"
)


def test_a_reply_keeps_the_opening_that_it_was_sampled_behind():
    server = Server(THINKS)
    messages, before = [], []
    for question in ("one", "two", "three"):
        messages.append(user(question))
        prompt = server.prompt(messages)
        assert prompt[: len(before)] == before
        server.record(prompt, by_bytes("the reply"))
        before = prompt + by_bytes("the reply")
        messages.append(said("the reply"))
    edited = [messages[0], said("the 2nd"), *messages[2:], user("four")]
    assert server.prompt(edited) == server.canonical(edited)


def test_openings_are_told_apart_behind_any_end_of_a_message():
    server = Server(THINKS)
    messages = []
    for question in ("assistant", 'a "word"!', "…", "", "the end"):
        messages.append(user(question))
        server.record(server.prompt(messages), by_bytes("the reply"))
        messages.append(said("the reply"))
    messages.append(user("x"))
    prompt, canonical = (
        server.vocab.detokenize(ids, special=True) for ids in (server.prompt(messages), server.canonical(messages))
    )
    assert prompt == canonical.replace("\n<think></think>\n", "")


@pytest.mark.parametrize(
    "source",
    [
        # instructs the model at the end of every prompt
        THINKS.replace("{% endfor %}", "{% endfor %}<|im_start|>system\n" + "Answer in one word. " * 8 + "<|im_end|>"),
        # writes the system's text beside the last message
        "{% for m in messages[1:] %}<|im_start|>{% if loop.last %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}",
    ],
)
def test_what_says_something_is_no_opening(source):
    server = Server(source)
    messages = [{"role": "system", "content": "the system"}, user("one")]
    server.record(server.prompt(messages), by_bytes("the reply"))
    messages += [said("the reply"), user("two")]
    assert server.prompt(messages) == server.canonical(messages)


# --- tool calls -----------------------------------------------------------------------------------


def test_a_call_comes_back_as_sampled_whatever_the_client_made_of_its_json():
    server = Server()
    reply = "The weather?\n" + call_text("f", '{ "b":  [1.0, {"d": null, "c": "é"}],"a":"x" }')
    ids = by_bytes(reply)
    start = server.prompt([user("one")], TOOLS)
    server.record(start, ids)
    arguments = {"a": "x", "b": [1, {"c": "é", "d": None}]}
    for sent in (json.dumps(arguments), json.dumps(arguments, indent=2), arguments):
        messages = [user("one"), called(("f", sent), content="The weather?"), result("rain")]
        assert server.prompt(messages, TOOLS)[: len(start) + len(ids)] == start + ids
    changed = [user("one"), called(("f", json.dumps(arguments | {"a": "y"})), content="The weather?"), result("rain")]
    assert server.prompt(changed, TOOLS) == server.canonical(changed, TOOLS)


def test_parallel_calls_with_results_between_and_plain_text_after():
    server = Server()
    messages, before = [user("one")], []
    turns = [
        (
            call_text("f", '{"x":1}') + "\n\n" + call_text("g", "{}"),
            [called(("f", '{"x": 1}'), ("g", "{}")), result("1"), result("2")],
        ),
        (call_text("f", '{"x":2}'), [called(("f", '{"x": 2}')), result("3")]),
        ("the answer", [said("the answer"), user("thanks")]),
    ]
    for reply, answer in turns:
        prompt = server.prompt(messages, TOOLS)
        assert prompt[: len(before)] == before
        server.record(prompt, by_bytes(reply))
        before = prompt + by_bytes(reply)
        messages += answer
    prompt = server.prompt(messages, TOOLS)
    assert prompt[: len(before)] == before
    swapped = [messages[0], called(("g", "{}"), ("f", '{"x": 1}')), *messages[2:]]
    assert server.prompt(swapped, TOOLS) == server.canonical(swapped, TOOLS)


def test_a_missed_call_is_rendered_by_the_template_while_others_come_back_as_sampled():
    server = Server()
    calls = [called(("f", '{"x":1}')), result("1")]
    messages = [user("one"), *calls]
    server.record(server.prompt(messages), by_bytes("the answer"))
    messages += [said("the answer"), user("two")]
    prompt = server.prompt(messages)
    assert prompt != server.canonical(messages)
    assert server.vocab.detokenize(prompt, special=True) == server.vocab.detokenize(
        server.canonical(messages), special=True
    )


def test_a_template_that_wants_a_call_before_its_result_still_takes_sampled_text():
    strict = CHAT_TEMPLATE.replace(
        "{%- elif message.role == 'tool' %}",
        "{%- elif message.role == 'tool' %}{% if not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% endif %}",
    )
    server = Server(strict)
    messages = [user("one"), called(("f", "{}")), result("1")]
    server.record(server.prompt(messages), by_bytes("the answer"))
    messages += [said("the answer"), user("two")]
    assert server.prompt(messages) != server.canonical(messages)


def test_replies_whose_border_cannot_be_told_are_left_to_the_template():
    server = Server(
        "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
        "\n</tool_call>{% endfor %}{{ '\n' }}{% endfor %}"
    )
    server.record(server.prompt([user("one")]), by_bytes(call_text("f", "{}")))
    messages = [user("one"), called(("f", "{}")), called(("g", "{}")), result("1")]
    assert server.prompt(messages) == server.canonical(messages)
    assert server.prompt([messages[0], messages[1], messages[3]]) != server.canonical(
        [messages[0], messages[1], messages[3]]
    )


def test_a_reply_that_looks_like_a_call_comes_back_as_text_when_the_client_took_it_as_text():
    server = Server()
    reply = call_text("f", '{"x":1}')
    server.record(server.prompt([user("one")]), by_bytes(reply))
    messages = [user("one"), said(reply), user("two")]
    assert server.prompt(messages) != server.canonical(messages)
    spaced = [user("one"), said(reply.replace(":", ": ")), user("two")]
    assert server.prompt(spaced) == server.canonical(spaced)


# --- what is recorded -----------------------------------------------------------------------------


def test_the_object_hangs_on_the_prompt_and_holds_the_sampled_ids():
    prompt = list(range(300))
    block = transcript_block(ROOT, prompt, by_bytes("the"), "the", ToyVocab().piece)
    assert block.id == BlockId(ROOT, Kind.REPLAY, key_of(prompt), reply_signature("the"))
    assert block.tokens.tolist() == by_bytes("the")
    assert BlockId.parse(block.id.name) == block.id


CALL = call_text("f", '{"x":1}')


@pytest.mark.parametrize(
    "text",
    [
        f"{CALL} and then",
        f"A{CALL}B{CALL}",
        '<tool_call>{"name":"f","arguments":{"x":1,"x":1}}</tool_call>',
        '<tool_call>{"name":"f","name":"f","arguments":{}}</tool_call>',
        '<tool_call>{"name":"f","arguments":{},"thought":"secret"}</tool_call>',
        '<tool_call>{"name":"f","arguments":{},"parameters":{}}</tool_call>',
        '<tool_call>{"name":"f","arguments":"{\\"x\\":1,\\"x\\":2}"}</tool_call>',
        "",
    ],
)
def test_a_reply_is_not_recorded_when_its_signature_would_hide_part_of_it(text):
    assert transcript_block(ROOT, [1], by_bytes(text), text, ToyVocab().piece) is None


@pytest.mark.parametrize(
    "text", [CALL, CALL.removesuffix("</tool_call>"), f" \n{CALL}\n{CALL}\n", f"See <tool_call> here {CALL}"]
)
def test_layout_around_calls_is_no_secret(text):
    assert transcript_block(ROOT, [1], by_bytes(text), text, ToyVocab().piece) is not None


def test_a_reply_with_control_tokens_is_not_recorded():
    vocab = ToyVocab()
    assert transcript_block(ROOT, [1], [*by_bytes("the"), vocab.n_vocab - 1], "the", vocab.piece) is None


def test_behind_a_stop_string_only_what_the_client_received_is_recorded():
    piece = ToyVocab().piece
    the, user_token = 256 + MERGES.index("the"), 256 + MERGES.index("user")
    assert spelling([the, user_token], "the", piece) == (the,)
    assert spelling([the, user_token], "theus", piece) is None
    assert spelling([the], "then", piece) is None
    assert spelling([*b"two", user_token], "one", piece) is None
    assert spelling([0xC3, 0xA9], "é", piece) == (0xC3, 0xA9)
    assert spelling([0x61, 0xC3], "a\ufffd", piece) == (0x61, 0xC3)


@given(segmented())
def test_a_spelling_spells(pair):
    text, ids = pair
    assert spelling([*ids, 65], text, ToyVocab().piece) == spelling(ids, text, ToyVocab().piece) == tuple(ids)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.text(max_size=8).map(str.strip),
    st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    st.sampled_from([None, 0, 4]),
)
def test_the_sampled_call_and_the_returned_call_have_one_signature(content, arguments, indent):
    text = content + call_text("f", json.dumps(arguments, indent=indent))
    returned = dict(reversed(list(arguments.items())))
    message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": "f", "arguments": returned}}],
    }
    assert reply_signature(text) == message_signature(message) is not None
    other = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": "f", "arguments": returned | {"new": 1}}}],
    }
    assert ("new" in arguments and arguments["new"] == 1) or message_signature(other) != reply_signature(text)


def test_arguments_that_cannot_be_written_have_no_signature():
    deep = {}
    for _ in range(100_000):
        deep = {"x": deep}
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}
    assert message_signature(message) is None


def test_content_and_calls_are_not_confused():
    as_text = message_signature({"role": "assistant", "content": '["f",{}]'})
    as_call = message_signature(
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    )
    assert as_text != as_call
    assert message_signature(said("")) is None


# --- the real vocabulary --------------------------------------------------------------------------


@pytest.mark.model
def test_the_demo_model_gets_back_an_odd_segmentation_and_a_call():
    from erllama.llama.vocab import LlamaVocab

    vocab = LlamaVocab.load(str(demo_model_path()))
    try:
        server = Server(vocab.chat_template, vocab)

        def odd(text):  # character by character
            return [token for char in text for token in vocab.tokenize(char, add_special=False, parse_special=False)]

        messages, before = [user("What is the weather in Ulm?")], []
        turns = [
            (
                "Let me see.\n" + call_text("f", '{"city":"Ulm"}'),
                [called(("f", '{"city": "Ulm"}'), content="Let me see."), result("rain é 😀")],
            ),
            ("It rains in Ulm, today.", [said("It rains in Ulm, today."), user("Thanks!")]),
            ("You are welcome.", [said("You are welcome."), user("Bye.")]),
        ]
        for text, answer in turns:
            prompt = server.prompt(messages, TOOLS)
            assert prompt[: len(before)] == before
            ids = odd(text)
            assert ids != vocab.tokenize(text, add_special=False, parse_special=False)
            assert server.record(prompt, ids, text) is not None
            before = prompt + ids
            messages += answer
        prompt = server.prompt(messages, TOOLS)
        assert prompt[: len(before)] == before
        server.store.clear()
        assert server.prompt(messages, TOOLS) == server.canonical(messages, TOOLS)
    finally:
        vocab.close()
