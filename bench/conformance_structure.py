"""Cases of conformance: replies of a form that the request asks for."""

from __future__ import annotations

import json
from functools import partial

import jsonschema
from conformance_kit import HI, LONG, Cases, Json, Target, chat_fields, equal, error_of, expect, text_of

CASES = Cases()
case = CASES.case
SEEDS = (1, 2, 3)
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema_format(**fields: object) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, **fields}}


def check_person(text: str) -> None:
    person = json.loads(text)
    equal(sorted(person), ["age", "name"], "members")
    expect(isinstance(person["name"], str) and isinstance(person["age"], int), "a name and an age", person)


@case
def json_object_is_json(target: Target) -> None:
    choice = target.choice(response_format={"type": "json_object"}, max_tokens=LONG)
    if choice["finish_reason"] == "stop":
        expect(isinstance(json.loads(choice["message"]["content"]), dict), "an object", choice)
    else:
        expect(choice["message"]["content"].lstrip().startswith("{"), "the beginning of an object", choice)


@case
def a_json_schema_is_followed(target: Target) -> None:
    check_person(target.choice(response_format=schema_format(strict=True), max_tokens=LONG)["message"]["content"])


@case
def a_schema_that_is_not_strict_is_accepted(target: Target) -> None:
    target.chat(response_format=schema_format(strict=False))


@case
def a_streamed_json_schema_is_followed(target: Target) -> None:
    check_person(text_of(target.stream(response_format=schema_format(), max_tokens=LONG)))


@case
def an_enum_is_followed(target: Target) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    text = target.choice(response_format=wanted, max_tokens=LONG)["message"]["content"]
    expect(json.loads(text) in ({"a": "x"}, {"a": "y"}), "one of the values", text)


@case
def response_format_text_is_free(target: Target) -> None:
    target.chat(response_format={"type": "text"})


@case
def a_schema_without_a_schema_is_refused(target: Target) -> None:
    target.refused("schema", response_format={"type": "json_schema", "json_schema": {"name": "x"}})


@case
def an_unknown_response_format_is_refused(target: Target) -> None:
    target.refused("response_format", response_format={"type": "xml"})


@case
def a_grammar_that_no_text_fits_is_refused(target: Target) -> None:
    target.refused("grammar", grammar="root ::= root")


@case
def two_forms_at_once_are_refused(target: Target) -> None:
    target.refused("grammar", grammar='root ::= "a"', response_format={"type": "json_object"})


@case
def a_huge_length_in_a_schema_is_accepted(target: Target) -> None:
    schema = {"type": "object", "properties": {"t": {"type": "string", "maxLength": 100_000}}}
    target.chat(response_format=form_of(schema))


@case
def a_grammar_is_followed(target: Target) -> None:
    equal(target.choice(grammar='root ::= "forty-" "two"', max_tokens=LONG)["message"]["content"], "forty-two", "text")


def form_of(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


TOOLS: Json = {"type": "array", "items": {"enum": ["hammer", "saw", "nail"]}}
THREE: Json = {name: {"type": "null"} for name in "abc"}
PETS: list[Json] = [
    {"type": "object", "properties": {"kind": {"const": kind}, "age": {"type": "integer", "maximum": 9}}}
    for kind in ("cat", "dog")
]
SCHEMAS: dict[str, Json] = {
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": 0, "maximum": 3},
    "exclusiveMaximum": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    "multipleOf": {"type": "integer", "multipleOf": 25, "minimum": 1, "maximum": 900},
    "minLength": {"type": "string", "minLength": 3, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}$"},
    "format": {"type": "string", "format": "date"},
    "minItems": TOOLS | {"minItems": 2, "maxItems": 3},
    "uniqueItems": TOOLS | {"uniqueItems": True, "minItems": 2},
    "uniqueItems_of_texts": {"type": "array", "items": {"type": "string", "maxLength": 2}, "uniqueItems": True},
    "contains": TOOLS | {"contains": {"const": "saw"}, "maxItems": 4},
    "prefixItems": {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "items": False},
    "minProperties": {"type": "object", "properties": THREE, "minProperties": 2},
    "propertyNames": {
        "type": "object",
        "additionalProperties": {"type": "null"},
        "propertyNames": {"pattern": "^x_[a-z]$"},
        "maxProperties": 2,
    },
    "dependentRequired": {
        "type": "object",
        "properties": THREE,
        "dependentRequired": {"a": ["c"]},
    },
    "unevaluatedProperties": {
        "type": "object",
        "allOf": [{"properties": {"a": {"type": "null"}}}],
        "unevaluatedProperties": False,
    },
    "if": {
        "type": "object",
        "properties": {"kind": {"enum": ["circle", "square"]}, "radius": {"type": "integer", "maximum": 9}},
        "required": ["kind"],
        "if": {"properties": {"kind": {"const": "circle"}}},
        "then": {"required": ["radius"]},
        "else": {"properties": {"radius": False}},
    },
    "not": {"type": "string", "maxLength": 3, "not": {"enum": ["", "a", "yes"]}},
    "oneOf": {"oneOf": PETS},
    "oneOf_that_overlaps": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "maxProperties": 1}},
    },
}
"""Each by the keyword that it asks about."""


def a_keyword_is_enforced_or_refused(target: Target, name: str) -> None:
    """Whatever the model would like: drawn hot, three times, the reply fits; or the request is
    refused and the message names the keyword.
    """
    schema, keyword = SCHEMAS[name], name.partition("_")[0]
    for seed in SEEDS:
        fields = {"response_format": form_of(schema), "temperature": 1.5, "seed": seed, "max_tokens": LONG}
        reply = target.post("chat/completions", **chat_fields(HI, fields))
        if 400 <= reply.status_code < 500:
            expect(keyword in str(error_of(reply, 400)), f"an error that names {keyword}", reply.text)
            return
        expect(reply.status_code == 200, "a reply or a refusal", reply.text)
        choice = reply.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            faults = list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(choice["message"]["content"])))
            expect(not faults, f"what fits {keyword}", choice["message"]["content"])


for _name in SCHEMAS:
    CASES.by_name[f"a_schema_with_{_name}"] = partial(a_keyword_is_enforced_or_refused, name=_name)
