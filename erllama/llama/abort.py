"""Aborts a running llama_decode from another thread, without Python in its way.

llama.cpp asks its abort callback before every node of a graph, 500 times per token of a 0.5B model:
a Python function there takes the interpreter's lock each time and cost 10 to 35 % of decode speed.
So the callback is a function that is there already and has the right shape: `bool f(void *)` in C's
calling conventions is `strlen` of a buffer of two bytes, the second of which stays 0: the length is
0 while the first one is 0 and 1 once it is not. On x86-64 (and ARM64) a pointer goes in and an
integer comes back in the same registers whatever their C types, and of a `bool` the caller reads
the low byte, which is that 0 or 1. A single byte is written and read whole, so no lock is needed;
calls cannot be told from none in decode speed.

Only the CPU backend asks: no other one registers `ggml_backend_set_abort_callback` with llama.cpp.
On a GPU a decode that is merely slow comes to its end, unless some of its layers are on the CPU,
and one that hangs ignores the flag: the health check replaces the replica.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp


class AbortFlag:
    """One flag for the contexts it is installed in; it must outlive them. `set` may be called from
    any thread.
    """

    def __init__(self) -> None:
        self._flag = (ctypes.c_uint8 * 2)()
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)

    def install(self, ctx: Any) -> None:
        """From now on decodes in `ctx` end with status 2 while the flag is set."""
        llama_cpp.llama_set_abort_callback(ctx, self._strlen, ctypes.cast(self._flag, ctypes.c_void_p))

    def set(self) -> None:
        self._flag[0] = 1

    def clear(self) -> None:
        self._flag[0] = 0
