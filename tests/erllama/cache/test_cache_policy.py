"""What is saved when, and what is worth restoring: tables, since the numbers are the policy."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.cache.policy import CachePolicy, SaveReason, cold_upto, continued_upto, logits_due, worth_restoring
from erllama.errors import InvalidParameter

POLICY = CachePolicy()  # cold: from 512 tokens on, every 1024, without the last 32


@pytest.mark.parametrize(
    ("n_prompt", "n_kv", "n_saved", "upto"),
    [
        # too short, at any point
        (511, 256, 0, 0),
        (511, 511, 0, 0),
        # at the end: all but what is trimmed
        (512, 512, 0, 480),
        (5000, 5000, 4096, 4968),
        # on the way: whole blocks, and not before a step is full
        (5000, 512, 0, 0),
        (5000, 1023, 0, 0),
        (5000, 1024, 0, 1024),
        (5000, 1279, 0, 1024),
        (5000, 1280, 0, 1280),
        (5000, 1280, 1024, 0),
        (5000, 2047, 1024, 0),
        (5000, 2048, 1024, 2048),
        # what was restored counts as saved
        (5000, 2048, 1500, 0),
        (5000, 2560, 1500, 2560),
    ],
)
def test_how_much_of_a_prompt_is_due(n_prompt: int, n_kv: int, n_saved: int, upto: int):
    assert (
        cold_upto(
            POLICY, n_prompt=n_prompt, n_kv=n_kv, n_saved=n_saved, step_tokens=POLICY.cold_step_tokens, trims=True
        )
        == upto
    )


def test_the_end_of_a_prompt_is_not_trimmed_where_the_state_belongs_to_its_end():
    assert cold_upto(POLICY, n_prompt=600, n_kv=600, n_saved=0, step_tokens=1024, trims=False) == 600


@given(st.integers(1, 9000), st.data())
def test_what_is_due_is_in_the_context_and_before_the_end_whole_blocks(n_prompt: int, data: st.DataObject):
    n_kv = data.draw(st.integers(0, n_prompt))
    n_saved = data.draw(st.integers(0, n_kv))
    upto = cold_upto(
        POLICY,
        n_prompt=n_prompt,
        n_kv=n_kv,
        n_saved=n_saved,
        step_tokens=POLICY.cold_step_tokens,
        trims=data.draw(st.booleans()),
    )
    assert upto <= n_kv
    assert n_kv == n_prompt or upto % 256 == 0


@pytest.mark.parametrize(
    ("n_kv", "n_saved", "upto"),
    [(0, 0, 0), (2047, 0, 0), (2048, 0, 2048), (4095, 2048, 0), (4096, 2048, 4096), (3000, 900, 2816)],
)
def test_a_continued_save_is_due_at_an_interval_of_unsaved_tokens_and_takes_whole_blocks(
    n_kv: int, n_saved: int, upto: int
):
    assert continued_upto(POLICY, n_kv=n_kv, n_saved=n_saved, whole_blocks=True) == upto


def test_a_continued_save_of_a_state_that_cannot_be_cut_takes_all():
    assert continued_upto(POLICY, n_kv=3000, n_saved=900, whole_blocks=False) == 3000


@given(
    interval=st.integers(1, 700), n_given=st.integers(0, 900), n_reply=st.integers(0, 3000), n_saved=st.integers(0, 900)
)
def test_never_more_than_an_interval_or_a_block_of_a_reply_is_unsaved(
    interval: int, n_given: int, n_reply: int, n_saved: int
):
    policy, n_saved = replace(POLICY, continued_interval=interval), min(n_saved, n_given)
    for n_kv in range(n_given + 1, n_given + n_reply):
        n_saved = max(n_saved, continued_upto(policy, n_kv=n_kv, n_saved=n_saved, whole_blocks=True))
        assert n_kv - n_saved < max(interval, 256)


@pytest.mark.parametrize(
    ("logits_bytes", "new_kv_bytes", "always", "due"),
    [
        (100, 1600, False, True),
        (101, 1600, False, False),
        (100, 0, False, False),
        (100, 0, True, True),
        (0, 0, False, True),
    ],
)
def test_logits_are_stored_up_to_a_sixteenth_of_the_new_kv(
    logits_bytes: int, new_kv_bytes: int, always: bool, due: bool
):
    assert logits_due(POLICY, logits_bytes=logits_bytes, new_kv_bytes=new_kv_bytes, always=always) is due


@pytest.mark.parametrize(
    ("n_tokens", "read_s", "rate", "worth"),
    [(1000, 0.9, 1000.0, True), (1000, 1.0, 1000.0, False), (1000, 1.1, 1000.0, False), (1000, 60.0, 0.0, True)],
    ids=["faster", "as fast", "slower", "rate not known yet"],
)
def test_restoring_is_worth_it_when_it_is_faster_than_computing(n_tokens: int, read_s: float, rate: float, worth: bool):
    assert worth_restoring(n_tokens, read_s=read_s, prefill_tokens_per_s=rate) is worth


def test_there_are_six_reasons():
    assert [str(reason) for reason in SaveReason] == ["cold", "continued", "finish", "idle", "evict", "shutdown"]


INTERVALS = ("cold_step_tokens", "continued_interval", "checkpoint_interval")
BAD = {
    "int": (-1, 1.5, "512", None, True),
    "float": (-0.1, float("nan"), float("inf"), "1", None, True),
    "bool": (0, 1, "yes", None),
}


@pytest.mark.parametrize(("name", "value"), [(f.name, bad) for f in fields(CachePolicy) for bad in BAD[str(f.type)]])
def test_a_bad_value_is_refused_and_the_message_names_field_and_value(name: str, value: object):
    with pytest.raises(InvalidParameter, match=name) as caught:
        CachePolicy(**{name: value})
    assert caught.value.param == name
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", INTERVALS)
def test_an_interval_is_at_least_one(name: str):
    with pytest.raises(InvalidParameter, match=f"{name} must be at least 1, got 0"):
        CachePolicy(**{name: 0})


def test_the_checkpoint_interval_is_whole_blocks():
    with pytest.raises(InvalidParameter, match="multiple of 256, got 300"):
        CachePolicy(checkpoint_interval=300)


@pytest.mark.parametrize("name", [f.name for f in fields(CachePolicy) if f.type != "bool" and f.name not in INTERVALS])
def test_a_gate_may_be_zero(name: str):
    assert getattr(CachePolicy(**{name: 0}), name) == 0
