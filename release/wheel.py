"""`python -m release.wheel FOLDER`: build the wheel of this checkout into FOLDER and refuse one that
lacks a file or holds one that does not belong there.

What belongs there is told by the tree: every file of the packages but Python's own leavings and
`erllama.testing`. A file that someone adds beside the code, and forgets in pyproject.toml, is found.
"""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path, PurePosixPath
from shutil import copy2
from zipfile import ZipFile, ZipInfo

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cache_store", "erllama", "deployments")
LEFT_OUT = (PurePosixPath("erllama/testing"),)  # random GGUFs and a backend without a model
EXECUTABLES = frozenset({"deployments/haproxy_no_splice"})
MAX_BYTES = 8 << 20  # of the wheel; the demo model takes 3 MB of it


class ReleaseError(Exception):
    """What must not be released; the message has a line for each reason."""


def tree_files(root: Path) -> list[str]:
    """Paths of what git tracks or would track, relative to `root`, that are there. Raises
    `CalledProcessError` outside of a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for path in listed.stdout.split("\0") if path and (root / path).is_file()]


def build_wheel(root: Path, folder: Path) -> Path:
    """The wheel of the checkout at `root`, built by this interpreter's setuptools; no network. `folder`
    is made. Raises `CalledProcessError`, whose `stderr` is the build's.

    A copy is built: setuptools keeps what it built last beside the code, and would pack files that
    have gone since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        for path in tree_files(root):
            target = Path(copy, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(root / path, target)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--wheel-dir", folder, copy], check=True, capture_output=True, text=True)
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    return folder / f"erllama-{version}-py3-none-any.whl"


def belongs(path: str) -> bool:
    """Whether a file of the tree belongs into the wheel."""
    pure = PurePosixPath(path)
    return pure.parts[0] in PACKAGES and not any(pure.is_relative_to(folder) for folder in LEFT_OUT)


def problems(wheel: Path, root: Path) -> list[str]:
    """Why a wheel must not be released, a line each; none if it may be. `root` is the checkout that it
    was built from."""
    with ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        found = [*_contents(archive, entries, root), *_modes(entries)]
        found += _metadata(archive, root)
        found += _commands(archive)
    size = wheel.stat().st_size
    return found + ([f"is {size} bytes; the limit is {MAX_BYTES}"] if size > MAX_BYTES else [])


def _contents(archive: ZipFile, entries: dict[str, ZipInfo], root: Path) -> Iterator[str]:
    wanted = {path for path in tree_files(root) if belongs(path)}
    packed = {name for name in entries if not name.split("/")[0].endswith(".dist-info")}
    yield from (f"lacks {path}" for path in sorted(wanted - packed))
    yield from (f"holds {path}" for path in sorted(packed - wanted))
    for path in sorted(wanted & packed):
        if archive.read(path) != (root / path).read_bytes():
            yield f"has another {path} than the tree"


def _modes(entries: dict[str, ZipInfo]) -> Iterator[str]:
    for path in sorted(EXECUTABLES & entries.keys()):
        if not entries[path].external_attr >> 16 & stat.S_IXUSR:
            yield f"has {path}, which cannot be executed"


def _metadata(archive: ZipFile, root: Path) -> Iterator[str]:
    try:
        metadata = Metadata.from_email(_info_file(archive, "METADATA"), validate=True)
    except ExceptionGroup as group:
        yield from (f"has wrong metadata: {error}" for error in group.exceptions)
        return
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for key, told, wanted in (
        ("name", metadata.name, project["name"]),
        ("version", str(metadata.version), project["version"]),
        ("license", metadata.license_expression, project["license"]),
        ("python", str(metadata.requires_python), project["requires-python"]),
        ("description", metadata.description_content_type, "text/markdown"),
    ):
        if told != wanted:
            yield f"has the {key} {told!r} instead of {wanted!r}"


def _commands(archive: ZipFile) -> Iterator[str]:
    """The commands that it installs must lead somewhere. Imports them, from the tree."""
    parser = ConfigParser()
    parser.read_string(_info_file(archive, "entry_points.txt").decode())
    for name, place in parser["console_scripts"].items():
        try:
            EntryPoint(name, place, "console_scripts").load()
        except (ImportError, AttributeError) as error:
            yield f"has the command {name}, which cannot be loaded: {error}"


def _info_file(archive: ZipFile, name: str) -> bytes:
    (path,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
    return archive.read(path)


def main(folder: Path) -> None:
    """Exits with 1 and the reasons when the wheel must not be released."""
    try:
        wheel = build_wheel(ROOT, folder)
        found = problems(wheel, ROOT)
        if found:
            raise ReleaseError("\n".join(f"{wheel.name} {reason}" for reason in found))
    except subprocess.CalledProcessError as error:
        sys.exit(f"cannot be built: {error.stderr}")
    except ReleaseError as error:
        sys.exit(str(error))
    print(f"{wheel}: {wheel.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
