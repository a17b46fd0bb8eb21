"""Which models there are, and which of them a tenant may use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from starlette.requests import Request

from deployments.access.key_book import Access
from deployments.access.tenant import Tenant
from deployments.http.model_library import EmptyLibrary, LibraryModel, ModelLibrary
from deployments.http.model_names import ModelNames
from deployments.http.ports import ServedModel
from deployments.http.tenant_client import TenantClient, Timeouts
from erllama.errors import InvalidParameter, ModelNotFound


class ModelRegistry:
    """Fixed once built. `default` is a name of the model that answers to names which nobody has.
    Raises `InvalidParameter` for names that clash.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        default: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        library: ModelLibrary | None = None,
    ) -> None:
        self.all = tuple(models)
        self.library: ModelLibrary = library or EmptyLibrary()
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
        return TenantModels(*self._known[allowed], meant, self._timeouts, self.library)


class TenantModels:
    """The models of one tenant, for one request: others do not exist for it. Iterating gives the
    configured ones.
    """

    def __init__(
        self,
        models: dict[str, ServedModel],
        names: ModelNames,
        access: Access,
        timeouts: Timeouts,
        library: ModelLibrary,
    ) -> None:
        self._models = models
        self._names = names
        self._access = access
        self._timeouts = timeouts
        self._library = library

    def __iter__(self) -> Iterator[ServedModel]:
        return map(self._own, self._models.values())

    async def of_library(self) -> list[LibraryModel]:
        """The models of the hub, without those that a configured one of the same name hides."""
        models = await self._library.models()
        return [model for model in models if self._access.tenant.may_use(model.id) and model.id not in self._models]

    async def listed(self) -> list[ServedModel]:
        """The configured models, and those of the hub."""
        found = [self._library.find(model.id, self._access.tenant) for model in await self.of_library()]
        return [*self, *(self._own(model) for model in found if model is not None)]

    def resolve(self, name: str | None) -> ServedModel:
        """The model that a request means: a configured one, one of the hub, the default; without a name
        the default, or the only one there is. Raises `ModelNotFound` or `InvalidParameter`, and what
        the library raises.
        """
        asked = name or ""
        model_id = self._names.exact(asked)
        if model_id is None and asked:
            found = self._library_model(asked)
            if found is not None:
                return self._own(found)
        if model_id is None:
            model_id = self._names.find(asked)
        if model_id is not None:
            return self._own(self._models[model_id])
        served = ", ".join(self._models) or "none"
        if not asked:
            if len(self._models) == 1:
                return next(iter(self))
            raise InvalidParameter(f"you must provide a model parameter; served are: {served}", param="model")
        near = ", ".join(self._library.near(asked, self._access.tenant))
        also = f"; the hub has names like it: {near}" if near else ""
        raise ModelNotFound(f"The model '{asked[:200]}' does not exist; served are: {served}{also}", param="model")

    def _library_model(self, name: str) -> ServedModel | None:
        found = self._library.find(name, self._access.tenant)
        return found if found is not None and self._access.tenant.may_use(found.id) else None

    def _own(self, model: ServedModel) -> ServedModel:
        client = TenantClient(model.client, self._access, self._timeouts)
        return replace(model, client=client, prompts=model.prompts.of_tenant(self._access.tenant.salt))
