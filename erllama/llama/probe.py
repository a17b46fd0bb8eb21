"""Tries a GGUF file with llama.cpp in a process that may die of it: `python probe.py FILE`.

`erllama.gguf.probe` runs it. The tokenizer reads every byte and every character of the basic plane.
Then two contexts are made, one that generates and one that embeds: there llama.cpp asserts what an
architecture takes for granted. No weight is read, nothing large is allocated (`no_alloc`) and GPUs
are left alone, so the time depends on the vocabulary only.

Prints a JSON object per line: {"step": what llama.cpp does now}, as often as that changes, and in
the end {"error": null or a reason, "generates": false for an encoder}. What llama.cpp logs as an
error goes to standard error at once, so that it is there when the process dies. Imports nothing of
erllama, whose packages take longer than a probe.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import llama_cpp

_ERROR, _CONT = 4, 5  # enum ggml_log_level
_MAX_BYTES = 8 << 30  # of address space: a large vocabulary takes 0.1 GB
_MAX_CPU_S = 120  # in case that nobody waits for it any more
_N_CTX = 64
_CHARS_AT_ONCE = 4096
_BASIC_PLANE = (*range(0xD800), *range(0xE000, 0x10000))

_last_level = 0


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    global _last_level
    _last_level = _last_level if level == _CONT else level
    if _last_level == _ERROR:
        os.write(2, text)


def probe(path: str) -> dict[str, Any]:
    """The last line that is printed. May not return."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _step("loads the file")
    model = _load(path)
    if not model:
        return {"error": "cannot be loaded", "generates": False}
    vocab = llama_cpp.llama_model_get_vocab(model)
    if llama_cpp.llama_vocab_type(vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        return {"error": "has no tokenizer", "generates": False}
    for name, text in _texts():
        _step(f"tokenises {name}")
        _tokenize(vocab, text)
    return _try_contexts(model)


def _step(text: str) -> None:
    print(json.dumps({"step": text}), flush=True)


def _load(path: str) -> Any:
    params = llama_cpp.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)
    params.devices = ctypes.addressof(no_devices)
    params.n_gpu_layers = 0
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # mapping a file reads it ahead
    params.use_extra_bufts = False
    params.no_alloc = True
    return llama_cpp.llama_model_load_from_file(os.fsencode(path), params)


def _texts() -> Iterator[tuple[str, bytes]]:
    """Name and text: every byte alone, all of them in a row; every character, many at once."""
    for byte in range(256):
        yield f"the byte 0x{byte:02X}", bytes([byte])
    yield "all bytes", bytes(range(256))
    for start in range(0, len(_BASIC_PLANE), _CHARS_AT_ONCE):
        characters = _BASIC_PLANE[start : start + _CHARS_AT_ONCE]
        yield f"U+{characters[0]:04X} to U+{characters[-1]:04X}", "".join(map(chr, characters)).encode()


def _tokenize(vocab: Any, text: bytes) -> None:
    size = 4 * len(text) + 16
    llama_cpp.llama_tokenize(vocab, text, len(text), (ctypes.c_int32 * size)(), size, True, True)


def _try_contexts(model: Any) -> dict[str, Any]:
    _step("makes a context")
    ctx = _make_context(model, embeddings=False)
    if not ctx:
        return {"error": "no context can be made for it", "generates": False}
    has_memory = bool(llama_cpp.llama_get_memory(ctx))  # llama.cpp keeps none for what only embeds
    llama_cpp.llama_free(ctx)
    _step("makes an embedding context")
    ctx = _make_context(model, embeddings=True)  # none: the model cannot embed, which is no error
    if ctx:
        llama_cpp.llama_free(ctx)
    return {"error": None, "generates": has_memory and bool(llama_cpp.llama_model_has_decoder(model))}


def _make_context(model: Any, *, embeddings: bool) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _N_CTX
    params.n_threads = params.n_threads_batch = 1
    params.embeddings = embeddings
    params.no_perf = True
    return llama_cpp.llama_init_from_model(model, params)


def main() -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"  # llama.cpp would start a debugger when it aborts
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # making a GPU ready takes longer than the probe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    print(json.dumps(probe(sys.argv[1])), flush=True)
    os._exit(0)  # nothing to clean up that the system would not


if __name__ == "__main__":
    main()
