"""What a wheel must be before anybody installs it: its metadata and its contents. Pure but for
reading the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import InvalidMetadata, Metadata

MAX_BYTES = 6 << 20  # the demo model is 3 MB of it
PACKAGES = ("cache_store", "erllama", "deployments")
_REQUIRED = ("summary", "license_expression", "requires_python", "description", "requires_dist")


@dataclass(frozen=True, slots=True)
class Wheel:
    """`names` are its files, `executable` those that stay so when pip unpacks them, `metadata` the text
    of METADATA.
    """

    path: Path
    names: tuple[str, ...]
    executable: frozenset[str]
    metadata: bytes

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""
        return self.path.stat().st_size


def read_wheel(path: Path) -> Wheel:
    """Raises `zipfile.BadZipFile`, and `KeyError` where METADATA is missing."""
    with zipfile.ZipFile(path) as archive:
        names = tuple(archive.namelist())
        metadata = next((name for name in names if name.endswith(".dist-info/METADATA")), "METADATA")
        executable = frozenset(info.filename for info in archive.infolist() if info.external_attr >> 16 & 0o111)
        return Wheel(path, names, executable, archive.read(metadata))


def metadata_problems(metadata: bytes) -> list[str]:
    """What an index of packages, or a reader of one, would find wrong."""
    try:
        parsed = Metadata.from_email(metadata, validate=True)
    except (ExceptionGroup, InvalidMetadata) as error:
        found = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        return [f"metadata: {one}" for one in found]
    problems = [f"metadata: {name} is missing" for name in _REQUIRED if not getattr(parsed, name)]
    if parsed.description_content_type != "text/markdown":
        problems.append(f"metadata: the description is {parsed.description_content_type}, not text/markdown")
    return problems


def content_problems(wheel: Wheel, tracked: Iterable[str]) -> list[str]:
    """`tracked`: the files that git knows, relative to the root. The wheel has those of the packages,
    all of them and nothing else.
    """
    own = {name for name in wheel.names if not name.split("/")[0].endswith(".dist-info")}
    wanted = {name for name in tracked if name.split("/")[0] in PACKAGES}
    problems = [f"contents: {name} does not belong into the wheel" for name in sorted(own - wanted)]
    problems += [f"contents: {name} is missing" for name in sorted(wanted - own)]
    if wheel.n_bytes > MAX_BYTES:
        problems.append(f"contents: {wheel.n_bytes} bytes, more than {MAX_BYTES}")
    return problems


def mode_problems(wheel: Wheel, executables: Iterable[str]) -> list[str]:
    """`executables`: the files of the checkout that may be executed. Ray starts one of the packages'."""
    lost = sorted({name for name in executables if name in wheel.names} - wheel.executable)
    return [f"contents: {name} is not executable" for name in lost]


def changelog_problems(changelog: str, version: str) -> list[str]:
    """A version has its heading, or stands under `Unreleased`."""
    headings = [line.removeprefix("## ").split()[0] for line in changelog.splitlines() if line.startswith("## ")]
    if not {version, "Unreleased"} & set(headings):
        return [f"CHANGELOG.md has a heading neither for {version} nor for Unreleased"]
    return []
