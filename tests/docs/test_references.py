"""Pages that are made from the code: HTTP and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.ingress.http_app import DIALECTS
from docs.generate.command_reference import command_reference, commands
from docs.generate.hooks import MARK, PARTS, fill
from docs.generate.http_reference import document, http_part, key, operations

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_every_part_stands_on_exactly_one_page():
    assert sorted(name for page in PAGES for name in MARK.findall(page.read_text())) == sorted(PARTS)


def test_every_operation_stands_in_the_part_of_its_dialect():
    told = document()
    parts = {key(dialect): http_part(key(dialect)) for dialect in DIALECTS} | {"health": http_part("health")}
    for each in operations(told):
        assert f"| `{each.method}` | `{each.path}` |" in parts[key(each.dialect) if each.dialect else "health"]
    assert {each.path for each in operations(told)} == set(told["paths"])


@pytest.mark.parametrize(
    ("method", "path", "dialect"),
    [
        ("POST", "/v1/chat/completions", "openai"),
        ("POST", "/v1/messages", "anthropic"),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/api/chat", "ollama"),
        ("POST", "/v1beta/models/{named}", "gemini"),
        ("POST", "/completion", "llamaserver"),
        ("POST", "/v1/rerank", "ranking"),
        ("GET", "/erllama/v1/prefixes", "erllamaadmin"),
    ],
)
def test_routes_stand_where_their_clients_look(method: str, path: str, dialect: str):
    assert f"| `{method}` | `{path}` |" in http_part(dialect)


def test_every_link_to_a_body_has_its_heading():
    page = fill((DOCS / "http.md").read_text())
    links = set(re.findall(r"\]\(#([\w-]+)\)", page))
    assert links
    assert links <= set(re.findall(r"\{#([\w-]+)\}", page))


def test_every_command_has_its_heading_and_a_row_for_each_option():
    page = command_reference()
    assert {"erllama serve", "erllama key new", "erllama why"} <= {name for name, _ in commands()}
    for name, command in commands():
        assert f"## {name}\n" in page
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in page.split(f"## {name}\n")[1].split("\n## ")[0]


def test_a_name_that_nothing_makes_is_an_error():
    with pytest.raises(KeyError):
        fill("<!-- generated: nonsense -->")


def test_no_heading_stands_twice_in_a_page():
    headings = re.findall(r"\{#([\w-]+)\}", fill((DOCS / "http.md").read_text()))
    assert len(headings) == len(set(headings))
