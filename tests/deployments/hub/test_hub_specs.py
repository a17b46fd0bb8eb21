"""From a model of the hub to what is loaded: whose setting counts, what shrinks, and what its process
depends on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.config import HubSpec
from deployments.hub.defaults import defaults_of
from deployments.hub.specs import PROCESS_BYTES, loadable_of, spec_of
from erllama.demo import demo_model_path
from erllama.footprint.fit import DoesNotFit
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub

pytestmark = pytest.mark.model  # llama.cpp tells what a context takes
ROOM = 8 << 30


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub(HubConfig(dir=tmp_path_factory.mktemp("hub")))
    list(hub.pull(str(demo_model_path()), "tiny:a"))
    parameters = {"num_ctx": 1024, "temperature": 0.5, "stop": ["END"], "num_predict": 9, "mirostat": 0}
    hub.create("own", "tiny:a", template="{{ messages }}", system="Be kind.", parameters=parameters)
    return hub


def spec(hub: Hub, name: str = "own", **settings: object):
    return spec_of(hub, HubSpec(**settings), name, hub.show(name))  # type: ignore[arg-type]


def test_a_manifests_own_settings_stand_above_the_defaults_and_below_the_models_own(hub):
    assert spec(hub).n_ctx == 1024
    assert spec(hub, defaults={"n_ctx": 512}).n_ctx == 1024
    assert spec(hub, models={"OWN:latest": {"n_ctx": 768}}).n_ctx == 768
    assert spec(hub, "tiny:a", defaults={"n_ctx": 512}).n_ctx == 512
    own = spec(hub)
    assert (own.sampling.temperature, own.chat_template, own.id) == (0.5, "{{ messages }}", "own")
    assert Path(own.path).is_file()
    ends = defaults_of(hub.show("own").parameters)
    assert (ends.stop, ends.max_tokens) == (("END",), 9)


def test_a_model_is_not_given_more_context_than_it_was_trained_with(hub):
    assert spec(hub, "tiny:a").n_ctx == min(4096, hub.show("tiny:a").details.n_ctx_train)


def test_parameters_that_cannot_be_done_are_passed_over_and_take_no_other_with_them(hub):
    hub.create("odd", "tiny:a", parameters={"mirostat": 2, "temperature": 0.5, "num_ctx": "large"})
    assert (spec(hub, "odd").sampling.temperature, spec(hub, "odd").n_ctx) == (0.5, spec(hub, "tiny:a").n_ctx)


def test_what_does_not_fit_shrinks_to_its_least_and_then_is_refused_with_the_numbers(hub):
    settings = HubSpec(defaults={"n_ctx": 65536, "n_parallel": 8}, min_ctx=2048)
    whole = loadable_of(hub, settings, "tiny:a", 64 << 30)
    assert (whole.spec.n_ctx, whole.spec.n_parallel) == (65536, 8)
    fewer = loadable_of(hub, settings, "tiny:a", whole.need_bytes - 1)
    assert (fewer.spec.n_ctx, fewer.spec.n_parallel) == (65536, 7)
    shorter = loadable_of(hub, settings, "tiny:a", PROCESS_BYTES + (40 << 20))
    assert shorter.spec.n_parallel == 1
    assert 2048 < shorter.spec.n_ctx < 65536
    assert shorter.need_bytes <= PROCESS_BYTES + (40 << 20)
    with pytest.raises(DoesNotFit, match=r"tiny:a needs .* GiB for 1 x 2048 tokens"):
        loadable_of(hub, settings, "tiny:a", PROCESS_BYTES + (4 << 20))


def test_what_it_shrank_to_is_not_what_its_process_is_known_by(hub):
    settings = HubSpec(defaults={"n_ctx": 65536, "n_parallel": 8})
    whole = loadable_of(hub, settings, "tiny:a", 64 << 30)
    assert loadable_of(hub, settings, "tiny:a", whole.need_bytes - 1).build == whole.build
    assert loadable_of(hub, HubSpec(), "tiny:a", ROOM).build != whole.build
    assert loadable_of(hub, settings, "tiny:a", 64 << 30, "another store").build != whole.build


def test_layers_go_to_a_gpu_as_far_as_they_fit(hub):
    settings = HubSpec(defaults={"num_gpus": 0.5})
    gpu = loadable_of(hub, settings, "tiny:a", ROOM, gpu_bytes=64 << 30)
    assert gpu.gpu_bytes > 3 << 20
    assert isinstance(gpu.spec.n_gpu_layers, int)
    half = loadable_of(hub, settings, "tiny:a", ROOM, gpu_bytes=gpu.gpu_bytes)  # of which it may have half
    assert 0 < half.spec.n_gpu_layers < gpu.spec.n_gpu_layers
    assert half.gpu_bytes <= gpu.gpu_bytes / 2
    unknown = loadable_of(hub, settings, "tiny:a", ROOM)
    assert unknown.spec.n_gpu_layers == "auto"
