"""The files of a model under their own names, beside each other: llama.cpp finds the parts of a
split model by name. They are links to blobs, made again whenever they are not what they should be.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from erllama.hub.blobs import Blobs
from erllama.hub.errors import CorruptManifest
from erllama.hub.files import place_link, sync_dir
from erllama.hub.manifest import Manifest, ManifestFile
from erllama.hub.name import ModelName
from erllama.hub.sources.remote import Role


class Links:
    def __init__(self, root: Path, blobs: Blobs) -> None:
        self._folder = root / "models"
        self._blobs = blobs

    def folder(self, name: ModelName) -> Path:
        return self._folder / name.file_name

    def path_of(self, manifest: Manifest, file: ManifestFile) -> Path:
        return self.folder(ModelName.parse(manifest.name)) / file.name

    def sound(self, manifest: Manifest) -> bool:
        """Whether each file of the manifest is there as a link to its blob."""
        return all(self._is_link(manifest, file) for file in manifest.files)

    def make(self, manifest: Manifest) -> None:
        """Make the links what the manifest says; the caller holds the hub's lock.

        A name that stays leads to the old or the new file at each moment. Raises `CorruptManifest`
        when a blob is missing, OSError of the disk.
        """
        folder = self.folder(ModelName.parse(manifest.name))
        folder.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            if not self._blobs.has(file.digest, file.size):
                raise CorruptManifest(
                    f"{file.name} of {manifest.name} is missing or damaged: pull the model again", param="model"
                )
            if not self._is_link(manifest, file):
                place_link(self._blobs.path(file.digest), folder / file.name)
        kept = {file.name for file in manifest.files}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
        sync_dir(folder)

    def remove(self, name: ModelName) -> None:
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def remove_all_but(self, names: set[str]) -> None:
        """Remove the folders of models that have no manifest; the caller holds the hub's lock."""
        with suppress(FileNotFoundError):
            for folder in self._folder.iterdir():
                if folder.name not in names:
                    shutil.rmtree(folder, ignore_errors=True)

    def _is_link(self, manifest: Manifest, file: ManifestFile) -> bool:
        try:
            path, blob = self.path_of(manifest, file), self._blobs.path(file.digest)
            return os.path.samefile(path, blob) and path.stat().st_size == file.size
        except OSError:
            return False


def file_name_of(role: Role, name: str, taken: set[str]) -> str:
    """A plain name for a file that its source calls `name`, other than those in `taken`. The names
    of parts stay what they are, since llama.cpp takes them apart.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_.-+=") else "_" for c in name).lstrip(".-")[-150:]
    plain = plain or f"{role}.gguf"
    stem, dot, ending = plain.rpartition(".")
    n = 2
    while plain in taken:
        plain = f"{stem}_{n}{dot}{ending}"
        n += 1
    return plain
