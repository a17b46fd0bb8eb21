"""Rules keep what turns have in common: a history looks the same in every turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.noise.normalise import normalise
from deployments.noise.report import NoiseCounters, Report
from deployments.noise.rules import read_rules

RULES = """
- {name: by, action: replace, role: system, position: first, pattern: '(?m)^hash: \\w+', by: 'hash: -'}
- {name: drop, action: drop, role: user, position: any, pattern: '\\[id \\w+\\]'}
- {name: day, action: move, role: system, position: first, pattern: '(?m)^day: \\w+\\n?', to: first_user}
- {name: sort, action: sort_tools}
"""
CLOCK = "[{name: clock, action: move, role: system, position: first, pattern: '(?m)^now: \\w+\\n?', to: last}]"


def run(rules, messages, *, late_system=True, tools=()):
    return normalise(messages, tools, read_rules(rules), late_system=lambda: late_system)


def message(role, content, **fields):
    return {"role": role, "content": content, **fields}


MESSAGES = st.lists(
    st.builds(
        message,
        st.sampled_from(["user", "assistant", "tool", "system"]),
        st.lists(st.sampled_from(["hash: a1", "day: mon", "[id x]", "\n", "word", " "]), max_size=6).map("".join),
    ),
    max_size=8,
)


@given(head=MESSAGES, turn=MESSAGES)
def test_the_next_turn_begins_with_this_one(head, turn):
    first = [message("system", "hash: q\nday: mon\nhi"), message("user", "go"), *head]
    before, after = run(RULES, first).messages, run(RULES, [*first, *turn]).messages
    assert after[: len(before)] == before


@given(messages=MESSAGES)
def test_what_was_given_is_not_changed(messages):
    before = [dict(one) for one in messages]
    run(RULES, messages)
    assert messages == before


def clocked(time, *more):
    return [message("system", f"Be brief.\nnow: {time}\nAnd kind."), message("user", "go"), *more]


CALL = message("assistant", "", tool_calls=[{"id": "call_0"}])
RESULT = message("tool", "done", tool_call_id="call_0")


def test_a_text_that_comes_last_costs_itself_alone_when_it_changes():
    one, two = (run(CLOCK, clocked(time, CALL, RESULT)).messages for time in ("a", "b"))
    assert one[:-1] == two[:-1] == [message("system", "Be brief.\nAnd kind."), message("user", "go"), CALL, RESULT]
    assert [shown[-1] for shown in (one, two)] == [message("system", f"now: {time}") for time in "ab"]


def test_a_text_that_came_last_leaves_when_it_is_no_longer_last():
    before = run(CLOCK, clocked("a")).messages
    after = run(CLOCK, clocked("b", CALL, RESULT, message("user", "on"))).messages
    assert before == [message("system", "Be brief.\nAnd kind."), message("user", "go\n\nnow: a")]
    assert after == [
        message("system", "Be brief.\nAnd kind."),
        message("user", "go"),
        CALL,
        RESULT,
        message("user", "on\n\nnow: b"),
    ]


def test_where_the_template_shows_no_late_system_messages_the_users_last_one_is_last():
    shown = run(CLOCK, clocked("a", CALL, RESULT), late_system=False).messages
    assert shown[1:] == [message("user", "go\n\nnow: a"), CALL, RESULT]


def test_a_template_is_asked_only_when_it_matters():
    def asked():
        raise AssertionError("asked")

    for more in ((), (CALL,), (CALL, RESULT, message("user", "on"))):
        normalise(clocked("a", *more), [], read_rules(CLOCK), late_system=asked)
    with pytest.raises(AssertionError):
        normalise(clocked("a", CALL, RESULT), [], read_rules(CLOCK), late_system=asked)


def test_what_has_no_place_to_go_is_left_and_counted():
    alone = [message("system", "now: a\nBe brief."), message("assistant", "Yes.")]
    normal = run(CLOCK, alone)
    assert (normal.messages, normal.report) == (alone, Report({}, {"clock": 1}))
    assert normal.report.header() == "clock.left=1"


def test_a_message_that_was_nothing_but_moved_text_goes():
    assert run(CLOCK, [message("system", "now: a"), message("user", "go")]).messages == [
        message("user", "go\n\nnow: a")
    ]
    early = CLOCK.replace("role: system", "role: user")
    given = [message("user", "now: a"), message("user", "go")]
    assert run(early, given).messages == [message("user", "go\n\nnow: a")]
    assert run(early, given[:1]).messages == [message("user", "now: a")]


def test_a_match_that_the_end_of_the_searched_part_cuts_short_is_none():
    rule = "[{{name: a, action: drop, role: system, position: first, search_chars: {}, pattern: 'x{{1,9}}'}}]"
    texts = [(6, "ab"), (5, "abxxxx"), (4, "abxxxx")]
    for search_chars, text in texts:
        assert run(rule.format(search_chars), [message("system", "abxxxx")]).messages[0]["content"] == text
    assert run(rule.format(3), [message("system", "axbxx")]).messages[0]["content"] == "abxx"


def test_a_system_message_that_does_not_begin_the_conversation_is_not_the_first():
    later = [message("user", "go"), message("system", "hash: a\nday: mon")]
    assert run(RULES, later).messages == later


def test_counts_add_up_over_requests():
    told: list[tuple[str, int]] = []
    counters = NoiseCounters(lambda name, n: told.append((name, n)))
    for report in (Report({"b": 2}, {"a": 1}), Report(), Report({"b": 1, "a": 5})):
        counters.add(report)
    assert counters.snapshot() == {"a": 5, "a.left": 1, "b": 3}
    assert told == [("b", 2), ("a.left", 1), ("b", 1), ("a", 5)]
