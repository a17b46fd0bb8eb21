"""A reply that is bounded in time ends with a line, and only with one."""

import pytest

from erllama.errors import InvalidParameter
from erllama.events import FinishReason
from tests.support.engine_kit import make_rig, request

NEW_LINES = ((ord("\n"), 100.0),)  # each token is one
LETTERS = ((ord("\n"), -100.0),)


@pytest.mark.parametrize(
    ("bias", "line_time_ms", "whole"),
    [(NEW_LINES, None, True), (NEW_LINES, 10**6, True), (LETTERS, 1, True), (NEW_LINES, 5, False)],
)
def test_the_first_line_that_ends_late_is_the_last_one(bias, line_time_ms, whole):
    rig = make_rig()  # its clock ticks a millisecond at every look
    rig.submit(request("it", max_tokens=60, logit_bias=bias, line_time_ms=line_time_ms))
    rig.run()
    assert rig.reason("it") is FinishReason.LENGTH
    assert (len(rig.ids("it")) == 60) is whole
    assert len(rig.ids("it")) > 1, "the first line had its time"


@pytest.mark.parametrize("line_time_ms", [0, -1, True, 1.5, "1", 2**31])
def test_the_time_is_a_number_of_milliseconds(line_time_ms):
    with pytest.raises(InvalidParameter, match="line_time_ms"):
        request("it", line_time_ms=line_time_ms)
