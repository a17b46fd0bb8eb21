"""The pictures show what the demo model does today."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from docs.generate.measured_prompts import Prompt, measure, read_json, to_json
from docs.generate.pictures import DATA, FOLDER, TITLES, draw, drawn
from tests.support.snippets import PAGES


def test_the_pictures_are_those_of_the_data():
    pictures = drawn(DATA.read_text())
    assert {path.name: path.read_text() for path in FOLDER.glob("*.svg")} == pictures
    assert len(pictures) == len(TITLES)


@pytest.mark.model
def test_the_data_is_what_a_run_counts():
    assert to_json(measure()) == DATA.read_text(), "python -m docs.generate.pictures draws them anew"


def test_a_bar_is_as_long_as_its_tokens():
    root = ElementTree.fromstring(draw("A & B", [Prompt("one", 100, 0, ""), Prompt("two", 200, 150, "store")]))
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "20"]
    assert [(bar.get("class"), float(bar.get("width", ""))) for bar in bars] == [
        ("cached", 0.0),
        ("computed", 200.0),
        ("cached", 300.0),
        ("computed", 100.0),
    ]
    told = "".join(root.itertext())
    assert "two: 150 of 200 cached" in told
    assert "50 computed (from the store)" in told


def test_every_picture_is_shown_and_said_in_words():
    pages = "".join(page.read_text() for page in PAGES)
    for name in read_json(DATA.read_text()):
        assert f"](pictures/{name}.svg)" in pages
    assert "32 tokens here" in pages
    later = read_json(DATA.read_text())["conversation"][1:]
    assert {prompt.prompt_tokens - prompt.cached_tokens for prompt in later} == {32}
