"""What llama.cpp logs as an error reaches the block that it belongs to, whatever other threads do
meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import llama_cpp
import pytest

from erllama.llama import library
from erllama.llama.library import build_id, captured_errors, initialise

_INFO, _ERROR, _CONT = 2, 4, 5


@pytest.fixture(autouse=True)
def routed_log():
    initialise()


def fail_to_load(name: str) -> None:
    """llama.cpp logs errors that name the file, on this thread."""
    assert not llama_cpp.llama_model_load_from_file(
        f"/none/{name}.gguf".encode(), llama_cpp.llama_model_default_params()
    )


def log_on_a_thread_of_llama_cpp(text: bytes) -> None:
    """As its own workers log: on a thread that Python has not started."""
    start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    routine = start(lambda _: library._on_log(_ERROR, text, None))
    thread, libc = ctypes.c_ulong(), ctypes.CDLL(None)
    assert libc.pthread_create(ctypes.byref(thread), None, routine, None) == 0
    assert libc.pthread_join(thread, None) == 0


def test_a_block_has_the_reason_of_a_failed_call():
    with captured_errors() as errors:
        fail_to_load("mine")
    assert any("/none/mine.gguf" in line for line in errors)


def test_what_was_logged_before_and_after_a_block_is_not_in_it():
    fail_to_load("before")
    with captured_errors() as errors:
        fail_to_load("within")
    fail_to_load("after")
    assert not any("before" in line or "after" in line for line in errors)


def test_a_block_that_another_thread_opens_takes_nothing_away():
    def open_a_block() -> None:
        with captured_errors():
            pass

    with ThreadPoolExecutor(1) as other, captured_errors() as errors:
        fail_to_load("mine")
        other.submit(open_a_block).result()
    assert any("/none/mine.gguf" in line for line in errors)


def test_a_chatty_thread_pushes_no_reason_out():
    with ThreadPoolExecutor(1) as other, captured_errors() as errors:
        fail_to_load("mine")
        other.submit(lambda: [library._on_log(_INFO, b"layer %d" % i, None) for i in range(1000)]).result()
    assert any("/none/mine.gguf" in line for line in errors)


def test_blocks_of_threads_that_fail_at_the_same_time_do_not_mix():
    n_threads = 8
    together = threading.Barrier(n_threads)

    def load(i: int) -> list[str]:
        with captured_errors() as errors:
            for _ in range(20):
                together.wait(30)
                fail_to_load(f"file-{i}")
        return errors

    with ThreadPoolExecutor(n_threads) as pool:
        results = list(pool.map(load, range(n_threads)))
    for i, errors in enumerate(results):
        named = [line for line in errors if "/none/" in line]
        assert len(named) >= 20
        assert all(f"/none/file-{i}.gguf" in line for line in named)


def test_an_inner_block_keeps_its_lines_to_itself():
    with captured_errors() as outer:
        fail_to_load("first")
        with captured_errors() as inner:
            fail_to_load("second")
        fail_to_load("third")
    assert any("second" in line for line in inner)
    assert not any("first" in line or "third" in line for line in inner)
    assert any("first" in line for line in outer)
    assert any("third" in line for line in outer)
    assert not any("second" in line for line in outer)


def test_a_line_of_llama_cpps_own_thread_reaches_the_open_block():
    with captured_errors() as errors:
        log_on_a_thread_of_llama_cpp(b"worker: bad tensor\n")
    assert errors == ["worker: bad tensor"]


def test_a_continued_line_has_the_level_of_the_line_before():
    with captured_errors() as errors:
        for level, text in ((_ERROR, b"bad"), (_CONT, b"tensor\n"), (_INFO, b"fine"), (_CONT, b"tensors\n")):
            library._on_log(level, text, None)
    assert errors == ["bad", "tensor"]


def test_a_block_ends_with_an_exception_too():
    with pytest.raises(ZeroDivisionError), captured_errors() as errors:
        raise ZeroDivisionError
    fail_to_load("later")
    assert errors == []


def test_a_build_is_told_by_its_version_and_its_files(monkeypatch, tmp_path):
    assert build_id() == build_id()
    assert llama_cpp.__version__ in build_id()
    shared_object = tmp_path / "libllama.so"
    monkeypatch.setattr(llama_cpp.llama_cpp, "_lib", SimpleNamespace(_name=str(shared_object)))
    builds = set()
    for content in (b"one", b"another"):
        shared_object.write_bytes(content)
        builds.add(build_id())
    assert len(builds) == 2
