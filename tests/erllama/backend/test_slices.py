"""Where slices may end: whatever their lengths, a row is computed with a whole unit of others or in the
rest of its prompt.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.backend.slices import slice_end

units = st.sampled_from([16, 64])
lengths = st.lists(st.integers(1, 700), min_size=1, max_size=40)


def ends(start: int, end: int, lengths: list[int], unit: int) -> list[int]:
    """Where the slices of a prompt end, with lengths that change from one to the next."""
    found, at, i = [], start, 0
    while at < end:
        at = slice_end(at, end, lengths[i % len(lengths)], unit)
        found.append(at)
        i += 1
    return found


@given(st.integers(1, 3000), lengths, units)
def test_a_cold_prompt_is_cut_at_units_and_its_rest_is_apart(end, lengths, unit):
    cuts = ends(0, end, lengths, unit)
    assert cuts == sorted(set(cuts))
    assert cuts[-1] == end
    assert all(cut % unit == 0 for cut in cuts[:-1])
    assert end - end % unit in (0, *cuts)


@given(st.integers(0, 2000), st.integers(1, 2000), st.integers(1, 700), units)
def test_a_slice_is_no_longer_than_asked_but_for_one_unit_and_the_way_to_a_boundary(start, n, length, unit):
    cut = slice_end(start, start + n, length, unit)
    assert start < cut <= start + max(length, unit + -start % unit)


@given(st.integers(0, 2000), st.integers(1, 2000), lengths, units)
def test_from_between_two_boundaries_the_first_slice_has_a_whole_unit_where_the_prompt_has_one(start, n, lengths, unit):
    cut, last = ends(start, start + n, lengths, unit)[0], (start + n) // unit * unit
    assert cut - start >= unit or cut in (last, start + n)


@pytest.mark.parametrize(
    ("start", "end", "length", "unit", "cut"),
    [
        (0, 800, 512, 64, 512),
        (512, 800, 512, 64, 768),
        (768, 800, 512, 64, 800),
        (0, 800, 100, 64, 64),
        (0, 800, 1, 64, 64),
        (0, 63, 512, 64, 63),
        (300, 800, 64, 64, 384),  # 20 rows up to 320 would take another path than they did cold
        (300, 350, 512, 64, 320),
        (0, 800, 256, 0, 256),
        (300, 800, 256, 0, 512),
        (768, 800, 256, 0, 800),
    ],
)
def test_where_it_ends(start, end, length, unit, cut):
    assert slice_end(start, end, length, unit) == cut
