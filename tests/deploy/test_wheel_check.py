"""What a wheel must not be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from deploy.wheel_check import (
    MAX_BYTES,
    changelog_problems,
    content_problems,
    metadata_problems,
    mode_problems,
    read_wheel,
)

METADATA = """\
Metadata-Version: 2.4
Name: erllama
Version: 0.1.0
Summary: Serves models
License-Expression: MIT
Requires-Python: >=3.11
Requires-Dist: numpy>=1.26
Description-Content-Type: text/markdown

# erllama
"""
TRACKED = ("erllama/model.py", "deployments/proxy", "tests/test_model.py", "README.md")


def make(folder: Path, files: dict[str, int], metadata: str = METADATA) -> Path:
    """A wheel with files of these modes."""
    path = folder / "erllama-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in {**files, "erllama-0.1.0.dist-info/METADATA": 0o644}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, metadata if name.endswith("METADATA") else "x")
    return path


def test_a_good_wheel_has_no_problems(tmp_path):
    wheel = read_wheel(make(tmp_path, {"erllama/model.py": 0o644, "deployments/proxy": 0o755}))
    assert metadata_problems(wheel.metadata) == []
    assert content_problems(wheel, TRACKED) == []
    assert mode_problems(wheel, ["deployments/proxy", "tests/run"]) == []


def test_what_is_missing_too_much_or_lost_its_mode_is_named(tmp_path):
    wheel = read_wheel(make(tmp_path, {"tests/test_model.py": 0o644, "deployments/proxy": 0o644}))
    assert content_problems(wheel, TRACKED) == [
        "contents: tests/test_model.py does not belong into the wheel",
        "contents: erllama/model.py is missing",
    ]
    assert mode_problems(wheel, ["deployments/proxy"]) == ["contents: deployments/proxy is not executable"]


def test_a_large_wheel_is_refused(tmp_path):
    path = make(tmp_path, {"erllama/model.py": 0o644, "deployments/proxy": 0o755})
    wheel = read_wheel(path)
    with path.open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    assert content_problems(wheel, TRACKED) == [f"contents: {MAX_BYTES + 1} bytes, more than {MAX_BYTES}"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("License-Expression: MIT\n", "", "license_expression is missing"),
        ("License-Expression: MIT", "License-Expression: Mine", "license"),
        ("Version: 0.1.0", "Version: first", "version"),
        ("Requires-Dist: numpy>=1.26", "Requires-Dist: numpy>>1", "requires-dist"),
        ("text/markdown", "text/plain", "text/markdown"),
    ],
)
def test_faults_of_the_metadata_are_named(old: str, new: str, told: str):
    (problem,) = metadata_problems(METADATA.replace(old, new).encode())
    assert told in problem.lower()


def test_a_version_stands_in_the_changelog():
    assert changelog_problems("# Changelog\n\n## 0.2.0 (2026-12)\n", "0.2.0") == []
    assert changelog_problems("# Changelog\n\n## Unreleased\n", "0.2.0") == []
    assert len(changelog_problems("# Changelog\n\n## 0.1.0\n", "0.2.0")) == 1
