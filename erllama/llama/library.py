"""llama.cpp as a process-wide library: initialisation, how files get into it, its log, its build.

`llama_log_set` and the backend registry belong to the process, so this is the one module with
process-wide effects, and it has them only when a model is loaded. llama.cpp's messages go to the
logger "erllama.llama_cpp": errors as such, warnings as INFO, the rest as DEBUG.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._ggml

from erllama.errors import LoadFailedForNow
from erllama.gguf.check import GgufInfo, inspect_gguf
from erllama.gguf.fingerprint import user_cache_dir
from erllama.gguf.probe import probe_gguf
from erllama.stats import GpuDevice

log = logging.getLogger("erllama.llama_cpp")

_ERROR, _WARN, _CONT = 4, 3, 5  # enum ggml_log_level; _CONT continues the line before
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: GPU, IGPU


class _ErrorCapture:
    """Who gets a line that llama.cpp logs as an error: the innermost block that is open on the
    thread which logs it.

    A thread of llama.cpp's own has no blocks. Its lines go to every block that is innermost on its
    thread: they belong to one of them, and a reason too many is better than none. Lines of Python
    threads without a block are nobody's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._innermost: dict[int, list[str]] = {}  # by thread
        self._last = threading.local()

    def level_of(self, level: int) -> int:
        """The level of a message on this thread: its own, or that of the line which it
        continues.
        """
        if level != _CONT:
            self._last.level = level
        return getattr(self._last, "level", level)

    def add(self, line: str) -> None:
        foreign = isinstance(threading.current_thread(), threading._DummyThread)
        with self._lock:
            for thread, lines in self._innermost.items():
                if foreign or thread == threading.get_ident():
                    lines.append(line)

    @contextmanager
    def block(self) -> Iterator[list[str]]:
        """Collects what llama.cpp logs as an error on this thread, or on a thread of its own, while
        the block is open.

        Blocks of other threads neither see these lines nor lose theirs; a block inside another one
        keeps its lines to itself.
        """
        me, lines = threading.get_ident(), list[str]()
        with self._lock:
            outer = self._innermost.get(me)
            self._innermost[me] = lines
        try:
            yield lines
        finally:
            with self._lock:
                if outer is None:
                    del self._innermost[me]
                else:
                    self._innermost[me] = outer


_capture = _ErrorCapture()
captured_errors = _capture.block


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    line = text.decode(errors="replace").rstrip()
    level = _capture.level_of(level)
    if not line or line == "." * len(line):
        return
    if level == _ERROR:
        _capture.add(line)
        log.error("%s", line)
    elif level == _WARN:
        log.info("%s", line)  # repeated per tensor and rarely anything an operator can act on
    else:
        log.debug("%s", line)


def initialise() -> None:
    """Route the log and start the backends. Idempotent."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def check_model(path: str) -> tuple[GgufInfo, bool]:
    """What a GGUF file is, and whether it generates, found out without endangering this process;
    afterwards it may be loaded. Raises `ModelLoadError`.
    """
    info = inspect_gguf(path)
    initialise()
    return info, probe_gguf(path, build=build_id(), memory_path=user_cache_dir() / "probes.json")


def load_model(path: str, params: Any, name: str) -> Any:
    """The llama_model* of a checked file. Raises `LoadFailedForNow` that calls it `name`."""
    with captured_errors() as errors:
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise LoadFailedForNow(f"cannot load {name}: {reason_of(errors)}", param="path")
    return model


def reason_of(errors: list[str], otherwise: str = "llama.cpp gives no reason") -> str:
    return "; ".join(errors) or otherwise


def trim_heap() -> None:
    """Give what was freed back to the system: glibc keeps blocks of up to 32 MB, and all that small
    ones have left behind, for itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(ctypes.c_size_t(0))


def gpu_devices() -> tuple[GpuDevice, ...]:
    """The GPUs that this build can use and sees, with their memory now. Empty without CUDA, ROCm,
    Metal or Vulkan built in.
    """
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


def build_id() -> str:
    """What tells this build of llama.cpp from every other one: its version, its CPU features, its
    files.
    """
    files = sorted(Path(llama_cpp.llama_cpp._lib._name).parent.glob("lib*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{build_info()} {hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}"
