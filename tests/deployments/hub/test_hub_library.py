"""The hub as an ingress sees it, over a hub on a disk and a manager that grants at once: what all
libraries must do, the one that tests of dialects use included, and what this one does beside.
"""

from __future__ import annotations

import pytest

from deployments.access.tenant import ANONYMOUS, Tenant
from deployments.config import HubSpec
from deployments.dialects.ollama.options import NO_LIMIT
from deployments.http.errors import AdminKeyRequired
from deployments.http.model_library import EmptyLibrary, ModelInUse, ModelPhase
from deployments.http.ports import ReplyDefaults, ServedModel
from deployments.hub.defaults import defaults_of
from deployments.hub.library import HubLibrary
from deployments.hub.messages import ModelPulling
from deployments.hub.specs import spec_of
from erllama.chat.variants import override_source
from erllama.errors import DoesNotFit, EngineStopped, InvalidParameter, ModelNotFound, NotSupported
from erllama.hub.errors import SourceRefused
from erllama.hub.hub import Hub
from erllama.hub.name import ModelName
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client
from tests.support.hub_fakes import LOADED, FakeLibrary, FakeLink, events_of, manifest, names_of

pytestmark = pytest.mark.anyio

GUEST = Tenant("guest")
FETCHER = Tenant("fetcher", pull=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_random_model(path, SHAPES["tiny-llama"], file_type="F16", seed=1)
    return path


class Site:
    """A library on a disk, with its hub, its link, and the model that answers."""

    def __init__(self, folder, tiny):
        self.spec = HubSpec(dir=folder / "hub", enabled=True, defaults={"sampling": {"top_k": 9}})
        self.hub, self.link, self.model = Hub(self.spec), FakeLink(), FakeModel()
        list(self.hub.pull(str(tiny), "tiny:v1"))
        self.library = HubLibrary(self.hub, self.link, self.served, {"demo": str(tiny)})

    def served(self, model_id, manifest):
        given, prompts = defaults_of(manifest.parameters), FakePrompts(None)
        prompts.defaults = ReplyDefaults(given.sampling, None, given.stop, given.max_tokens)
        return ServedModel(model_id, self.model, prompts, 0, on_demand=True)


@pytest.fixture
def site(tmp_path, tiny):
    return Site(tmp_path, tiny)


@pytest.fixture(params=["disk", "memory"])
def library(request, site):
    return site.library if request.param == "disk" else FakeLibrary(manifest("tiny:v1"))


# --- every library ----------------------------------------------------------------------------------


async def test_a_model_is_found_listed_and_shown_by_its_name(library):
    for name in ("tiny:v1", "TINY:V1"):
        assert library.find(name, GUEST).id == "tiny:v1"
        assert (await library.show(name)).id == "tiny:v1"
    assert names_of(await library.models()) == ["tiny:v1"]
    assert (await library.models())[0].standing.phase is ModelPhase.UNLOADED
    [file] = (await library.show("tiny:v1")).manifest.files
    assert await library.has_blob(file.digest)
    assert library.is_there


NO_DIGEST = "../manifests/tiny@v1.json"  # a file of the hub


@pytest.mark.parametrize(
    "digest", ["", NO_DIGEST, "sha256:00", "sha256:" + "0" * 64, "sha256:../../x", "md5:" + "0" * 64]
)
async def test_what_is_no_blob_is_not_there(library, digest):
    assert not await library.has_blob(digest)


async def test_what_is_nowhere_is_not_found_with_near_names(library):
    assert library.find("tiny", GUEST) is None
    assert library.near("tiny", GUEST) == ["tiny:v1"]
    assert library.near("tiny", Tenant("x", models=frozenset())) == []
    for ask in (
        library.show("tiny"), library.metadata("tiny"), library.keep("tiny", 1), library.load("tiny"),
        library.unload("tiny"), library.copy("tiny", "x"), library.create("x", "tiny"), library.delete("tiny"),
    ):  # fmt: skip
        with pytest.raises(ModelNotFound, match="tiny:v1"):
            await ask


async def test_a_copy_and_a_created_model_live_by_themselves(library):
    await library.copy("tiny:v1", "me/other")
    await library.create("pirate", "tiny:v1", system="Arr.", template="{{ x }}", parameters={"seed": 1})
    await library.delete("tiny:v1")
    assert names_of(await library.models()) == ["me/other", "pirate"]
    made = (await library.show("pirate")).manifest
    assert (made.system, made.template, made.parameters) == ("Arr.", "{{ x }}", {"seed": 1})
    assert library.find("tiny:v1", GUEST) is None


async def test_who_may_not_pull_may_not(library):
    with pytest.raises(AdminKeyRequired):
        library.pull("https://127.0.0.1:1/x.gguf", None, GUEST)
    assert library.find("new", ANONYMOUS) is None


async def test_no_library_has_nothing_and_changes_nothing():
    library = EmptyLibrary()
    assert not library.is_there
    assert (library.find("x", ANONYMOUS), library.near("x", ANONYMOUS), await library.models()) == (None, [], [])
    assert not await library.has_blob("sha256:" + "0" * 64)
    for ask in (
        library.show("x"), library.metadata("x"), library.keep("x", 1), library.load("x"), library.unload("x"),
        library.copy("x", "y"), library.create("x", "y"), library.delete("x"),
    ):  # fmt: skip
        with pytest.raises(NotSupported, match=r"hub\.enabled"):
            await ask
    with pytest.raises(NotSupported):
        library.pull("x", None, ANONYMOUS)


# --- the one on a disk ------------------------------------------------------------------------------


async def test_standings_are_the_managers_and_without_one_the_list_is_told_all_the_same(site):
    site.link.standings = {"tiny:v1": LOADED}
    assert [model.standing for model in await site.library.models()] == [LOADED]
    site.link.raises = {"standings": EngineStopped("the manager is gone")}
    assert [model.standing.phase for model in await site.library.models()] == [ModelPhase.UNLOADED]


async def test_the_header_of_the_file_is_told_as_plain_values(site):
    header = await site.library.metadata("tiny:v1")
    assert header["general.architecture"] == "llama"
    assert isinstance(header["llama.block_count"], int)
    assert isinstance(header["tokenizer.ggml.tokens"][0], str)


async def test_a_wish_that_nobody_hears_costs_no_reply(site):
    site.link.raises = {"keep": EngineStopped("the manager is gone")}
    await site.library.keep("tiny:v1", 60)
    assert site.link.asked == [("keep", "tiny:v1", 60)]


async def test_a_configured_model_in_a_file_can_be_copied_and_be_a_base(site):
    await site.library.copy("demo", "a")
    await site.library.create("b", "demo", system="Arr.")
    told = {model.id: model.manifest for model in await site.library.models()}
    assert set(told) == {"tiny:v1", "a", "b"}
    assert (told["a"].files[0].digest, told["b"].system) == (told["tiny:v1"].files[0].digest, "Arr.")


async def test_a_model_in_use_is_deleted_by_force_alone(site):
    site.link.in_use = {"tiny:v1"}
    with pytest.raises(ModelInUse):
        await site.library.delete("tiny:v1")
    assert names_of(await site.library.models()) == ["tiny:v1"]
    assert not await site.library.unload("tiny:v1")
    await site.library.delete("tiny:v1", force=True)
    assert await site.library.models() == []


async def test_a_model_is_found_anew_when_its_manifest_changes(site):
    found = site.library.find("tiny:v1", GUEST)
    assert site.library.find("tiny:v1", GUEST) is found
    await site.library.create("tiny:v1", "tiny:v1", parameters={"num_predict": 3})
    assert site.library.find("tiny:v1", GUEST) is not found


async def test_who_may_pull_fetches_by_naming(site, monkeypatch):
    begun = []

    def pull(source, name, *, trusted, accept):
        begun.append((source, name, trusted))
        raise_when_read = InvalidParameter("it is no model", param="model")
        yield from ()
        raise raise_when_read

    monkeypatch.setattr(site.hub, "pull", pull)
    with pytest.raises(ModelPulling) as told:
        site.library.find("new", FETCHER)
    assert (told.value.http_status, told.value.retry_after_s) == (503, 5)
    await site.library._pulls["new"]
    with pytest.raises(InvalidParameter, match="it is no model"):  # once, to whoever asks next
        site.library.find("new", FETCHER)
    assert begun == [("new", "new:latest", False)]


async def test_a_pull_over_http_reaches_no_address_of_this_machine(site):
    for source in ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:1/x.gguf", "http://169.254.169.254/x.gguf"):
        with pytest.raises(SourceRefused):
            await events_of(site.library.pull(source, "x", ANONYMOUS))


async def test_a_model_that_has_room_nowhere_is_not_fetched(site, tiny):
    site.link.raises["check_room"] = DoesNotFit("its files have 9 GiB, and there are 8", param="model")

    def pull(source, name, *, trusted, cancel, accept):  # a file of this machine, for once
        return Hub(site.spec).pull(source, name, cancel=cancel, accept=accept)

    site.hub.pull = pull
    with pytest.raises(DoesNotFit, match="9 GiB"):
        await events_of(site.library.pull(str(tiny), "huge", ANONYMOUS))
    assert site.hub.version(ModelName.parse("huge")) is None
    assert site.link.asked[-1] == ("check_room", tiny.stat().st_size)
    del site.link.raises["check_room"]
    assert (await events_of(site.library.pull(str(tiny), "huge", ANONYMOUS)))[-1] == "success"


async def test_a_url_that_a_request_names_is_found_once_it_has_been_fetched(site, tiny):
    url = "https://example.com/models/Tiny-Other.gguf"
    with pytest.raises(ModelPulling):
        site.library.find(url, FETCHER)
    for task in list(site.library._pulls.values()):
        task.cancel()
    list(site.hub.pull(str(tiny), "tiny-other"))
    assert site.library.find(url, FETCHER).id == "tiny-other"


# --- what is loaded ---------------------------------------------------------------------------------


async def test_parameters_stand_above_the_hubs_defaults_and_each_for_itself(site):
    await site.library.create("x", "tiny:v1", parameters={"temperature": 0.25, "mirostat": 2, "num_ctx": 10**9})
    shown = (await site.library.show("x")).manifest
    spec = spec_of(site.hub, site.spec, "x", shown)
    assert (spec.sampling.temperature, spec.sampling.top_k) == (0.25, 9)
    assert spec.n_ctx == shown.details.n_ctx_train


async def test_a_template_is_never_the_path_of_a_file(site, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    site.hub.create("x", "tiny:v1", template=str(secret))
    spec = spec_of(site.hub, site.spec, "x", site.hub.show("x"))
    assert "the secret" not in override_source(spec.chat_template)


async def test_a_request_that_wants_no_limit_gets_none(site):
    """Ollama's num_predict -1, against what the model says."""
    await site.library.create("x", "tiny:v1", parameters={"num_predict": 7})
    async with http_client(app_of(library=site.library)) as client:
        for options in ({}, {"num_predict": -1}, {"num_predict": 5}):
            body = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "options": options, "stream": False}
            assert (await client.post("/api/chat", json=body)).status_code == 200
    assert [request.max_tokens for request in site.model.requests] == [7, NO_LIMIT, 5]
