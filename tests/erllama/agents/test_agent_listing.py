"""Lists of models as servers send them, and which model is chosen."""

import json

import pytest

from erllama.agents.listing import ListedModel, choose_model, codex_catalog, listed_models
from erllama.errors import ErllamaError, InvalidParameter

MODELS = [ListedModel("qwen3:8b", 8192), ListedModel("qwen3:4b", 4096)]


@pytest.mark.parametrize(
    ("card", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 8192}, 8192),
        ({"meta": {"n_ctx": 512, "n_ctx_train": 32768}}, 512),
        ({"meta": {"n_ctx_train": 32768}}, None),
        ({"meta": None, "max_model_len": None}, None),
        ({"max_model_len": "4096"}, None),
        ({"context_length": 0}, None),
    ],
)
def test_the_context_is_found_under_the_names_that_servers_give_it(card, context):
    assert listed_models({"data": [{"id": "m", **card}]}) == [ListedModel("m", context)]


@pytest.mark.parametrize("body", [[], None, {"data": None}, {"error": "no"}, "models"])
def test_what_is_no_list_of_models_is_refused(body):
    with pytest.raises(ErllamaError, match="OpenAI-compatible"):
        listed_models(body)


def test_the_only_model_is_chosen_and_a_name_that_is_there():
    assert choose_model(MODELS[:1], None) == MODELS[0]
    assert choose_model(MODELS, "qwen3:4b") == MODELS[1]


@pytest.mark.parametrize(
    ("models", "wanted", "told"),
    [
        (MODELS, None, "qwen3:8b, qwen3:4b"),
        ([], None, "has no models"),
        (MODELS, "qwen3:7b", "did you mean qwen3:8b, qwen3:4b"),
        (MODELS, "llama", "it has qwen3:8b, qwen3:4b"),
    ],
)
def test_what_cannot_be_chosen_is_told_with_the_names_that_there_are(models, wanted, told):
    with pytest.raises(InvalidParameter, match=told) as refused:
        choose_model(models, wanted)
    assert refused.value.param == "model"


def test_codex_reads_only_a_list_of_its_own_kind():
    catalog = {"object": "list", "data": [], "models": [{"slug": "m", "context_window": 4096}]}
    assert json.loads(codex_catalog(catalog)) == {"models": catalog["models"]}
    assert codex_catalog({"data": [], "models": [{"name": "an Ollama model"}]}) is None
    assert codex_catalog({"data": []}) is None
