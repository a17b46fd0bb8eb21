"""A hub in memory, and a link to a manager that there is not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from deployments.http.errors import AdminKeyRequired
from deployments.http.model_library import LibraryModel, ModelInUse, ModelPhase, ModelStanding
from deployments.http.ports import ServedModel
from deployments.hub.messages import Granted, ModelPulling
from erllama.errors import ErllamaError, ModelNotFound
from erllama.hub.events import SUCCESS, PullEvent
from erllama.hub.manifest import Details, Manifest, ManifestFile
from erllama.hub.name import ModelName, near_names
from erllama.hub.sources.remote import Role
from tests.support.http_fakes import FakeModel, FakePrompts

DIGEST = "sha256:" + "ab" * 32
CREATED = datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC)
LOADED = ModelStanding(
    phase=ModelPhase.LOADED,
    node="n1",
    memory_bytes=3_000_000,
    gpu_bytes=1_000_000,
    n_ctx=2048,
    n_parallel=2,
    n_running=1,
    n_waiting=4,
    expires_at=CREATED.timestamp() + 300,
)


def manifest(name: str = "tiny:v1", **changes: Any) -> Manifest:
    file = ManifestFile(role=Role.MODEL, digest=DIGEST, size=1234, name="tiny.gguf")
    details = Details(architecture="qwen2", file_type="Q4_K_M", n_params=494_032_768, n_ctx_train=32768)
    known = {"source": "hf.co/me/tiny:Q4_K_M", "created": CREATED, "files": (file,), "details": details, **changes}
    return Manifest(name=str(ModelName.parse(name)), **known)


class FakeLibrary:
    """The `ModelLibrary` of `manifests`, whose models answer with `model`.

    `pulled` are the events of every pull, with what it raises in their place; `log` has what was asked
    for. Models of `in_use` are neither unloaded nor deleted.
    """

    is_there = True

    def __init__(
        self, *manifests: Manifest, model: FakeModel | None = None, prompts: FakePrompts | None = None
    ) -> None:
        self.manifests = {ModelName.parse(one.name).short: one for one in manifests}
        self.standings: dict[str, ModelStanding] = {}
        self.model = model or FakeModel()
        self.prompts = prompts or FakePrompts(None)
        self.pulled: list[PullEvent | ErllamaError] = [PullEvent("pulling manifest"), PullEvent(SUCCESS)]
        self.in_use: set[str] = set()
        self.broken: dict[str, ErllamaError] = {}
        self.log: list[tuple[Any, ...]] = []
        self.n_pulls_closed = 0
        self.header: dict[str, Any] = {}

    def find(self, name, tenant):
        parsed = ModelName.parse(name)
        if parsed.short not in self.manifests:
            if tenant.pull:
                raise ModelPulling(f"The model {name!r} is being fetched", param="model", retry_after_s=5)
            return None
        if parsed.short in self.broken:
            raise self.broken[parsed.short]
        created = int(self.manifests[parsed.short].created.timestamp())
        return ServedModel(parsed.short, self.model, self.prompts, created, on_demand=True, planned_ctx=8192)

    def near(self, name, tenant):
        return [known for known in near_names(name, self.manifests) if tenant.may_use(known)]

    async def models(self):
        return [self._told(name) for name in sorted(self.manifests)]

    async def show(self, name):
        return self._told(self._known(name))

    async def metadata(self, name):
        self._known(name)
        return self.header

    async def has_blob(self, digest):
        return digest in {file.digest for one in self.manifests.values() for file in one.files}

    async def keep(self, name, seconds):
        self.log.append(("keep", self._known(name), seconds))

    async def load(self, name):
        self.log.append(("load", self._known(name)))

    async def unload(self, name):
        known = self._known(name)
        self.log.append(("unload", known))
        return known not in self.in_use

    def pull(self, source, name, tenant) -> AsyncGenerator[PullEvent, None]:
        if not (tenant.admin or tenant.pull):
            raise AdminKeyRequired("This API key may not pull models: it needs pull: true or admin: true.")
        self.log.append(("pull", source, name))
        return self._events()

    async def copy(self, source, target):
        known = self._known(source)
        self._keep(self.manifests[known], target)
        self.log.append(("copy", source, target))

    async def create(self, name, base, *, template=None, system=None, parameters: Mapping[str, Any] | None = None):
        old = self.manifests[self._known(base)]
        given = {"template": template, "system": system}
        changes = {key: value for key, value in given.items() if value is not None}
        merged = {key: value for key, value in {**old.parameters, **(parameters or {})}.items() if value is not None}
        self._keep(old.model_copy(update={**changes, "parameters": merged}), name)
        self.log.append(("create", name, base))

    async def delete(self, name, *, force=False):
        known = self._known(name)
        if known in self.in_use and not force:
            raise ModelInUse(f"{known} is in use: requests for it run or wait", param="model")
        del self.manifests[known]
        self.log.append(("delete", known, force))

    async def _events(self):
        try:
            for event in self.pulled:
                if isinstance(event, ErllamaError):
                    raise event
                yield event
        finally:
            self.n_pulls_closed += 1

    def _keep(self, old: Manifest, name: str) -> None:
        parsed = ModelName.parse(name)
        self.manifests[parsed.short] = old.model_copy(update={"name": str(parsed)})

    def _told(self, name: str) -> LibraryModel:
        return LibraryModel(name, self.manifests[name], self.standings.get(name, ModelStanding()))

    def _known(self, name: str) -> str:
        short = ModelName.parse(name).short
        if short not in self.manifests:
            near = near_names(name, self.manifests)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ModelNotFound(f"model {short!r} is not in the hub{hint}", param="model")
        return short


@dataclass
class FakeLink:
    """A `HubLink` whose manager grants at once. `raises` is raised in place of its answers by method.
    With `moves` a model is another application each time.
    """

    standings: dict[str, ModelStanding] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    raises: dict[str, ErllamaError] = field(default_factory=dict)
    n_admitted: int = 0
    n_released: int = 0
    moves: bool = False

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((method, *args))
        if method in self.raises:
            raise self.raises[method]
        if method == "standings":
            return dict(self.standings)
        if method == "unload":
            return args[0] not in self.in_use
        if method == "forget" and args[0] in self.in_use and not kwargs["force"]:
            raise ModelInUse(f"{args[0]} is in use: requests for it run or wait", param="model")
        return None

    @asynccontextmanager
    async def admitted(self, model_id: str, digest: str) -> Any:
        self.n_admitted += 1
        standing = replace(self.standings.get(model_id, ModelStanding()), phase=ModelPhase.LOADED)
        self.standings[model_id] = standing
        try:
            yield Granted(f"app-{model_id}-{self.n_admitted if self.moves else 1}", model_id)
        finally:
            self.n_released += 1


async def events_of(pull: AsyncGenerator[PullEvent, None]) -> list[str]:
    return [event.status async for event in pull]


def names_of(models: Iterable[LibraryModel]) -> list[str]:
    return [model.id for model in models]
