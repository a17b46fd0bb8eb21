"""What loading a model really takes: llama.cpp's own numbers, and the memory of the process.

It happens in a process of its own, because llama.cpp's log belongs to the process and freed memory of
one model would hide what the next one takes.

    python -m erllama.testing.measured_load '{"path": "model.gguf", "n_ctx": 4096}'
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, cast

import psutil

from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.config import MAX_UBATCH, EngineConfig
from erllama.llama.backend import LlamaBackend
from erllama.llama.library import trim_heap

_BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_MAPPED = "CPU_Mapped"
_MIB = 1 << 20
_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """Bytes. Those of buffers are llama.cpp's (`mapped` and `private` are the weights'), the others are
    the process's: `process` before the model came, `loaded` with a sequence filled to the end, and
    `unloaded` after everything was freed. `loaded_private` is what of `loaded` no file backs, less the
    same of `unloaded`: what unloading gave back for good.
    """

    mapped: int
    private: int
    kv: int
    compute: int
    process: int
    loaded: int
    loaded_private: int
    unloaded: int


def measure_load(config: Mapping[str, Any]) -> MeasuredLoad:
    """Load, fill and unload the model of an `EngineConfig` in a child process. Blocks; raises
    `RuntimeError` with the end of what the child wrote when it failed.
    """
    command = [sys.executable, "-m", "erllama.testing.measured_load", json.dumps(dict(config))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
    return MeasuredLoad(**json.loads(done.stdout))


class _Buffers(logging.Handler):
    """Sums of the buffers that llama.cpp's log names, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = dict.fromkeys(("mapped", "private", "kv", "compute"), 0)

    def emit(self, record: logging.LogRecord) -> None:
        for device, kind, size in _BUFFER.findall(record.getMessage()):
            name = {"KV": "kv", "RS": "kv", "compute": "compute", "output": "compute"}.get(kind, "private")
            if device == _MAPPED:
                name = "mapped"
            self.sizes[name] += int(float(size) * _MIB)


def _resident() -> tuple[int, int]:
    """All, and what no file backs."""
    info = psutil.Process().memory_info()
    return info.rss, info.rss - info.shared


def _fill(backend: LlamaBackend, n_batch: int) -> None:
    """Decode to the end of the context of sequence 0, so that every buffer has been used."""
    slice_tokens = min(MAX_UBATCH, n_batch)
    for start in range(0, backend.n_ctx, slice_tokens):
        n = min(slice_tokens, backend.n_ctx - start)
        row = SimpleNamespace(seq_id=0, tokens=[5 + i % 50 for i in range(n)], start=start, n_tokens=n, n_logits=1)
        backend.decode(BatchPlan((cast(PlanRow, row),), ()))


def main() -> None:
    config = EngineConfig(**json.loads(sys.argv[1]))
    log, buffers = logging.getLogger("erllama.llama_cpp"), _Buffers()
    log.setLevel(logging.DEBUG)
    log.addHandler(buffers)
    log.propagate = False
    process, _ = _resident()
    backend = LlamaBackend(config)
    if backend.generates:
        _fill(backend, config.n_batch)
    loaded, loaded_private = _resident()
    backend.release_context()
    backend.unload()
    trim_heap()
    unloaded, private = _resident()
    found = MeasuredLoad(
        **buffers.sizes,
        process=process,
        loaded=loaded,
        loaded_private=loaded_private - private,
        unloaded=unloaded,
    )
    print(json.dumps(asdict(found)), flush=True)
    backend.close()


if __name__ == "__main__":
    main()
