"""Whether llama.cpp survives a GGUF, found out where that costs nothing: in a child process.

llama.cpp ends the whole process on files that break what it takes for granted, and what that is
changes with every version. So a file is tried (`erllama/llama/probe.py`) rather than compared with
a list, once per file and build of llama.cpp. CPU time measured: 0.16 s for the demo model, 0.55 s
with a vocabulary of 152 k (0.15 s of each to import llama_cpp), whatever the size of the weights,
of which none is read.

Only passes are remembered, per path, identity of all parts (`file_identity`) and build: a refusal
may be due to the machine and is tried again. What happens only while llama.cpp computes with the
weights no probe sees; `erllama.gguf.check` finds that in the header.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from erllama.errors import ModelLoadError
from erllama.gguf.fingerprint import file_identity
from erllama.gguf.json_memory import JsonMemory

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0  # the header may have to come from a slow disk
# By its path: `-m erllama.llama.probe` works, too, but imports the packages above it first, which
# takes longer than the probe.
CHILD = Path(__file__).parents[1] / "llama" / "probe.py"
_LAST_LINES = 4
# where llama.cpp was built, before the source line of an assertion
_SOURCE_FOLDERS = re.compile(r"^\S*/(?=[^/\s]+:\d+: )")


def probe_gguf(path: str | Path, *, build: str, memory_path: Path | None = None, timeout_s: float = TIMEOUT_S) -> bool:
    """Try a file, or remember that it passed; returns whether it generates (False: an encoder).
    `build` names llama.cpp's build; `memory_path` None remembers nothing.

    Raises `ModelLoadError` with the file and the reason when llama.cpp refuses it, dies of it or
    does not come back. Any thread.
    """
    memory = JsonMemory(memory_path, "probe memory")
    key, about = os.path.abspath(path), {"parts": list(file_identity(path)), "build": build}
    entry = memory.entries().get(key)
    if isinstance(entry, dict) and about.items() <= entry.items() and isinstance(entry.get("generates"), bool):
        return bool(entry["generates"])
    started = time.monotonic()
    generates = _run(path, timeout_s)
    logger.info("probe path=%s seconds=%.2f", path, time.monotonic() - started)
    if list(file_identity(path)) != about["parts"]:
        raise ModelLoadError(f"{path}: the file changed while llama.cpp tried it", param="path")
    memory.add(key, about | {"generates": generates})
    return generates


def _run(path: str | Path, timeout_s: float) -> bool:
    command = [sys.executable, "-P", str(CHILD), os.fspath(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as late:
        step = _last_line(late.stdout).get("step")
        raise _refusal(path, f"llama.cpp {step} for more than {timeout_s:g} s", late.stderr) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be tried in a child process: {error}", param="path") from error
    last = _last_line(done.stdout)
    if done.returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-done.returncode, f"signal {-done.returncode}")
        raise _refusal(path, f"llama.cpp {last.get('step')} and dies of it ({name})", done.stderr)
    if done.returncode > 0 or "generates" not in last:
        raise _refusal(path, f"the child process that tries it failed with status {done.returncode}", done.stderr)
    if last.get("error") is not None:
        raise _refusal(path, str(last["error"]), done.stderr)
    return bool(last["generates"])


def _last_line(output: bytes | None) -> dict[str, Any]:
    """What the child said last: the step that it is at, or its verdict."""
    lines = (output or b"").splitlines()
    try:
        last = json.loads(lines[-1]) if lines else None
    except ValueError:
        last = None
    return last if isinstance(last, dict) else {"step": "starts"}


def _refusal(path: str | Path, what: str, log: bytes | None) -> ModelLoadError:
    """The reason and the last lines that llama.cpp logged as errors."""
    lines = [
        _SOURCE_FOLDERS.sub("", line.strip())
        for line in (log or b"").decode(errors="replace").splitlines()
        if line.strip()
    ]
    reason = "; ".join(lines[-_LAST_LINES:])
    return ModelLoadError(f"{path}: {what}: {reason}" if reason else f"{path}: {what}", param="path")
