"""The reference covers every key that the typed config accepts, with type, default and meaning."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from pydantic import BaseModel

from deployments.config import BuildArgs, ModelSpec
from docs.generate.config_keys import Key, all_keys, describe
from docs.generate.config_reference import CONFIG, by_section, cell, config_reference
from docs.generate.config_texts import Texts, docstring_entries, read_comments, sentence_about

KEYS = list(all_keys())
TEXTS = Texts(read_comments(CONFIG.read_text()))
PAGE = config_reference()


def by_path(path: str) -> Key:
    (found,) = [key for key in KEYS if key.path == path]
    return found


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_has_type_default_and_meaning(key: Key):
    assert key.kind not in ("", "any")
    assert key.default
    assert len(TEXTS.of(key)) > 5, f"{key.owner.__name__} has no text for {key.name}, nor has serve_config.yaml"
    assert f"| `{key.name}` |" in PAGE


def given_keys(value: object, prefix: str = "") -> set[str]:
    """Paths of what a validated configuration holds, lists entered once."""
    if isinstance(value, BaseModel):
        pairs = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        return set()
    found = set()
    for name, inner in pairs:
        entries = inner if isinstance(inner, tuple) else ()
        below = [path for entry in entries for path in given_keys(entry, f"{prefix}{name}[].")]
        below += given_keys(inner, f"{prefix}{name}.")
        found |= set(below) or {f"{prefix}{name}"}
    return found


def test_what_a_full_config_holds_is_in_the_reference():
    """Asked of objects, not of types: so the walk over the types cannot have lost a branch."""
    args = yaml.safe_load(CONFIG.read_text())["applications"][0]["args"]
    args["models"][0] |= {"adapters": [{"path": "a.gguf"}]}
    args["store"]["tiers"] = [{"url": "/tmp/kv"}]
    args["http"] |= {"api_keys": ["k"]}
    args["http"]["noise"] = {"rules": [{"name": "mine", "action": "sort_tools"}]}
    assert given_keys(BuildArgs.model_validate(args)) <= {key.path for key in KEYS} | {"models[].autoscaling"}


def test_defaults_are_those_of_the_classes():
    spec = ModelSpec(id="m", path="m.gguf")
    for key in KEYS:
        if key.section == "models[]" and key.default not in ("required", "null"):
            assert yaml.safe_load(key.default) == getattr(spec, key.name) or key.default in ("[]", "{}"), key.path


def test_types_tell_their_limits():
    assert by_path("routing.chunk_tokens").kind == "integer, at least 8, at most 1024"
    assert by_path("store.tiers[].compression").kind == "`zstd` or `lz4` or null"
    assert by_path("models[].path").default == "required"
    assert by_path("http.noise.rules[].action").kind.count(" or ") == 4  # of all five classes of rules
    assert describe(dict[str, float]) == "mapping"


def test_each_section_stands_once_and_the_models_come_first():
    names = [section for section, _ in by_section()]
    assert len(names) == len(set(names))
    assert names[:2] == ["", "models[]"]


def test_a_comment_goes_to_its_key_and_goes_on_in_the_next_line():
    comments = read_comments(
        "applications:\n- args:\n    a:      # of a\n      b: 1  # of b\n" + " " * 34 + "# and more\n"
        '      c: "#"  # of c\n    d: 2\n    # - e: 3  # shown\n'
    )
    assert comments == {"a": "of a", "a.b": "of b and more", "a.c": "of c", "d.e": "shown"}


def test_entries_of_a_docstring():
    doc = "What it is. Such: no entry\n\none, two: said of both\n    at length\n\nurl      where\nNot: an entry"
    assert docstring_entries(doc) == {"one": "said of both at length", "two": "said of both at length", "url": "where"}


def test_prose_that_names_a_key_stands_for_an_entry():
    doc = "Where spans go: to `endpoint`. The share is\n`sample`; nothing else. The rest."
    assert sentence_about("sample", doc) == "The share is `sample`;"
    assert sentence_about("rest", doc) == ""


def test_a_cell_shows_what_is_written():
    assert cell("a|b <c> * `<d> * |`") == "a\\|b &lt;c> \\* `<d> * |`"


def test_no_cell_breaks_its_table():
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) == 5, line
