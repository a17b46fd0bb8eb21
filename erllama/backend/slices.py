"""Where a slice of a prompt may end so that the KV of the prompt does not depend on how long its
slices were. Pure: numbers in, a number out.

llama.cpp's CPU backend computes the attention of a row along one of two paths when K and V are both
f16 or both f32: in tiles where a pass has 64 rows or more, else row by row. Any other KV cache has
the second path alone. Within a path a row's result depends neither on the number of rows beside it
nor on the number of threads: tests/model/test_slices_model.py proves it for quantised weights and for
F16. So whole units of 64 tokens (16 where there is one path) are computed together with others of
them, any number at once, and what is left behind the last whole one is a slice of its own.

What is not proven keeps slices of one length: windows and recurrent states (their result depends on
how tokens share a pass), GPUs (their kernels are chosen by the number of rows), attention without
flash attention (its state cannot be read out and compared).
"""

from __future__ import annotations

TILE_UNIT = 64  # rows from which on ggml's flash attention computes in tiles (GGML_FA_TILE_Q)
ROW_UNIT = 16  # where it never does: a matrix product of fewer rows takes longer for each


def slice_end(start: int, end: int, length: int, unit: int) -> int:
    """Where a slice ends that begins at `start` of a prompt of `end` tokens and has about `length`
    of them: `length` rounded down to whole units, and at least one.

    With `unit` 0 at the next multiple of `length`, as every slice of the prompt.
    """
    if not unit:
        return min(start + length - start % length, end)
    last = end - end % unit
    if start >= last:
        return end
    first = start + unit + -start % unit  # from a place between two boundaries, a whole unit more
    return min(max(first, (start + length) // unit * unit), last)
