"""Where in a prompt two texts part, by the markers of the templates."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.diagnosis.place import Place, find_place

CHATML = ("<|im_start|>{}\n", "<|im_end|>\n")
LLAMA = ("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>")
GEMMA = ("<start_of_turn>{}\n", "<end_of_turn>\n")
PHI = ("<|{}|>\n", "<|end|>\n")
GRANITE = ("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n")
HARMONY = ("<|start|>{}<|message|>", "<|end|>")
LINES = ("{}: ", "\n")
FAMILIES = [CHATML, LLAMA, GEMMA, PHI, GRANITE, HARMONY, LINES]
TOOLS = '\n<tools>\n{"type": "function", "function": {"name": "get"}}\n</tools>\nCall them.'


def text(family, *messages, opens=True):
    before, after = family
    closed = "".join(before.format(role) + content + after for role, content in messages)
    return closed + (before.format("model" if family is GEMMA else "assistant") if opens else "")


def parted(a, b):
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return find_place(a[:n], a[n:], b[n:])


SYSTEM, USER, REPLY = ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi.")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_part_is_told_by_the_markers_of_each_family(family):
    reply = ("model", "Hi.") if family is GEMMA else REPLY
    whole = text(family, SYSTEM, USER, reply, ("user", "More"))
    for other, place, has_reply in [
        (text(family, ("system", "Be rude."), USER, reply, ("user", "More")), Place.SYSTEM, False),
        (text(family, SYSTEM, ("user", "Help"), reply, ("user", "More")), Place.MESSAGE, False),
        (text(family, SYSTEM, USER, (reply[0], "Ho."), ("user", "More")), Place.MESSAGE, True),
        (text(family, SYSTEM, USER, (reply[0], "No."), ("user", "More")), Place.MESSAGE, True),
        (text(family, SYSTEM, USER, reply, ("user", "Less")), Place.MESSAGE, True),
    ]:
        found = parted(whole, other)
        assert (found.place, found.has_reply) == (place, has_reply), other


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [
        (text(CHATML, SYSTEM, USER), text(CHATML, USER), Place.SYSTEM),  # it came or went
        (text(CHATML, USER, REPLY, USER), text(CHATML, USER, USER), Place.MESSAGE),
        (text(CHATML, ("system", "Be kind." + TOOLS), USER), text(CHATML, SYSTEM, USER), Place.TOOLS),
        (text(CHATML, ("system", "A" + TOOLS)), text(CHATML, ("system", "A" + TOOLS.replace("get", "put"))), Place.TOOLS),
        (text(CHATML, ("system", "A" + TOOLS + "x")), text(CHATML, ("system", "A" + TOOLS + "y")), Place.SYSTEM),
        (text(CHATML, USER) + "<think>\n\n</think>", text(CHATML, USER) + "Hello there", Place.OPENING),
        ("<s>" + text(CHATML, USER), "<bos>" + text(CHATML, USER), Place.HEAD),
        ("[AVAILABLE_TOOLS][1][/AVAILABLE_TOOLS][INST]Hi[/INST]", "[AVAILABLE_TOOLS][2][/AVAILABLE_TOOLS][INST]Hi[/INST]",
         Place.TOOLS),
        ("[SYSTEM_PROMPT]a[/SYSTEM_PROMPT][INST]Hi[/INST]", "[SYSTEM_PROMPT]b[/SYSTEM_PROMPT][INST]Hi[/INST]", Place.SYSTEM),
        ("<｜bos｜>Be kind.<｜User｜>Hi<｜Assistant｜>", "<｜bos｜>Be rude.<｜User｜>Hi<｜Assistant｜>", Place.SYSTEM),  # noqa: RUF001
        ("<｜bos｜>Be kind.<｜User｜>Hi<｜Assistant｜>", "<｜bos｜>Be kind.<｜User｜>Ho<｜Assistant｜>", Place.MESSAGE),  # noqa: RUF001
        ("[INST] <<SYS>>\na\n<</SYS>>\n\nHi [/INST]", "[INST] <<SYS>>\nb\n<</SYS>>\n\nHi [/INST]", Place.SYSTEM),
        ("[INST] <<SYS>>\na\n<</SYS>>\n\nHi [/INST]", "[INST] <<SYS>>\na\n<</SYS>>\n\nHo [/INST]", Place.MESSAGE),
        ("Once upon a time", "Once upon a hill", Place.TEXT),
    ],
)  # fmt: skip
def test_other_places(a, b, place):
    assert parted(a, b).place is place


def test_the_text_of_the_part_up_to_the_point_is_told():
    a, b = (text(CHATML, ("system", f"Be {word}."), USER) for word in ("kind", "rude"))
    assert parted(a, b).part == "Be "


pieces = st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|", "system", "user", "\n", "[INST]", "<<SYS>>", "<tools>", "User: ", " ", "x", "1"]
    ),
    max_size=12,
).map("".join)


@given(pieces, pieces, pieces)
def test_any_text_has_a_place_and_the_part_is_the_end_of_what_both_share(common, a, b):
    found = find_place(common, a, b)
    assert common.endswith(found.part)
    assert found.place is not Place.TEXT or not found.has_reply


def test_a_hostile_text_takes_time_in_proportion_to_its_length():
    def seconds(n):
        text = ("<|" + " " * 50) * n + "<|im_start|>" * n + "\n" * n
        started = time.process_time()
        find_place(text, "a" * n, "b" * n)
        return time.process_time() - started

    seconds(2000)
    assert seconds(16_000) < 50 * max(seconds(2000), 1e-3)  # 8 times as long
