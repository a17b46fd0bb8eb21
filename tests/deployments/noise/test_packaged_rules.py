"""Each packaged rule beside a shape that a client sends, as recorded from the clients and told in
other words: what the rule leaves of it, and what it does not touch.
"""

import dataclasses
import time

import pytest

from deployments.ingress.http_app import DIALECTS
from deployments.noise.filter import Noise
from deployments.noise.options import NoiseOptions
from deployments.noise.rules import DialectName, KeepRule, packaged_rules, read_rules

PROMPT = "You help with code.\nBe brief."
HI = {"role": "user", "content": "hi"}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def tool(name):
    return {"type": "function", "function": {"name": name}}


@dataclasses.dataclass
class Case:
    """`messages` as sent, `shown` as the rule `name` alone leaves them, with what it counts."""

    name: str
    messages: list
    shown: list
    counts: dict
    tools: list = dataclasses.field(default_factory=list)
    shown_tools: list | None = None


HEADER = "x-anthropic-billing-header:"
ENV = "<env>\n  Working directory: /home/a\n  Platform: linux\n{}</env>\n"
CASES = [
    Case(
        "billing-header",
        [system(f"{HEADER} cc_version=2.1.257.1f2; cc_entrypoint=sdk-cli;\n{PROMPT}"), HI],
        [system(f"{HEADER} -\n{PROMPT}"), HI],
        {"billing-header": 1},
    ),
    Case(  # before 2.1.181: another hash in each request
        "billing-header",
        [system(f"{HEADER} cc_version=2.1.170.0aa; cc_entrypoint=cli; cch=9f3e1;\n{PROMPT}"), HI],
        [system(f"{HEADER} -\n{PROMPT}"), HI],
        {"billing-header": 1},
    ),
    Case(  # what a user quotes is the user's
        "billing-header",
        [system(PROMPT), user(f"{HEADER} cch=1;")],
        [system(PROMPT), user(f"{HEADER} cch=1;")],
        {},
    ),
    Case(  # far from the head it is no header
        "billing-header",
        [system("x" * 1100 + f"\n{HEADER} cch=1;")],
        [system("x" * 1100 + f"\n{HEADER} cch=1;")],
        {},
    ),
    Case(
        "attribution-header",
        [system(f"x-request-id: 0f8fad5b-d9cb-469f-a165-70867728950e\nx-prompt-hash: 9f3e1c\n{PROMPT}"), HI],
        [system(PROMPT), HI],
        {"attribution-header": 2},
    ),
    Case(  # a text in a header's form is a text
        "attribution-header",
        [system(f"x-house-id: say the number of the house\n{PROMPT}")],
        [system(f"x-house-id: say the number of the house\n{PROMPT}")],
        {},
    ),
    Case(
        "message-id",
        [user("hello\n[message_id: msg_01HZX9K2]"), {"role": "assistant", "content": "[message_id: msg_01HZX9K2]"}],
        [user("hello"), {"role": "assistant", "content": "[message_id: msg_01HZX9K2]"}],
        {"message-id": 1},
    ),
    Case(
        "context-size",
        [system(f"{PROMPT}\nThe model is named large-5 (1M context).")],
        [system(f"{PROMPT}\nThe model is named large-5.")],
        {"context-size": 1},
    ),
    Case(
        "date",
        [system(PROMPT + "\n" + ENV.format("  Today's date: Fri Nov 27 2026\n") + "More."), HI, user("and?")],
        [system(PROMPT + "\n" + ENV.format("") + "More."), user("hi\n\nToday's date: Fri Nov 27 2026"), user("and?")],
        {"date": 1},
    ),
    Case(
        "date",
        [system(f"{PROMPT}\nToday's date is 2026-11-27."), HI],
        [system(f"{PROMPT}\n"), user("hi\n\nToday's date is 2026-11-27.")],
        {"date": 1},
    ),
    Case("date", [system("Today's date is 2026-11-27.")], [system("Today's date is 2026-11-27.")], {"date.left": 1}),
    Case(
        "clock",
        [system(f"Current time: 2026-11-27 10:31\n{PROMPT}"), HI, {"role": "assistant", "content": "Hi."}, user("?")],
        [system(PROMPT), HI, {"role": "assistant", "content": "Hi."}, user("?\n\nCurrent time: 2026-11-27 10:31")],
        {"clock": 1},
    ),
    Case(
        "turn-context",
        [
            system(PROMPT),
            user("<turn-context>\nIt is 2026-11-27 10:31\n</turn-context>\n"),
            user("do it"),
            {"role": "tool", "content": "done", "tool_call_id": "call_0"},
        ],
        [
            system(PROMPT),
            user("do it"),
            {"role": "tool", "content": "done", "tool_call_id": "call_0"},
            system("<turn-context>\nIt is 2026-11-27 10:31\n</turn-context>"),
        ],
        {"turn-context": 1},
    ),
    Case(
        "memory-gauge",
        [system("Notes [49% - 1,085/2,200 chars]\n- a\nUser [3% — 41/1,375 chars]\n- b"), HI],
        [
            system("Notes\n- a\nUser\n- b"),
            user("hi\n\nUse of the memories above, in their order:\n[49% - 1,085/2,200 chars]\n[3% — 41/1,375 chars]"),
        ],
        {"memory-gauge": 2},
    ),
    Case("sort-tools", [HI], [HI], {"sort-tools": 1}, [tool("b"), tool("a")], [tool("a"), tool("b")]),
    Case("sort-tools", [HI], [HI], {}, [tool("a"), tool("b")], [tool("a"), tool("b")]),
]


