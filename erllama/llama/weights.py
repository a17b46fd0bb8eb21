"""The weights of one model and of its adapters: loaded, freed, and loaded again from the same
files. Engine thread only.

`LlamaBackend` frees every context before it frees weights. The vocabulary is shared with any thread
and stays usable throughout: see `LlamaVocab`. What is loaded again must be what was there before,
because KV, fingerprint and vocabulary belong to it: a file that was replaced or rewritten meanwhile
is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llama_cpp
import psutil

from erllama.errors import ModelLoadError
from erllama.gguf.fingerprint import file_identity
from erllama.llama.library import captured_errors, load_model, reason_of, trim_heap
from erllama.llama.vocab import LlamaVocab

Identity = tuple[dict[str, int], ...]


@dataclass(slots=True)
class _Adapter:
    path: str
    identity: Identity
    pointer: Any


class LlamaWeights:
    """The model of a GGUF file. `model` is the llama_model*, None while unloaded; `n_bytes` of
    weights, whether loaded or not.

    `private_bytes` is by how much loading made the process grow, mapped pages left out: for weights
    that are mapped from the file this is what llama.cpp has copied into the layout of its kernels
    (nearly all of a Q4_0 model).
    """

    def __init__(self, path: str, params: Any) -> None:
        """Load. `params` are llama_model_params. Raises `ModelLoadError`."""
        self._path = path
        self._params = params
        self._adapters: dict[str, _Adapter] = {}
        self._identity = file_identity(path)
        self.private_bytes = 0
        self.model: Any = None
        self._load_model()
        try:
            self.n_bytes = int(llama_cpp.llama_model_size(self.model))
            self.vocab = LlamaVocab(self.model)
        except BaseException:
            self._free()
            raise

    def ensure(self) -> bool:
        """Load what was unloaded, adapters included; True when it was. Raises `ModelLoadError`;
        then nothing is loaded.
        """
        if self.model:
            return False
        self._check_files()
        self._load_model()
        try:
            for adapter in self._adapters.values():
                adapter.pointer = self._load_adapter(adapter.path)
        except BaseException:
            self._free()
            raise
        return True

    def unload(self) -> None:
        """Free everything but the vocabulary. Idempotent. Raises `ModelLoadError`, and keeps it,
        when it could not be loaded again.
        """
        if self.model:
            self._check_files()
            self.vocab.stand_alone(self._path)
            self._free()

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.vocab.close()  # first: others may be asking it
        if self.model:
            self._free()
        self._adapters.clear()

    # --- adapters ---------------------------------------------------------------------------------

    def load_adapter(self, handle: str, path: str) -> None:
        """Load a LoRA GGUF that was checked under `handle`. Raises `ModelLoadError`."""
        identity = file_identity(path)
        self.ensure()
        self._adapters[handle] = _Adapter(path, identity, self._load_adapter(path))

    def free_adapter(self, handle: str) -> None:
        """Free it, or, while unloaded, do not load it again."""
        adapter = self._adapters.pop(handle)
        if adapter.pointer:
            llama_cpp.llama_adapter_lora_free(adapter.pointer)

    def adapter(self, handle: str) -> Any:
        """The llama_adapter_lora* of a loaded adapter."""
        return self._adapters[handle].pointer

    def _load_adapter(self, path: str) -> Any:
        with captured_errors() as errors:
            pointer = llama_cpp.llama_adapter_lora_init(self.model, path.encode())
        if not pointer:
            raise ModelLoadError(f"cannot load adapter {path}: {reason_of(errors)}", param="path")
        return pointer

    # --- the model --------------------------------------------------------------------------------

    def _check_files(self) -> None:
        loaded = [(self._path, self._identity), *((a.path, a.identity) for a in self._adapters.values())]
        for path, identity in loaded:
            if file_identity(path) != identity:
                raise ModelLoadError(
                    f"{path} was replaced or changed after it was loaded; start the model anew to serve it",
                    param="path",
                )

    def _load_model(self) -> None:
        trim_heap()  # or the weights might go into what is counted already
        before = private_bytes()
        self.model = load_model(self._path, self._params, self._path)
        self.private_bytes = max(0, private_bytes() - before)

    def _free(self) -> None:
        for adapter in self._adapters.values():
            if adapter.pointer:
                llama_cpp.llama_adapter_lora_free(adapter.pointer)
                adapter.pointer = None
        llama_cpp.llama_model_free(self.model)
        self.model = None
        self.private_bytes = 0
        trim_heap()


def private_bytes() -> int:
    """Resident memory of this process that no file backs."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))  # only Linux tells the shared part
