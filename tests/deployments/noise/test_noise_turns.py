"""What a new day, or a new minute, costs of a conversation: counted in bytes of prompts, which are the
tokens of the vocabulary here.
"""

import os
from itertools import pairwise

import pytest

from deployments.generation.chat import ChatAsk, OfferedTool, chat_prompt
from deployments.noise.filter import Noise
from deployments.noise.options import NoiseOptions
from deployments.noise.rules import packaged_rules
from tests.support.http_fakes import FakePrompts

SYSTEM = "You help with code. " * 50
TOOL = OfferedTool("read", {}, {"type": "function", "function": {"name": "read"}})
DAYS = ("Fri Nov 27 2026", "Sat Nov 28 2026")
SPOKEN = "assistant: "


class ToolPrompts(FakePrompts):
    """Shows a system message behind a tool's result or not."""

    def __init__(self, late_system):
        super().__init__(None)
        self.late_system = late_system

    def shows_late_system(self, *, tools):
        assert tools
        return self.late_system


def conversation(day, n_turns):
    """An agent's: in every turn the user asks, a tool is called, and the assistant answers, but in the
    last one, whose result has just come.
    """
    system = f"{SYSTEM}\n<env>\n  Platform: linux\n  Today's date: {day}\n</env>\nBe brief."
    messages = [{"role": "system", "content": system}]
    for n in range(n_turns):
        call = {"id": f"random-{os.urandom(4).hex()}", "function": {"name": "read", "arguments": {"n": n}}}
        messages += [
            {"role": "user", "content": f"Question {n}? " * 5},
            {"role": "assistant", "content": f"I read {n}.", "tool_calls": [call]},
            {"role": "tool", "content": f"Line {n}. " * 20, "tool_call_id": call["id"]},
            {"role": "assistant", "content": f"Answer {n}. " * 5},
        ]
    return messages[:-1]


def prompt(messages, to=None, late_system=True):
    """The prompt, with the day moved as `to` says, or left where it is."""
    [date] = [rule for rule in packaged_rules() if rule.name == "date"]
    moving = NoiseOptions(rules=(date.model_copy(update={"to": to}),), opt_in=("date",))
    chosen = Noise(moving if to else NoiseOptions()).filter("openai", "opencode/1.18")
    return bytes(chat_prompt(ChatAsk(messages, (TOOL,)), ToolPrompts(late_system), chosen).prompt.tokens).decode()


def shared(one, other):
    """How much of two prompts is their common beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def computed(prompt, known):
    """What of a prompt no earlier one began with."""
    return len(prompt) - shared(prompt, known)


@pytest.mark.parametrize("to", [None, "first_user"])
def test_within_a_day_each_turn_computes_only_what_is_new(to):
    turns = [prompt(conversation(DAYS[0], n), to) for n in range(1, 11)]
    for before, after in pairwise(turns):
        assert after.startswith(before)


def test_a_new_day_computes_everything_behind_the_date_where_it_is_left():
    known, today = (prompt(conversation(day, 10)) for day in DAYS)
    assert computed(today, known) > len(today) - len(SYSTEM) - 100


@pytest.mark.parametrize("late_system", [True, False])
def test_a_new_day_computes_the_tail_alone_where_the_date_comes_last(late_system):
    known, today = (prompt(conversation(day, 10), "last", late_system) for day in DAYS)
    tail = f"system: Today's date: {DAYS[1]}\n" if late_system else ""
    turn = "" if late_system else f"{DAYS[1]}\nassistant: I read 9.\ntool: {'Line 9. ' * 20}\n"
    assert today.endswith(tail + SPOKEN)
    assert computed(today, known) <= len(tail + turn + SPOKEN)


def test_a_date_that_comes_last_costs_the_reply_before_it_in_each_turn_and_no_more():
    turns = [prompt(conversation(DAYS[0], n), "last") for n in range(1, 11)]
    whole = [prompt(conversation(DAYS[0], n)) for n in range(1, 11)]
    for n, ((before, after), (short, long)) in enumerate(zip(pairwise(turns), pairwise(whole), strict=True)):
        moved = f"system: Today's date: {DAYS[0]}\n"
        assert computed(after, before) <= len(long) - len(short) + len(SPOKEN) + len(moved), n


def test_a_new_day_and_another_conversation_share_the_system_text_where_the_date_stands_at_the_first_user():
    known, today = (prompt(conversation(day, 10), "first_user") for day in DAYS)
    first_turn = today.index("\nuser: Question 0?")
    assert shared(known, today) > first_turn
    assert f"Question 0? \n\nToday's date: {DAYS[1]}\nassistant:" in today
