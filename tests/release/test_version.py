"""One version, told by pyproject.toml; the changelog begins with it or with what comes after it."""

from __future__ import annotations

import re
import tomllib

from packaging.version import Version

from release.wheel import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEADINGS = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def released() -> list[Version]:
    """In the changelog's order; a heading is a version and, behind it, a day."""
    return [Version(heading.split()[0]) for heading in HEADINGS if heading != "Unreleased"]


def test_the_changelog_begins_with_this_version_or_with_what_is_not_released():
    newest = HEADINGS[0].split()[0]
    assert newest in ("Unreleased", PROJECT["version"])
    assert all(version <= Version(PROJECT["version"]) for version in released())


def test_the_newest_version_stands_first_and_each_stands_once():
    assert HEADINGS.count("Unreleased") <= 1
    assert released() == sorted(set(released()), reverse=True)


def test_no_page_names_another_version():
    named = [name for page in PAGES for name in re.findall(r"erllama-(\d[\w.]*?)-py3", page.read_text())]
    assert named
    assert set(named) == {PROJECT["version"]}


def test_every_extra_that_is_told_of_is_there():
    told = [*PAGES, ROOT / "examples/serve_config_gpu.yaml", *(ROOT / "deploy").glob("*.Dockerfile")]
    lists = [names for path in told for names in re.findall(r"(?:erllama|\.|\.whl)\[([a-z0-9,]+)\]", path.read_text())]
    assert {name for names in lists for name in names.split(",")} >= {"s3", "data", "gpu"}
    assert {name for names in lists for name in names.split(",")} <= PROJECT["optional-dependencies"].keys()
