"""What a server's list of models tells: names, contexts, and what Codex reads of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from erllama.errors import ErllamaError, InvalidParameter


@dataclass(frozen=True, slots=True)
class ListedModel:
    """`context`: tokens of one conversation; None where the list does not say."""

    id: str
    context: int | None = None


def listed_models(body: Any) -> list[ListedModel]:
    """The models of `GET /v1/models`, of ours or of another server that speaks OpenAI's API. Raises
    `ErllamaError` for what is no such list.
    """
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        raise ErllamaError("the server's /v1/models is not a list of models: is this an OpenAI-compatible server?")
    return [ListedModel(card["id"], _context(card)) for card in data if isinstance(card, Mapping) and "id" in card]


def _context(card: Mapping[str, Any]) -> int | None:
    """Servers have three names for it: `max_model_len` is also vLLM's, `meta.n_ctx` also llama.cpp's."""
    meta = card.get("meta")
    told = [card.get("max_model_len"), card.get("context_length")]
    told.append(meta.get("n_ctx") if isinstance(meta, Mapping) else None)
    return next((value for value in told if type(value) is int and value > 0), None)


def codex_catalog(body: Mapping[str, Any]) -> str | None:
    """The list that Codex reads, if the server has one."""
    models = body.get("models")
    is_catalog = isinstance(models, list) and all(isinstance(one, Mapping) and "slug" in one for one in models)
    return json.dumps({"models": models}, indent=1) + "\n" if is_catalog and models else None


def choose_model(models: Sequence[ListedModel], wanted: str | None) -> ListedModel:
    """The one that is `wanted`, or the only one. Aliases are in no list, and no names here: the context
    would not be known. Raises `InvalidParameter` with the names that there are.
    """
    names = [model.id for model in models]
    there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if wanted is None:
        if len(models) == 1:
            return models[0]
        why = f"choose one of the server's models: {there}" if models else "the server has no models"
        raise InvalidParameter(f"--model: {why}", param="model")
    found = next((model for model in models if model.id == wanted), None)
    if found is not None:
        return found
    near = get_close_matches(wanted, names, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {there or 'none'}"
    raise InvalidParameter(f"--model: the server has no model {wanted!r}; {hint}", param="model")
