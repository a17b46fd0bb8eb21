"""The list of models as Anthropic has it: cards, and pages of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from deployments.http.model_names import is_pattern
from deployments.http.ports import ServedModel
from erllama.errors import InvalidParameter

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model under its id, or under another name that is asked for it."""

    id: str
    model: ServedModel

    @classmethod
    def named(cls, model: ServedModel, name: str) -> Self:
        """Under `name`, if that is an alias of its own; else under its id."""
        return cls(name if name in model.aliases else model.id, model)


def listed_models(models: Iterable[ServedModel]) -> list[ListedModel]:
    """Every model, its aliases behind it: Claude Code offers the names that contain `claude`, and no
    others. Patterns are no names.
    """
    return [
        ListedModel(name, model)
        for model in models
        for name in (model.id, *model.aliases)
        if name == model.id or not is_pattern(name)
    ]


def model_card(listed: ListedModel) -> dict[str, Any]:
    """`max_input_tokens` is the context, of which one token at least is the reply's."""
    model = listed.model
    created = datetime.fromtimestamp(model.created, UTC)
    return {
        "type": "model",
        "id": listed.id,
        "display_name": model.id if listed.id == model.id else f"{listed.id} ({model.id})",
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.context,
        "max_tokens": model.context,
    }


def models_page(models: Sequence[ListedModel], query: Mapping[str, str]) -> dict[str, Any]:
    """At most `limit` cards behind `after_id` or before `before_id`. Raises `InvalidParameter`."""
    limit = _limit(query.get("limit"))
    ids = [model.id for model in models]
    first, end = 0, len(ids)
    if "after_id" in query:
        first = _place(ids, query["after_id"], "after_id") + 1
    if "before_id" in query:
        end = _place(ids, query["before_id"], "before_id")
    backwards = "before_id" in query and "after_id" not in query
    page = models[max(first, end - limit) : end] if backwards else models[first : min(end, first + limit)]
    return {
        "data": [model_card(model) for model in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(page) < end - first,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LIMIT):
        raise InvalidParameter(f"limit must be an integer from 1 to {MAX_LIMIT}, got {text[:40]!r}", param="limit")
    return int(text)


def _place(ids: Sequence[str], id: str, param: str) -> int:
    if id not in ids:
        raise InvalidParameter(f"{param} is the id of a model in the list, got {id[:128]!r}", param=param)
    return ids.index(id)