def applied(name, messages, tools=(), *, late_system=True):
    """What the one rule makes of it, and what it counts."""
    others = tuple(rule.name for rule in packaged_rules() if rule.name != name)
    opt_in = tuple(rule.name for rule in packaged_rules() if rule.name == name and rule.opt_in)
    chosen = Noise(NoiseOptions(disabled=others, opt_in=opt_in)).filter("openai", "")
    normal = chosen.apply(messages, tools, lambda: late_system)
    return normal.messages, normal.tools, chosen.report.counts()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_rule_makes_of_what_clients_send(case):
    messages, tools, counts = applied(case.name, case.messages, case.tools)
    assert messages == case.shown
    assert tools == (case.tools if case.shown_tools is None else case.shown_tools)
    assert counts == case.counts


def test_every_rule_that_does_something_has_a_shape():
    does = {rule.name for rule in packaged_rules() if not isinstance(rule, KeepRule)}
    assert does == {case.name for case in CASES}


def test_of_themselves_only_rules_run_whose_text_says_nothing_to_a_model():
    assert [rule.name for rule in NoiseOptions().active_rules] == ["billing-header", "attribution-header"]


def test_rules_name_dialects_that_exist():
    assert set(DialectName.__args__) <= {dialect.name for dialect in DIALECTS}


def test_what_is_kept_is_told_why_and_does_nothing():
    kept = [rule for rule in packaged_rules() if isinstance(rule, KeepRule)]
    assert [rule.name for rule in kept] == ["total-tokens", "environment", "session-date"]
    assert all(rule.about for rule in packaged_rules())
    reminder = system("<total_tokens>15000000 tokens left</total_tokens>")
    everything = Noise(NoiseOptions(opt_in=tuple(rule.name for rule in packaged_rules() if rule.opt_in)))
    conversation = [system(PROMPT), HI, reminder]
    assert (
        everything.filter("anthropic", "claude-cli/2.1").apply(conversation, [], lambda: True).messages == conversation
    )


HOSTILE = [
    "x-anthropic-billing-header:" * 12_000,
    "x-a-id: " * 40_000,
    ("x" + "-a" * 20) * 8_000,
    "Today's date is " * 20_000,
    " \t" * 160_000,
    "<turn-context>" * 23_000,
    "[message_id: " * 25_000,
    " [9% - " * 45_000,
    " (1M" * 80_000,
    "\n" * 320_000,
    "é" * 320_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_no_text_makes_a_rule_slow(text):
    """Beside one pass of a search for a letter that is not there, which is the least a rule can do; a
    pattern that backtracks takes thousands of times as long.
    """
    everything = Noise(NoiseOptions(opt_in=tuple(rule.name for rule in packaged_rules() if rule.opt_in)))
    baseline = read_rules(
        "[{name: a, action: drop, role: system, position: any, search_chars: 1000000, pattern: '☃+'}]"
    )
    plain = Noise(NoiseOptions(enabled=True, disabled=("billing-header", "attribution-header"), rules=baseline))
    messages = [system(text), user(text)]

    def seconds(noise):
        chosen, started = noise.filter("openai", ""), time.process_time()
        chosen.apply(messages, [], lambda: True)
        return time.process_time() - started

    least = max(min(seconds(plain) for _ in range(3)), 0.001)
    assert min(seconds(everything) for _ in range(3)) < 200 * least
