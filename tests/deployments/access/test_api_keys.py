"""Keys as a configuration lists them: what is taken, what is refused, and that none of it shows a
key.
"""

import json

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from deployments.access.key_book import KeyBook, TenantNotFound
from deployments.access.keys import ApiKey, KeySpec
from deployments.access.tenant import ANONYMOUS
from deployments.config import BuildArgs
from erllama.api_keys import key_hash, new_key
from erllama.cli.app import app

KEYS = TypeAdapter(tuple[ApiKey, ...])
HASH = key_hash("k")


def specs(*given: object) -> tuple[KeySpec, ...]:
    return KEYS.validate_python(given)


def test_a_key_as_text_is_that_of_the_default_tenant_with_the_stores_own_salt():
    [spec] = specs("k")
    assert (spec.hash, spec.tenant.name, spec.tenant.salt, spec.tenant.models) == (HASH, "default", "", None)
    assert not spec.tenant.admin
    assert [spec] == list(specs({"key": "k"})) == list(specs({"hash": HASH}))


def test_keys_of_one_name_are_one_tenant_and_others_are_not():
    a, again, b, same = specs(
        {"key": "1", "name": "a"}, {"key": "2", "name": "a"}, {"key": "3", "name": "b"}, {"key": "4", "name": "c", "salt": "b"}
    )  # fmt: skip
    assert a.tenant == again.tenant
    assert len({a.tenant.salt, b.tenant.salt, same.tenant.salt, ""}) == 4
    assert same.tenant.salt == "b"


def test_what_a_key_may_do_stands_in_its_tenant():
    [spec] = specs({"key": "k", "name": "ops", "models": ["x"], "admin": True})
    assert spec.tenant.admin
    assert (spec.tenant.may_use("x"), spec.tenant.may_use("y")) == (True, False)
    assert ANONYMOUS.may_use("y")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        {},
        {"key": ""},
        {"key": "secret-k", "hash": HASH},
        {"hash": "secret-k"},
        {"hash": HASH.upper()},
        {"key": "secret-k", "name": "a b"},
        {"key": "secret-k", "name": ""},
        {"key": "secret-k", "name": "a\nb"},
        {"key": "secret-k", "requests_per_minute": 0},
        {"key": "secret-k", "tokens_per_minute": -1},
        {"key": "secret-k", "salt": "a\0b"},
        {"key": "secret-k", "modls": ["x"]},
        7,
    ],
    ids=repr,
)
def test_a_wrong_entry_is_refused_in_words_that_do_not_repeat_it(wrong: object):
    args = {"models": [{"id": "x", "path": "a"}], "http": {"api_keys": [wrong]}}
    with pytest.raises(ValidationError, match=r"http\.api_keys\.0") as caught:
        BuildArgs.model_validate(args)
    assert "secret" not in str(caught.value)


def test_a_key_names_models_that_there_are():
    args = {"models": [{"id": "x", "path": "a"}], "http": {"api_keys": [{"key": "k", "models": ["x", "y"]}]}}
    with pytest.raises(ValidationError, match=r"api_keys.0.models names 'y'"):
        BuildArgs.model_validate(args)


def test_what_travels_to_other_processes_and_into_logs_has_no_key():
    args = {"models": [{"id": "x", "path": "a"}], "http": {"api_keys": ["secret-1", {"key": "secret-2", "name": "b"}]}}
    parsed = BuildArgs.model_validate(args)
    dumped = parsed.model_dump(mode="json")
    assert BuildArgs.model_validate(dumped) == parsed
    assert "secret" not in json.dumps(dumped) + repr(parsed) + repr(parsed.http.api_keys)
    assert key_hash("secret-2") not in repr(parsed.http.api_keys)


def test_of_each_model_replicas_are_told_the_salts_of_who_may_use_it():
    keys = ["k", {"key": "a", "name": "a"}, {"key": "a2", "name": "a"}, {"key": "b", "name": "b", "models": ["y"]}]
    models = [{"id": "x", "path": "a"}, {"id": "y", "path": "a"}]
    http = BuildArgs.model_validate({"models": models, "http": {"api_keys": keys}}).http
    assert (len(http.salts("x")), len(http.salts("y"))) == (2, 3)
    assert http.salts("x")[0] == ""
    assert BuildArgs.model_validate({"models": models}).http.salts("x") == ("",)


def test_a_book_knows_the_keys_by_their_hashes_and_nobody_else():
    book = KeyBook(specs("k1", {"key": "k2", "name": "b"}))

    def name(*shown: bytes) -> str | None:
        found = book.find(shown)
        return None if found is None else found.tenant.name

    assert [name(b"k1"), name(b"k2"), name(b"", b"k2"), name(b"k3", b"k2")] == ["default", "b", "b", "b"]
    assert [name(), name(b""), name(b"k"), name(b"k11"), name(key_hash("k1").encode())] == [None] * 5
    everybody = KeyBook().find(())
    assert everybody is not None
    assert everybody.tenant == ANONYMOUS


def test_a_book_knows_tenants_by_their_names():
    keys = (
        "k",
        {"key": "a", "name": "a", "salt": "one"},
        {"key": "a2", "name": "a", "salt": "two"},
        {"key": "b", "name": "b"},
    )
    book = KeyBook(specs(*keys))
    assert list(book.tenants) == ["default", "a", "b"]
    assert (book.tenant("a").salt, book.tenant("default").salt) == ("one", "")
    with pytest.raises(TenantNotFound, match="There is no tenant 'c'; there are: default, a, b"):
        book.tenant("c")
    assert list(KeyBook().tenants) == ["anonymous"]


def test_the_owner_of_pins_depends_on_the_name_alone():
    one, two, other = (
        spec.tenant
        for spec in specs(
            *(
                {"key": f"k{i}", "name": n, "salt": s}
                for i, (n, s) in enumerate([("a", "one"), ("a", "two"), ("b", "one")])
            )
        )
    )
    assert one.owner == two.owner != other.owner
    assert not {one.owner, other.owner} & {"", "a", "b", "one", key_hash("k0")}
    assert (specs("plain")[0].tenant.owner, ANONYMOUS.owner) == ("", "")


def test_of_each_key_limits_are_counted_once_in_a_book():
    book = KeyBook(specs({"key": "k1", "requests_per_minute": 5}, {"key": "k2", "requests_per_minute": 5}))
    first, again, other = (book.find([key]) for key in (b"k1", b"k1", b"k2"))
    assert first is again
    assert first.rate_limit is not other.rate_limit


def test_new_keys_differ_and_have_256_bits():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key.removeprefix("erl-")) == 43 for key in keys)


def test_the_command_prints_a_key_once_and_the_lines_that_accept_it():
    result = CliRunner().invoke(app, ["key", "new", "--name", "alice"])
    assert result.exit_code == 0
    key, _, rest = result.output.partition("\n")
    assert key not in rest
    fields = dict(line.strip(" -").split(": ", 1) for line in rest.splitlines()[-2:])
    book = KeyBook(specs(fields))
    found = book.find([key.encode()])
    assert found is not None
    assert found.tenant.name == "alice"
    assert CliRunner().invoke(app, ["key", "new", "--name", "two words"]).exit_code == 2
