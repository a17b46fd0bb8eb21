"""How far a prompt is: told to requests that ask, once it is known what was taken over and after
each slice.
"""

from erllama.errors import DecodeFailed
from erllama.events import Done, Failed, Progress, Tokens
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import OnCall, make_rig, request
from tests.support.flow_kit import ask, flushed, open_store, prompt, rig_of

PROMPT = "a prompt of three slices and a bit, sixteen at a time"  # 53 tokens


def told(rig, name):
    return [event for event in rig.events[name] if isinstance(event, Progress)]


def counts(rig, name):
    return [(event.cached, event.processed, event.total) for event in told(rig, name)]


def test_a_cold_prompt_is_told_from_nothing_to_all_slice_by_slice():
    rig = make_rig()
    rig.submit(request("r", PROMPT, max_tokens=2, report_progress=True))
    rig.run()
    assert counts(rig, "r") == [(0, n, 53) for n in (0, 16, 32, 48, 53)]
    assert {event.tier for event in told(rig, "r")} == {None}
    times = [event.elapsed_ms for event in told(rig, "r")]
    assert times[0] >= 0
    assert times == sorted(set(times))
    assert [type(event) for event in rig.events["r"][5:]] == [Tokens, Tokens, Done]
    assert rig.done("r").stats.prefill_ms >= times[-1]


def test_who_does_not_ask_is_told_nothing():
    rig = make_rig()
    rig.submit(request("r", PROMPT, max_tokens=2))
    rig.run()
    assert told(rig, "r") == []


def test_the_start_leaves_before_the_decode_that_follows():
    rig = make_rig(stream_interval_ms=10_000)
    seen = []
    decode = rig.backend.decode

    def watched(plan):
        seen.append(len(told(rig, "r")))
        return decode(plan)

    rig.backend.decode = watched
    rig.submit(request("r", PROMPT, max_tokens=1, report_progress=True))
    rig.run()
    assert seen == [1, 2, 3, 4]


def test_a_neighbours_prefix_is_told_as_live():
    rig = make_rig()
    rig.submit(request("first", PROMPT, max_tokens=1))
    rig.run()
    rig.submit(request("second", PROMPT[:40] + "something else", max_tokens=1, report_progress=True))
    rig.run()
    assert counts(rig, "second") == [(40, 40, 54), (40, 48, 54), (40, 54, 54)]
    assert {event.tier for event in told(rig, "second")} == {"live"}
    assert rig.done("second").stats.cached_tokens == 40


def test_a_prompt_whose_logits_are_known_is_told_once():
    rig = make_rig()
    rig.submit(request("first", PROMPT, max_tokens=1))
    rig.run()
    rig.submit(request("again", PROMPT, max_tokens=1, report_progress=True))
    rig.run()
    assert counts(rig, "again") == [(53, 53, 53)]


def test_a_restore_is_told_when_it_has_come_with_its_tier(tmp_path):
    with open_store(tmp_path) as store:
        first, reads = rig_of(store), OnCall()
        ask(first, "first", prompt(1000))
        first.engine.evict()
        flushed(store)
        rig = rig_of(store, executor=reads)
        rig.submit(request("second", [*prompt(1000), *prompt(300, 1)], max_tokens=1, report_progress=True))
        rig.step()
        assert told(rig, "second") == [], "what comes is not known yet"
        while not rig.ended("second"):
            reads.run()
            rig.step()
        assert counts(rig, "second") == [(1000, n, 1300) for n in (1000, 1024, 1280, 1300)]
        assert {event.tier for event in told(rig, "second")} == {"disk"}


def test_a_prefill_that_is_cancelled_or_fails_is_told_no_further():
    rig = make_rig(StubBackend(256, 4, reply_tokens=0, fail_tokens=frozenset({7})))
    rig.submit(request("left", PROMPT, report_progress=True))
    rig.step(2)
    rig.engine.cancel("left")
    rig.run()
    assert counts(rig, "left") == [(0, 0, 53), (0, 16, 53), (0, 32, 53)]
    assert rig.done("left").stats.cancelled
    rig.submit(request("bad", [*b"twenty other tokens.", 7], report_progress=True))
    rig.run()
    assert counts(rig, "bad") == [(0, 0, 21), (0, 16, 21)]
    assert isinstance(rig.error("bad"), DecodeFailed)
    assert [type(event) for event in rig.events["bad"][-1:]] == [Failed]


def test_a_prefill_alone_is_told_to_its_end():
    rig = make_rig()
    rig.submit(request("r", PROMPT, max_tokens=0, report_progress=True))
    rig.run()
    assert counts(rig, "r")[-1] == (0, 53, 53)
    assert isinstance(rig.events["r"][-1], Done)
