"""The Grafana dashboard: every query is PromQL, and asks for numbers and labels that are declared; every
number that is declared is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest

from deployments.metrics import METRICS, Kind

DASHBOARD = json.loads((Path(__file__).parents[3] / "deploy/grafana/erllama.json").read_text())
PREFIXES = [option["value"] for variable in DASHBOARD["templating"]["list"] if variable["name"] == "prefix"
            for option in variable["options"]]  # fmt: skip
SERIES = {name: metric for metric in METRICS for name in metric.series}
NOT_SHOWN: set[str] = set()  # by name, each with its reason


def panels() -> Iterator[dict]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


QUERIES = [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", [])]


def parsed(query: str, prefix: str) -> promql_parser.Expr:
    variables = {"${prefix}": prefix, "$__rate_interval": "5m", "$model": "demo|other"}
    for name, value in variables.items():
        query = query.replace(name, value)
    assert "$" not in query
    return promql_parser.parse(query)


def parts(tree: object) -> Iterator[object]:
    """Every node of a query."""
    yield tree
    match tree:
        case promql_parser.MatrixSelector():
            yield from parts(tree.vector_selector)
        case promql_parser.BinaryExpr():
            yield from parts(tree.lhs)
            yield from parts(tree.rhs)
        case promql_parser.Call():
            for argument in tree.args:
                yield from parts(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from parts(tree.expr)
        case promql_parser.VectorSelector() | promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise AssertionError(f"a query has a {type(tree).__name__}, which this test does not know")


def selected(tree: object) -> list[promql_parser.VectorSelector]:
    return [part for part in parts(tree) if isinstance(part, promql_parser.VectorSelector)]


def labels_of(name: str) -> set[str]:
    return {*SERIES[name].tags, *(["le"] if name.endswith("_bucket") else [])}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("title", "query"), QUERIES, ids=lambda text: text[:60])
def test_a_query_asks_for_what_is_declared(title, query, prefix):
    tree = parsed(query, prefix)
    vectors = selected(tree)
    assert vectors, title
    known: set[str] = set()
    for vector in vectors:
        assert vector.name.startswith(f"{prefix}erllama_")
        name = vector.name.removeprefix(prefix)
        assert name in SERIES, f"{title}: nobody tells {name}"
        assert {matcher.name for matcher in vector.matchers.matchers} <= labels_of(name), title
        known |= labels_of(name)
    for part in parts(tree):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            assert set(part.modifier.labels) <= known, title


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=lambda text: text[:60])
def test_counters_are_read_as_rates_and_nothing_else_is(title, query):
    tree = parsed(query, "")
    rated = {
        selector.name
        for part in parts(tree)
        if isinstance(part, promql_parser.Call) and part.func.name == "rate"
        for selector in selected(part)
    }
    assert {one.name for one in selected(tree) if SERIES[one.name].kind is not Kind.GAUGE} == rated, title


@pytest.mark.parametrize("panel", [one for one in panels() if one["type"] != "row"], ids=lambda one: one["title"])
def test_a_legend_names_labels_that_its_query_keeps(panel):
    for target in panel["targets"]:
        tree = parsed(target["expr"], "")
        kept = [set(part.modifier.labels) for part in parts(tree)
                if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None]  # fmt: skip
        whole = not any(isinstance(part, promql_parser.AggregateExpr) for part in parts(tree))
        labels = set.union(set(), *kept, *(labels_of(one.name) for one in selected(tree) if whole))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_every_number_is_shown():
    shown = {vector.name for _, query in QUERIES for vector in selected(parsed(query, ""))}
    missing = {metric.name for metric in METRICS if shown.isdisjoint(metric.series)}
    assert missing == NOT_SHOWN


def test_grafana_can_load_it():
    """What its import asks for: ids that are unique, places that do not overlap, one data source."""
    every = list(panels())
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 36
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used <= names, used - names
    for panel in every:
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
