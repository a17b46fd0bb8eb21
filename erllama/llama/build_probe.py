"""What the build of llama.cpp is, told in a child process: one for another processor ends its process.

python -m erllama.llama.build_probe        prints {"info": ..., "backends": [...], "devices": [...]}
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import llama_cpp

from erllama.llama.library import build_info, gpu_devices, initialise

_NOT_GPU = frozenset({"base", "cpu", "blas", "rpc"})


def gpu_backends(folder: Path) -> list[str]:
    """Kinds of GPU that a build has libraries for, from their names (`libggml-cuda.so`)."""
    names = {found[1] for path in folder.iterdir() if (found := re.match(r"(?:lib)?ggml-([a-z]+)", path.name))}
    return sorted(names - _NOT_GPU)


def main() -> None:
    initialise()
    folder = Path(llama_cpp.llama_cpp._lib._name).parent
    devices = [f"{device.name} ({device.total_bytes / 2**30:.0f} GiB)" for device in gpu_devices()]
    print(json.dumps({"info": build_info(), "backends": gpu_backends(folder), "devices": devices}))


if __name__ == "__main__":
    main()
