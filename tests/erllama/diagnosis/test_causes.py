"""Which cause is named: a table over what is known of a prompt."""

import pytest

from erllama.diagnosis.cause import Facts, Kept, cause_of, looks_generated
from erllama.diagnosis.place import Place
from erllama.diagnosis.record import Cause, StoreAnswer


def facts(**given):
    """A prompt of 5000 tokens that leaves a conversation of 6000 at token 4000, all of which was cached."""
    usual = {"n_prompt": 5000, "n_cached": 4000, "n_known": 4000, "n_branch": 6000, "kept": Kept(512, 288)}
    return Facts(**{**usual, **given})


LOST = {"n_cached": 0, "n_prompt": 4100}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"n_cached": 0, "n_known": 0, "n_branch": 0}, "first_seen"),
        ({"place": Place.MESSAGE}, "first_seen"),  # another conversation behind the same system text
        ({"ends": True}, "extended"),
        ({"n_prompt": 4000, "place": Place.MESSAGE}, "extended"),  # all of it was known
        ({"n_prompt": 4000, "n_cached": 3800}, "extended"),  # but for a block and the end, which are not stored
        ({"place": Place.SYSTEM, "rule": "date", "generated": True, "similar": True}, "noise:date"),
        ({"place": Place.SYSTEM, "generated": True}, "date_or_id"),
        ({"place": Place.MESSAGE, "generated": True, "similar": True}, "date_or_id"),
        ({"place": Place.MESSAGE, "generated": True, "has_reply": True}, "edited_history"),  # a number somebody wrote
        ({"place": Place.SYSTEM, "similar": True}, "system_changed"),
        ({"place": Place.SYSTEM, "n_cached": 900, "n_known": 900}, "first_seen"),  # another agent
        ({"place": Place.TOOLS, "n_cached": 900, "n_known": 900}, "first_seen"),
        ({"place": Place.SYSTEM}, "system_changed"),  # most of it is the same, whatever is asked then
        ({"place": Place.TOOLS}, "tools_changed"),
        ({"place": Place.TOOLS, "similar": True}, "tools_changed"),
        ({"place": Place.HEAD, "similar": True}, "template_changed"),
        ({"place": Place.OPENING}, "template_changed"),
        ({"place": Place.MESSAGE, "has_reply": True}, "edited_history"),
        ({"place": Place.TEXT, "similar": True}, "edited_history"),
        (LOST, "evicted"),
        ({**LOST, "ends": True}, "evicted"),  # also where it goes on from what was known
        ({**LOST, "n_branch": 400, "n_known": 400, "n_prompt": 420}, "below_threshold"),
        ({**LOST, "answer": StoreAnswer(4000, 4000, cheaper=True)}, "below_threshold"),
        ({**LOST, "answer": StoreAnswer(4000, 1000)}, "store_unavailable"),
        ({**LOST, "answer": StoreAnswer(4000, 4000)}, "store_unavailable"),
        ({**LOST, "answer": StoreAnswer(problem="TierError")}, "store_unavailable"),
        ({**LOST, "unavailable": ("disk",)}, "store_unavailable"),
        ({"n_cached": 3000, "n_prompt": 4100, "ends": True}, "evicted"),  # its end alone
        ({"n_cached": 2048, "n_prompt": 4100, "ends": True, "kept": Kept(512, 2080, False)}, "extended"),
        ({**LOST, "has_reply": True, "place": Place.MESSAGE, "kept": Kept(512, 2080, False)}, "edited_history"),
        ({**LOST, "ends": True, "kept": Kept(512, 2080, False)}, "evicted"),  # its last checkpoint has gone, too
        ({**LOST, "n_known": 40, "n_branch": 6000, "n_prompt": 5000, "place": Place.SYSTEM, "similar": True},
         "system_changed"),
    ],
)  # fmt: skip
def test_the_cause_follows_from_the_facts(given, cause):
    assert cause_of(facts(**given))[0] == cause


def test_every_cause_is_named_by_some_fact_but_for_what_only_other_replicas_know():
    named = {str(param).partition(":")[0] for _, param in test_the_cause_follows_from_the_facts.pytestmark[0].args[1]}
    assert set(Cause) - named == {Cause.OTHER_REPLICA}


@pytest.mark.parametrize(
    ("part", "a", "b", "is_generated"),
    [
        ("Today is 2026-11-2", "8.\nYou are", "9.\nYou are", True),
        ("Today is ", "Friday, November 28, 2026\nYou", "Saturday, November 29, 2026\nYou", True),
        ("now: 2026-11-28T", "07:11:42Z\nBe", "09:00:01Z\nBe", True),
        ("session ", "550e8400-e29b-41d4-a716-446655440000 rules", "6ba7b810-9dad-11d1-80b4-00c04fd430c8 rules", True),
        ("build ", "a41f9c2\n", "0be77d1\n", True),
        ('{"turn": ', '12, "of": 20}', '13, "of": 20}', True),
        ("You are ", "helpful. Answer", "terse. Answer", False),
        ("Use ", "12 words here", "a few words here", False),
        ("Today is 2026-11-2", "8.\nYou are", "9.\nWe are", False),  # and more changed
        ("Number ", "12", "13", False),  # nothing follows that could be alike
    ],
)
def test_what_looks_generated(part, a, b, is_generated):
    assert looks_generated(part, a, b) is is_generated
