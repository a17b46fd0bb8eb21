"""Pages that load something from elsewhere are found."""

from __future__ import annotations

import pytest

from docs.generate.site_check import main, problems


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ('<script src="https://cdn.example.org/a.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example.org/css">', True),
        ('<img src="missing.svg" alt="">', True),
        ('<img src="here.svg?1" alt="">', False),
        ('<link rel="canonical" href="https://example.org/">', False),
        ('<a href="https://example.org/">there</a>', False),
    ],
)
def test_only_what_is_loaded_counts(tag: str, wrong: bool, tmp_path):
    (tmp_path / "here.svg").touch()
    (tmp_path / "page.html").write_text(f"<html>{tag}</html>")
    assert len(list(problems(tmp_path))) == wrong
    assert main(tmp_path) == wrong


def test_no_page_at_all_is_a_fault(tmp_path):
    assert main(tmp_path) == 1
