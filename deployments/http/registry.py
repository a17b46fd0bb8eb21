"""Which models there are, and which of them a tenant may use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from starlette.requests import Request

from deployments.access.key_book import Access
from deployments.access.tenant import Tenant
from deployments.http.model_names import ModelNames
from deployments.http.ports import ServedModel
from deployments.http.tenant_client import TenantClient, Timeouts
from erllama.errors import InvalidParameter, ModelNotFound


class ModelRegistry:
    """Fixed once built. `default` is a name of the model that answers to names which nobody has.
    Raises `InvalidParameter` for names that clash.
    """

    def __init__(
        self, models: Iterable[ServedModel], default: str | None = None, *, timeouts: Timeouts | None = None
    ) -> None:
        self.all = tuple(models)
        self._default = default
        self._timeouts = timeouts or Timeouts()
        try:
            ModelNames({model.id: model.aliases for model in self.all}, default)
        except ValueError as error:
            raise InvalidParameter(str(error), param="aliases") from None
        self._known: dict[frozenset[str] | None, tuple[dict[str, ServedModel], ModelNames]] = {}

    def of(self, request: Request, tenant: Tenant | None = None) -> TenantModels:
        """The models that the tenant of a request may use, as that request meets them, or as those of
        another `tenant` do, for whom an admin works.
        """
        access: Access = request.scope["state"]["access"]
        allowed = access.tenant.models
        if allowed not in self._known:  # as many as there are lists in the configuration of keys
            models = {model.id: model for model in self.all if access.tenant.may_use(model.id)}
            aliases = {model.id: model.aliases for model in models.values()}
            has_default = any(self._default in (id, *names) for id, names in aliases.items())
            self._known[allowed] = models, ModelNames(aliases, self._default if has_default else None)
        meant = access if tenant is None else replace(access, tenant=tenant)
        return TenantModels(*self._known[allowed], meant, self._timeouts)


class TenantModels:
    """The models of one tenant, for one request: others do not exist for it."""

    def __init__(self, models: dict[str, ServedModel], names: ModelNames, access: Access, timeouts: Timeouts) -> None:
        self._models = models
        self._names = names
        self._access = access
        self._timeouts = timeouts

    def __iter__(self) -> Iterator[ServedModel]:
        return map(self._own, self._models.values())

    def resolve(self, name: str | None) -> ServedModel:
        """The model that a request means; without a name the default, or the only one there is.
        Raises `ModelNotFound` or `InvalidParameter`.
        """
        model_id = self._names.find(name or "")
        if model_id is not None:
            return self._own(self._models[model_id])
        served = ", ".join(self._models) or "none"
        if name is None or name == "":
            if len(self._models) == 1:
                return next(iter(self))
            raise InvalidParameter(f"you must provide a model parameter; served are: {served}", param="model")
        raise ModelNotFound(f"The model '{name[:200]}' does not exist; served are: {served}", param="model")

    def _own(self, model: ServedModel) -> ServedModel:
        client = TenantClient(model.client, self._access, self._timeouts)
        return replace(model, client=client, prompts=model.prompts.of_tenant(self._access.tenant.salt))
