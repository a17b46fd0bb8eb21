"""Which model a name means."""

import pytest

from deployments.http.model_names import ModelNames

MODELS = {"big": ("gpt-5", "claude-*", "*"), "small": ("claude-haiku-*", "gpt-?-mini", "tiny"), "gpt-4": ()}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("big", "big"), ("gpt-5", "big"), ("gpt-4", "gpt-4"), ("tiny", "small"), ("claude-opus-5", "big"),
        ("claude-haiku-4-5", "small"), ("gpt-9-mini", "small"), ("gpt-10-mini", "big"), ("anything", "big"), ("", "big"),
    ],
)  # fmt: skip
def test_an_id_then_an_alias_then_the_longest_pattern(name, found):
    assert ModelNames(MODELS).find(name) == found


def test_the_default_answers_names_that_nobody_has():
    names = ModelNames({"a": ("first",), "b": ("b-*",)}, default="first")
    assert [names.find(name) for name in ("b-1", "c", "")] == ["b", "a", "a"]
    assert ModelNames({"a": ()}).find("c") is None


@pytest.mark.parametrize(
    ("aliases", "default", "message"),
    [
        ({"a": ("x",), "b": ("x",)}, None, "alias 'x' names two models: a and b"),
        ({"a": ("x-*",), "b": ("x-*",)}, None, "alias 'x-\\*' names two models: a and b"),
        ({"a": ()}, "b", "default_model 'b' is none of the models"),
        ({"a": ("b*",)}, "bb", "default_model 'bb' is none of the models"),
    ],
)
def test_names_that_clash_are_refused(aliases, default, message):
    with pytest.raises(ValueError, match=message):
        ModelNames(aliases, default)
