"""What a configuration of rules may say: everything else is refused at start, with its place."""

import pytest
from pydantic import ValidationError

from deployments.config import BuildArgs
from deployments.noise.filter import Noise
from deployments.noise.options import NoiseOptions
from deployments.noise.rules import packaged_rules, read_rules

DROP = {"name": "mine", "action": "drop", "role": "system", "position": "first", "pattern": "x+"}
MOVE = DROP | {"action": "move", "to": "last"}


def noise(**keys):
    args = {"models": [{"id": "m", "path": "m.gguf"}], "http": {"noise": keys}}
    return BuildArgs.model_validate(args).http.noise


@pytest.mark.parametrize(
    ("keys", "place", "reason"),
    [
        ({"enable": True}, "http.noise.enable", "xtra"),
        ({"rules": [DROP | {"patern": "x"}]}, "http.noise.rules.0.drop.patern", "xtra"),
        ({"rules": [DROP | {"pattern": "("}]}, "http.noise.rules.0.drop.pattern", "missing ): ("),
        ({"rules": [DROP | {"pattern": r"(\w)\1"}]}, "http.noise.rules.0.drop.pattern", "invalid escape sequence"),
        ({"rules": [DROP | {"pattern": "x*"}]}, "http.noise.rules.0.drop.pattern", "matches the empty text"),
        ({"rules": [DROP | {"pattern": "x" * 1001}]}, "http.noise.rules.0.drop.pattern", "1000"),
        ({"rules": [DROP | {"search_chars": 0}]}, "http.noise.rules.0.drop.search_chars", "1"),
        ({"rules": [DROP | {"search_chars": 2**21}]}, "http.noise.rules.0.drop.search_chars", "1048576"),
        ({"rules": [DROP | {"position": "last"}]}, "http.noise.rules.0.drop.position", "'first'"),
        ({"rules": [DROP | {"role": "human"}]}, "http.noise.rules.0.drop.role", "'user'"),
        ({"rules": [DROP | {"by": "y"}]}, "http.noise.rules.0.drop.by", "xtra"),
        ({"rules": [DROP | {"action": "replace"}]}, "http.noise.rules.0.replace.by", "equired"),
        ({"rules": [DROP | {"action": "burn"}]}, "http.noise.rules.0", "burn"),
        ({"rules": [DROP | {"name": "My rule"}]}, "http.noise.rules.0.drop.name", "pattern"),
        ({"rules": [DROP | {"dialects": ["grok"]}]}, "http.noise.rules.0.drop.dialects.0", "'anthropic'"),
        ({"rules": [DROP | {"user_agent": "["}]}, "http.noise.rules.0.drop.user_agent", "missing ]"),
        ({"rules": [MOVE | {"position": "any"}]}, "http.noise.rules.0.move.position", "'first'"),
        ({"rules": [MOVE | {"to": "front"}]}, "http.noise.rules.0.move.to", "'last'"),
        ({"rules": [DROP, DROP]}, "http.noise.rules", "two rules have the name 'mine'"),
        ({"disabled": ["nothing"]}, "http.noise", "disabled names 'nothing'"),
        ({"opt_in": ["nothing"]}, "http.noise", "opt_in names 'nothing'"),
        ({"opt_in": ["total-tokens"]}, "http.noise", "does nothing"),
    ],
)
def test_what_is_wrong_in_a_config_is_refused_with_its_place(keys, place, reason):
    with pytest.raises(ValidationError) as caught:
        noise(**keys)
    [fault] = caught.value.errors()
    assert ".".join(map(str, fault["loc"])) == place
    assert reason in fault["msg"]


def test_a_file_with_two_rules_of_one_name_is_refused():
    rule = "{name: a, action: keep}"
    with pytest.raises(ValueError, match="two rules have the name 'a'"):
        read_rules(f"[{rule}, {rule}]")


def test_ones_own_rules_run_behind_the_packaged_ones_and_may_stand_for_them():
    own = DROP | {"name": "billing-header"}
    chosen = noise(rules=[DROP, own], opt_in=["date"], disabled=["attribution-header"])
    assert [(rule.name, rule.action) for rule in chosen.active_rules] == [
        ("billing-header", "drop"),
        ("date", "move"),
        ("mine", "drop"),
    ]
    assert not noise(enabled=False, rules=[DROP]).active_rules
    assert len(chosen.known_rules) == len(packaged_rules()) + 1


def test_a_config_of_rules_survives_the_way_to_the_ingress():
    args = {"models": [{"id": "m", "path": "a"}], "http": {"noise": {"rules": [DROP, MOVE | {"name": "b"}]}}}
    parsed = BuildArgs.model_validate(args)
    assert BuildArgs.model_validate(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    ("limits", "dialect", "agent", "applies"),
    [
        ({}, "openai", "", True),
        ({"dialects": ["anthropic", "responses"]}, "responses", "", True),
        ({"dialects": ["anthropic"]}, "openai", "", False),
        ({"user_agent": "^goose/"}, "openai", "goose/1.2", True),
        ({"user_agent": "^goose/"}, "openai", "curl goose/1.2", False),
        ({"user_agent": "z"}, "openai", "a" * 512 + "z", False),  # no more of it is looked at
    ],
)
def test_a_rule_is_for_the_clients_that_it_names(limits, dialect, agent, applies):
    chosen = Noise(NoiseOptions(rules=[DROP | limits])).filter(dialect, agent)
    shown = chosen.apply([{"role": "system", "content": "axxb"}], [], lambda: True).messages
    assert shown == [{"role": "system", "content": "ab" if applies else "axxb"}]


def test_a_pattern_that_would_backtrack_takes_no_time():
    chosen = Noise(NoiseOptions(rules=[DROP | {"pattern": "(a+)+b"}])).filter("openai", "")
    text = "a" * 4000  # Python's own `re` would not end
    assert chosen.apply([{"role": "system", "content": text}], [], lambda: True).messages[0]["content"] == text
