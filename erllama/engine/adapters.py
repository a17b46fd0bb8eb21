"""The LoRA adapters of one engine: which are loaded, at which scale, and who still uses them.

A sequence takes a snapshot of the set (`AdapterSet`) when it is submitted and keeps it to its end;
unloading an adapter hides it from new sequences at once and frees it when the last snapshot that
names it is gone. Engine thread only, but for `read_adapter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from erllama.backend.base import Backend
from erllama.errors import InvalidParameter, ModelLoadError, check_number
from erllama.gguf.fingerprint import file_identity
from erllama.stats import AdapterInfo, AdapterSet


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA GGUF that fits the model, as it was when it was read."""

    path: str
    sha256: str
    identity: tuple[dict[str, int], ...]


def read_adapter(path: str, backend: Backend) -> AdapterFile:
    """Read and check a LoRA GGUF. Any thread. Raises `ModelLoadError` with the reason."""
    try:
        identity = file_identity(path)
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ModelLoadError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise ModelLoadError(f"cannot read adapter {path}: {reason}", param="path") from error
    backend.check_adapter(path)
    return AdapterFile(path, digest, identity)


class AdapterRegistry:
    """Loaded adapters by handle. `users` tells, when asked, which snapshots are still alive."""

    def __init__(self, backend: Backend, users: Callable[[], Iterable[AdapterSet]]) -> None:
        self._backend = backend
        self._users = users
        self._loaded: dict[str, AdapterInfo] = {}
        self._retired: set[str] = set()

    def load(self, file: AdapterFile) -> str:
        """Load a LoRA GGUF at scale 1.0 and return its handle. Raises `ModelLoadError` with the
        reason, also when the file has changed since it was read.

        The handle is made of the file's digest, so that it is the same on every replica; loading a
        file again resets its scale.
        """
        handle = f"lora-{file.sha256[:16]}"
        if handle in self._retired:  # still on a live sequence: take it back instead of loading it twice
            self._retired.discard(handle)
        elif handle not in self._loaded:
            if file_identity(file.path) != file.identity:
                raise ModelLoadError(f"adapter {file.path} changed while it was read", param="path")
            self._backend.load_adapter(handle, file.path)
        self._loaded[handle] = AdapterInfo(handle=handle, path=file.path, sha256=file.sha256, scale=1.0)
        return handle

    def unload(self, handle: str) -> None:
        """Hide an adapter from new sequences and free it once unused. Unknown handles are fine."""
        if self._loaded.pop(handle, None) is not None:
            self._retired.add(handle)
        self.collect()

    def set_scale(self, handle: str, scale: float) -> None:
        """Change the scale for sequences to come. Raises `InvalidParameter`."""
        if handle not in self._loaded:
            raise InvalidParameter(f"no adapter {handle!r} is loaded", param="handle")
        check_number("scale", scale, -100, 100)
        self._loaded[handle] = replace(self._loaded[handle], scale=float(scale))

    def list(self) -> AdapterSet:
        """The adapters that new sequences get, in order of loading."""
        return tuple(self._loaded.values())

    def snapshot(self) -> AdapterSet:
        """The set for a new sequence. Adapters at scale 0 have no effect and are left out."""
        return tuple(adapter for adapter in self._loaded.values() if adapter.scale != 0.0)

    def collect(self) -> None:
        """Free retired adapters that no live sequence uses. Called between decodes."""
        if not self._retired:
            return
        used = {use.handle for adapters in self._users() for use in adapters}
        for handle in self._retired - used:
            self._backend.free_adapter(handle)
        self._retired &= used
