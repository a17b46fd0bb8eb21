"""The models of one ingress, by id and alias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployments.ports import ServedModel
from erllama.errors import InvalidParameter, ModelNotFound


class ModelRegistry:
    """Fixed once built. An id wins over an alias of another model; two models may not share a name otherwise."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in models.values():
            for alias in model.aliases:
                if self._by_name.setdefault(alias, model) is not model:
                    raise InvalidParameter(f"alias {alias!r} names two models: {self._by_name[alias].id} and {model.id}", param="aliases")
        self._by_name.update(self._models)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def resolve(self, name: str | None) -> ServedModel:
        """The model that a request means; without a name the only one there is. Raises `ModelNotFound` or `InvalidParameter`."""
        if name is None or name == "":
            if len(self._models) == 1:
                return next(iter(self))
            raise InvalidParameter(f"you must provide a model parameter; served are: {', '.join(self._models) or 'none'}", param="model")
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFound(f"The model '{name[:200]}' does not exist; served are: {', '.join(self._models) or 'none'}", param="model")
        return model
