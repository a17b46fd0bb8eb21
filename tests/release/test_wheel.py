"""The wheel: built once from this checkout without a network, then read. `release/wheel.py` has the
rules; here each of them is also shown to find what it is there for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest

from release.wheel import MAX_BYTES, ROOT, belongs, build_wheel, problems


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_what_the_tree_says(wheel):
    assert problems(wheel, ROOT) == []


@pytest.mark.parametrize(
    "path",
    [
        *("erllama/demo/demo.gguf", "erllama/demo/MODEL_CARD.md", "erllama/cli/app.py"),
        *("deployments/page/static/index.html", "deployments/page/static/chat/view.js"),
        *("deployments/noise/rules.yaml", "deployments/default_config.yaml", "deployments/haproxy_no_splice"),
        *("cache_store/py.typed", "erllama/py.typed", "deployments/py.typed"),
    ],
)
def test_what_is_no_code_is_there_too(wheel, path):
    with ZipFile(wheel) as archive:
        assert archive.read(path) == (ROOT / path).read_bytes()


def test_nothing_of_training_tests_or_measurements_is_there(wheel):
    with ZipFile(wheel) as archive:
        assert {name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name} == {
            *("cache_store", "erllama", "deployments")
        }
        assert not [name for name in archive.namelist() if name.startswith(("erllama/testing", "demo_model"))]


def test_nothing_needs_what_is_left_out(wheel):
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        assert not [
            name for name in names if re.search(rb"(from|import) erllama(\.| import )testing", archive.read(name))
        ]


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("erllama/model.py", True),
        ("erllama/testing/stub_backend.py", False),
        ("cache_store/testing.py", True),
        ("demo_model/train.py", False),
        ("README.md", False),
    ],
)
def test_which_files_of_the_tree_belong_there(path, there):
    assert belongs(path) is there


Change = Callable[[ZipInfo, bytes], bytes | None]


def edited(wheel: Path, folder: Path, change: Change, add: dict[str, bytes] | None = None) -> Path:
    """A wheel whose entries are what `change` makes of them, None for none, and those of `add`."""
    copy = folder / wheel.name
    with ZipFile(wheel) as old, ZipFile(copy, "w") as new:
        for entry in old.infolist():
            body = change(entry, old.read(entry.filename))
            if body is not None:
                new.writestr(entry, body)
        for name, body in (add or {}).items():
            new.writestr(name, body)
    return copy


def only(name: str, make: Callable[[ZipInfo, bytes], bytes | None]) -> Change:
    return lambda entry, body: make(entry, body) if entry.filename.endswith(name) else body


def not_executable(entry: ZipInfo, body: bytes) -> bytes:
    entry.external_attr = 0o100644 << 16
    return body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (only("erllama/demo/demo.gguf", lambda *_: None), "lacks erllama/demo/demo.gguf"),
        (only("static/page.css", lambda *_: b"p {}"), "has another deployments/page/static/page.css than the tree"),
        (only("haproxy_no_splice", not_executable), "has deployments/haproxy_no_splice, which cannot be executed"),
        (only("METADATA", lambda _, body: body.replace(b"\nVersion: ", b"\nVersion: 9.")), "has the version '9.0.1.0'"),
        (only("METADATA", lambda _, body: body.replace(b"\nName: erllama", b"")), "has wrong metadata"),
        (
            only("entry_points.txt", lambda _, body: body.replace(b":app", b":gone")),
            "has the command erllama, which cannot be loaded: module 'erllama.cli.app' has no attribute 'gone'",
        ),
    ],
    ids=["a file less", "another file", "a mode", "a version", "no name", "a command"],
)
def test_a_wheel_that_must_not_be_released_is_told_why(wheel, tmp_path, change, reason):
    found = problems(edited(wheel, tmp_path, change), ROOT)
    assert len([line for line in found if line.startswith(reason)]) == 1


def test_a_file_too_many_is_named(wheel, tmp_path):
    more = edited(wheel, tmp_path, lambda _, body: body, {"tests/test_layering.py": b""})
    assert problems(more, ROOT) == ["holds tests/test_layering.py"]


def test_a_wheel_that_has_grown_too_large_is_told(wheel, tmp_path):
    copy = tmp_path / wheel.name
    shutil.copy(wheel, copy)
    with copy.open("r+b") as file:  # ZIP files may have anything before their first entry
        body = file.read()
        file.seek(0)
        file.write(b"\0" * (MAX_BYTES + 1) + body)
    assert problems(copy, ROOT) == [f"is {copy.stat().st_size} bytes; the limit is {MAX_BYTES}"]
