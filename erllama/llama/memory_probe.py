"""What a model takes when it is loaded, told by llama.cpp without loading it.

llama.cpp can make a model and its context without allocating them (`no_alloc`) and logs how large
each part would be. It does so in a child process, as in `probe.py`: it may die of a file, and its log
is the process's. Half a second for each question, most of it for the vocabulary; answers are
remembered by file, build and settings.

    python -m erllama.llama.memory_probe SETTINGS        prints {"kv": bytes, "compute": bytes}

Weights are what the file has of them, whether they are mapped or copied into the layout of the
kernels: a page of the file whose copy is used is not needed again.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import llama_cpp

from erllama.config import EngineConfig, padded_context
from erllama.errors import ModelLoadError
from erllama.footprint.fit import MemoryNeed
from erllama.gguf.fingerprint import file_identity, user_cache_dir
from erllama.gguf.json_memory import JsonMemory
from erllama.llama.context_params import context_params
from erllama.llama.library import build_id, check_model

logger = logging.getLogger(__name__)

_TIMEOUT_S = 120.0
# what the size of a context depends on
_SETTINGS = ("path", "n_ctx", "n_parallel", "n_batch", "flash_attn", "type_k", "type_v")
_MIB = 1 << 20
# `llama_kv_cache: size = 48.00 MiB (...), K ...`, one line for each cache, and the same of recurrent states
_CACHE = re.compile(r"^llama_(?:kv_cache|memory_recurrent)\S*: size = +([\d.]+) MiB \(", re.MULTILINE)
_COMPUTE = re.compile(r"(?:compute|output) buffer size = +([\d.]+) MiB", re.MULTILINE)


def measure_need(config: EngineConfig, memory_path: Path | None = None) -> MemoryNeed:
    """What a model takes in RAM as it is configured (`n_ctx` 0: as it was trained). Any thread; blocks.
    Raises `ModelLoadError`.
    """
    info, generates = check_model(config.path)
    if not generates:  # its context is made when something is embedded, from what it computes in
        return MemoryNeed(info.size_bytes, 0, 0)
    settings = {name: getattr(config, name) for name in _SETTINGS}
    settings["n_ctx"] = padded_context(config.n_ctx or info.n_ctx_train)
    memory = JsonMemory(memory_path or user_cache_dir() / "memory.json", "memory of sizes")
    key = json.dumps(settings | {"path": os.path.abspath(config.path), "build": build_id()})
    parts = list(file_identity(config.path))
    known = memory.entries().get(key)
    if not (isinstance(known, dict) and known.get("parts") == parts):
        known = _ask(settings) | {"parts": parts}
        memory.add(key, known)
    return MemoryNeed(info.size_bytes, int(known["kv"]), int(known["compute"]))


def _ask(settings: Mapping[str, Any]) -> dict[str, int]:
    command = [sys.executable, "-P", "-m", "erllama.llama.memory_probe", json.dumps(dict(settings))]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ModelLoadError(f"{settings['path']}: its memory cannot be found out: {error}", param="path") from error
    try:
        told = json.loads(done.stdout)
        return {"kv": int(told["kv"]), "compute": int(told["compute"])}
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"llama.cpp does not say what it takes (status {done.returncode}): {''.join(last)[:300]}"
        raise ModelLoadError(f"{settings['path']}: {why}", param="path") from None


def sizes(log: str) -> dict[str, int]:
    """Bytes of the context and of what it computes in, from llama.cpp's log."""
    return {
        "kv": int(sum(map(float, _CACHE.findall(log))) * _MIB),
        "compute": int(sum(map(float, _COMPUTE.findall(log))) * _MIB),
    }


def _probe(config: EngineConfig) -> str:
    """llama.cpp's log of making the model's context. Ends the process when it cannot be made."""
    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def on_log(_level: int, text: bytes, _user_data: Any) -> None:
        said.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)
    params.devices = ctypes.addressof(no_devices)
    params.n_gpu_layers = 0
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    params.no_alloc = True
    model = llama_cpp.llama_model_load_from_file(config.path.encode(), params)
    if not model:
        sys.exit("".join(said)[-1000:])
    context = llama_cpp.llama_init_from_model(model, context_params(config, config.n_ctx))
    if not context:
        sys.exit("".join(said)[-1000:])
    return "".join(said)


def main() -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    known = {field.name for field in fields(EngineConfig)}
    settings = {name: value for name, value in json.loads(sys.argv[1]).items() if name in known}
    print(json.dumps(sizes(_probe(EngineConfig(**settings)))), flush=True)
    os._exit(0)  # nothing to clean up that the system would not


if __name__ == "__main__":
    main()
