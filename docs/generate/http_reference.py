"""The reference of HTTP, dialect by dialect, from the OpenAPI document of the application."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from deployments.http.dialect import Dialect, choose_dialect
from deployments.ingress.http_app import DIALECTS, make_http_app
from deployments.ingress.openapi import openapi_document
from docs.generate.config_reference import cell


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document; models do not change it."""
    app = make_http_app(())
    bodies = {path: kind for dialect in DIALECTS for path, kind in dialect.bodies.items()}
    return openapi_document(app.routes, bodies)


def http_part(name: str) -> str:
    """Of the dialect of this name: where its key goes, its routes, and what their bodies hold. "health"
    are the routes of none.
    """
    told = document()
    if name == "health":
        return "\n".join(_routes([each for each in operations(told) if each.dialect is None]))
    dialect = next(dialect for dialect in DIALECTS if key(dialect) == name)
    own = [each for each in operations(told) if each.dialect is dialect]
    before = DIALECTS[: DIALECTS.index(dialect)]
    shown = {each.body for each in operations(told) if each.dialect in before}
    return "\n".join([*_facts(dialect), *_routes(own), *_bodies(told, [o for o in own if o.body not in shown])])


def key(dialect: Dialect) -> str:
    """What a page calls it (`Dialect.name` is whose rules against noise hold)."""
    return type(dialect).__name__.lower()


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path. `body` is the name of the type that is posted, "" for none."""

    method: str
    path: str
    body: str
    dialect: Dialect | None


def operations(told: Mapping[str, Any]) -> list[Operation]:
    """All of them, in the order of the document."""
    return [
        Operation(method.upper(), path, body_name(operation), owner(path, operation["operationId"]))
        for path, methods in told["paths"].items()
        for method, operation in methods.items()
    ]


def owner(path: str, operation_id: str) -> Dialect | None:
    """Where dialects share a path, the id of the operation tells whose it is; else the path does."""
    named = [dialect for dialect in DIALECTS if operation_id.startswith(f"{type(dialect).__name__}_")]
    if named or path.split("/")[1] == "health":
        return named[0] if named else None
    return choose_dialect(DIALECTS, {"path": path, "headers": []})


def _facts(dialect: Dialect) -> Iterator[str]:
    keys = ", ".join(f"`{key}`" for key in dialect.keys)
    query = f", or `?{dialect.key_query}=` in the query" if dialect.key_query else ""
    streams = f" Streams are `{dialect.framing.media_type}`." if hasattr(dialect, "framing") else ""
    yield f"Keys: {keys}{query}.{streams}\n"


def _routes(own: list[Operation]) -> Iterator[str]:
    yield "| method | path | body |"
    yield "|---|---|---|"
    for each in own:
        link = f"[{each.body}](#{anchor(each.body)})" if each.body else ""
        yield f"| `{each.method}` | `{each.path}` | {link} |"
    yield ""


def _bodies(told: Mapping[str, Any], own: list[Operation]) -> Iterator[str]:
    for name in dict.fromkeys(each.body for each in own if each.body):
        schema = told["components"]["schemas"][name]
        required = set(schema.get("required", ()))
        yield f"### {name} {{#{anchor(name)}}}\n"
        yield "| field | type | |"
        yield "|---|---|---|"
        for field, kind in schema.get("properties", {}).items():
            yield f"| `{field}` | {cell(type_of(kind))} | {'required' if field in required else ''} |"
        yield ""


def body_name(operation: Mapping[str, Any]) -> str:
    """The name of the type that is posted, "" for none."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rsplit("/", 1)[-1]


def anchor(name: str) -> str:
    """Of a type's heading: names of several dialects differ in the part before the dot."""
    return "body-" + name.replace(".", "-").lower()


def type_of(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; null says only that a field may be left out."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    options = [kind for kind in schema.get("anyOf", schema.get("oneOf", ())) if kind.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(map(type_of, options)))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of: {type_of(schema.get('items', {}))}"
    limits = [f"{word} {schema[key]}" for key, word in _LIMITS if key in schema]
    return ", ".join([str(schema.get("type", "any")), *limits])


_LIMITS = (
    ("minimum", "at least"),
    ("maximum", "at most"),
    ("exclusiveMinimum", "above"),
    ("maxItems", "at most"),
)
