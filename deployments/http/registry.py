"""Which models there are, and which of them a tenant may use."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from starlette.requests import Request

from deployments.access.key_book import Access
from deployments.access.tenant import Tenant
from deployments.http.model_library import EmptyLibrary, LibraryModel, ModelLibrary
from deployments.http.model_names import ModelNames
from deployments.http.ports import ServedModel
from deployments.http.tenant_client import TenantClient, Timeouts
from erllama.errors import ErllamaError, InvalidParameter, ModelNotFound

log = logging.getLogger(__name__)


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

    async def listed(self, of_library: Iterable[LibraryModel] | None = None) -> list[ServedModel]:
        """The configured models, and those `of_library`, which has been asked before or is now. One that
        cannot be served is left out.
        """
        models = await self.of_library() if of_library is None else of_library
        return [*self, *(self._own(found) for model in models if (found := self._servable(model.id)) is not None)]

    def named(self, name: str) -> ServedModel:
        """The model that has this name, configured or of the hub: neither a pattern nor the default stands
        for it. Raises as `resolve` does.
        """
        model_id = self._names.exact(name)
        found = self._library_model(name, fetch=False) if model_id is None else self._models[model_id]
        if found is None:
            raise self._not_found(name)
        return self._own(found)

    def resolve(self, name: str | None, *, fetch: bool = True) -> ServedModel:
        """The model that a request means: a configured one, one of the hub, the default; without a name
        the default, or the only one there is. Without `fetch` a name that is nowhere is not pulled,
        whatever the tenant may do. Raises `ModelNotFound` or `InvalidParameter`, and what the library
        raises.
        """
        asked = name or ""
        model_id = self._names.exact(asked)
        if model_id is None and asked:
            found = self._library_model(asked, fetch=fetch)
            if found is not None:
                return self._own(found)
        if model_id is None:
            model_id = self._names.find(asked)
        if model_id is not None:
            return self._own(self._models[model_id])
        if not asked:
            if len(self._models) == 1:
                return next(iter(self))
            raise InvalidParameter(
                f"you must provide a model parameter; served are: {', '.join(self._models) or 'none'}", param="model"
            )
        raise self._not_found(asked)

    def near(self, name: str) -> list[str]:
        """Names of the hub that somebody who wrote `name` may have meant."""
        return self._library.near(name, self._access.tenant)

    def _not_found(self, name: str) -> ModelNotFound:
        near = ", ".join(self.near(name))
        also = f"; the hub has names like it: {near}" if near else ""
        served = ", ".join(self._models) or "none"
        return ModelNotFound(f"The model '{name[:200]}' does not exist; served are: {served}{also}", param="model")

    def _library_model(self, name: str, *, fetch: bool) -> ServedModel | None:
        tenant = self._access.tenant
        found = self._library.find(name, tenant if fetch else replace(tenant, pull=False))
        return found if found is not None and tenant.may_use(found.id) else None

    def _servable(self, model_id: str) -> ServedModel | None:
        try:
            return self._library_model(model_id, fetch=False)
        except ErllamaError as error:  # its files are damaged, or its parameters impossible
            log.warning("event=hub_model_left_out model=%s error=%s", model_id, error.message)
            return None

    def _own(self, model: ServedModel) -> ServedModel:
        client = TenantClient(model.client, self._access, self._timeouts)
        return replace(model, client=client, prompts=model.prompts.of_tenant(self._access.tenant.salt))
