"""Which rule would have kept two prompts together, by the text around the point where they part."""

import pytest

from deployments.noise.blame import blamed_rule
from deployments.noise.rules import packaged_rules, read_rules

TAIL = "\nYou are an agent. Follow the rules below.\n"
TOOLS = '<tools>\n{{"name": "{}", "description": "x"}}\n{{"name": "{}", "description": "y"}}\n</tools>' + TAIL


def blamed(a, b, in_tools=False, rules=None):
    n = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return blamed_rule(a[:n], a[n:], b[n:], in_tools, rules)


@pytest.mark.parametrize(
    ("rule", "a", "b"),
    [
        ("billing-header", "x-anthropic-billing-header: cc_version=2.1.4; cch=a1b;" + TAIL,
         "x-anthropic-billing-header: cc_version=2.1.5; cch=09f;" + TAIL),
        ("attribution-header", "x-request-id: 0f8fad5b-d9cb-469f\nYou are an agent, this one.",
         "x-request-id: 7c9e6679-7425-40de\nYou are an agent, this one."),
        ("message-id", "Hello there [message_id: abc12345] and more of what was said",
         "Hello there [message_id: zyx98765] and more of what was said"),
        ("context-size", "Model: Opus 4 (1M context) runs in the directory", "Model: Opus 4 runs in the directory"),
        ("date", "Rules.\nToday's date: 2026-11-28" + TAIL, "Rules.\nToday's date: 2026-11-29" + TAIL),
        ("date", "Today's date: Friday, November 28" + TAIL, "Today's date: Saturday, November 29" + TAIL),
        ("clock", "Current time: 07:11:42" + TAIL, "Current time: 09:30:00" + TAIL),
        ("turn-context", "<turn-context>\nNow: 07:11\n</turn-context>\nPlease mend the parser of mine",
         "<turn-context>\nNow: 07:12\n</turn-context>\nPlease mend the parser of mine"),
        ("memory-gauge", "Memories [49% - 1,085/2,200 chars] of earlier days", "Memories [51% - 1,122/2,200 chars] of earlier days"),
    ],
)  # fmt: skip
def test_each_rule_is_found_by_what_it_would_have_taken_out(rule, a, b):
    assert blamed(a, b) == rule
    assert blamed(a, b, rules=[one for one in packaged_rules() if one.name != rule]) is None


def test_tools_in_another_order():
    assert blamed(TOOLS.format("get", "put"), TOOLS.format("put", "get"), in_tools=True) == "sort-tools"
    assert blamed(TOOLS.format("get", "put"), TOOLS.format("put", "cut"), in_tools=True) is None
    assert blamed(TOOLS.format("get", "put"), TOOLS.format("put", "get"), in_tools=False) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("You are helpful." + TAIL, "You are terse." + TAIL),
        ("Today's date: 2026-11-28" + TAIL, "Today's date: 2026-11-29\nWe were somebody else, far away."),  # more changed
        ("Today's date: 2026-11-28" + TAIL + "Then A", "Today's date: 2026-11-28" + TAIL + "Then B"),  # not there
    ],
)  # fmt: skip
def test_no_rule_is_blamed_for_what_it_would_not_have_mended(a, b):
    assert blamed(a, b) is None


def test_ones_own_rules_count_where_they_are_given():
    rules = read_rules("[{name: build, action: drop, role: system, position: first, pattern: 'build [0-9a-f]+'}]")
    assert blamed("My agent, build 12ab" + TAIL, "My agent, build 34cd" + TAIL, rules=rules) == "build"
