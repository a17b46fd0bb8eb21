"""llama.cpp as a process-wide library: initialisation, its log, and what it was built with.

`llama_log_set` and the backend registry belong to the process, so this is the one module with process-wide effects, and it has them
only when a model is loaded. llama.cpp's messages go to the logger "erllama.llama_cpp": errors as such, warnings as INFO, the rest as DEBUG.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import llama_cpp._ggml

from erllama.stats import GpuDevice

log = logging.getLogger("erllama.llama_cpp")

_ERROR, _WARN, _CONT = 4, 3, 5  # enum ggml_log_level
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: GPU, IGPU
_KEPT_LINES = 50
_recent: deque[tuple[int, int, str]] = deque(maxlen=_KEPT_LINES)  # (thread, level, text): reasons for the exception of a failed call


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    line = text.decode(errors="replace").rstrip()
    if not line or line == "." * len(line):
        return
    _recent.append((threading.get_ident(), level, line))
    if level == _ERROR:
        log.error("%s", line)
    elif level == _WARN:
        log.info("%s", line)  # repeated per tensor and rarely anything an operator can act on
    else:
        log.debug("%s", line)


def initialise() -> None:
    """Route the log and start the backends. Idempotent."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@contextmanager
def captured_errors() -> Iterator[list[str]]:
    """Collects what llama.cpp logged as an error on this thread within the block; the list is filled when the block ends."""
    errors: list[str] = []
    _recent.clear()
    try:
        yield errors
    finally:
        me = threading.get_ident()
        errors.extend(text for thread, level, text in list(_recent) if thread == me and level in (_ERROR, _CONT))


def trim_heap() -> None:
    """Give what was freed back to the system: glibc keeps blocks of up to 32 MB, and all that small ones have left behind, for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(ctypes.c_size_t(0))


def gpu_devices() -> tuple[GpuDevice, ...]:
    """The GPUs that this build can use and sees, with their memory now. Empty without CUDA, ROCm, Metal or Vulkan built in."""
    ggml = llama_cpp._ggml.libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        device = ctypes.c_void_p(ggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
        if ggml.ggml_backend_dev_type(device) in _GPU_TYPES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(GpuDevice(ggml.ggml_backend_dev_name(device).decode(), free.value, total.value))
    return tuple(found)


def build_info() -> str:
    """llama-cpp-python's version and the CPU features compiled in."""
    return f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}"
