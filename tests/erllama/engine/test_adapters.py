"""LoRA adapters: handles are digests, sequences keep their snapshot, and nothing is freed while it
is used.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama.engine.adapters import AdapterRegistry, read_adapter
from erllama.errors import InvalidParameter, ModelLoadError
from erllama.stats import AdapterSet
from erllama.testing.stub_backend import StubBackend


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.backend = StubBackend()
        self.live: list[AdapterSet] = []
        self.registry = AdapterRegistry(self.backend, lambda: self.live)
        self.paths = {}
        for name in ("one", "two", "bad", "wrong"):
            self.paths[name] = str(folder / f"{name}.gguf")
            Path(self.paths[name]).write_text(name)

    def load(self, name: str) -> str:
        return self.load_path(self.paths[name])

    def load_path(self, path: str) -> str:
        return self.registry.load(read_adapter(path, self.backend))


@pytest.fixture
def lora(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    assert {use.handle for adapters in fixture.live for use in adapters} <= set(fixture.backend.adapters)


def test_a_handle_is_made_of_the_files_digest(lora: Fixture):
    assert lora.load("one") == f"lora-{hashlib.sha256(b'one').hexdigest()[:16]}"


def test_a_loaded_adapter_is_listed_at_scale_one_in_order_of_loading(lora: Fixture):
    handles = [lora.load("two"), lora.load("one")]
    assert [(a.handle, a.scale) for a in lora.registry.list()] == [(h, 1.0) for h in handles]
    assert lora.registry.list()[0].sha256 == hashlib.sha256(b"two").hexdigest()


def test_loading_again_gives_the_same_handle_loads_nothing_and_resets_the_scale(lora: Fixture):
    handle = lora.load("one")
    lora.registry.set_scale(handle, 0.25)
    loaded = dict(lora.backend.adapters)
    lora.backend.load_adapter = None  # type: ignore[assignment]  # a second load would raise
    assert lora.load("one") == handle
    assert lora.backend.adapters == loaded
    assert lora.registry.list()[0].scale == 1.0


def test_a_missing_file_is_refused_with_its_path(lora: Fixture, tmp_path: Path):
    with pytest.raises(ModelLoadError, match=r"nowhere.gguf: No such file"):
        lora.load_path(str(tmp_path / "nowhere.gguf"))


def test_an_adapter_that_the_backend_refuses_is_not_listed(lora: Fixture):
    with pytest.raises(ModelLoadError, match="refuses"):
        lora.load("bad")
    assert lora.registry.list() == ()
    assert lora.registry.snapshot() == ()


def test_an_adapter_of_another_model_is_refused_before_the_engine_hears_of_it(lora: Fixture):
    with pytest.raises(ModelLoadError, match=r"wrong\.gguf: is no adapter"):
        read_adapter(lora.paths["wrong"], lora.backend)


def test_a_file_that_changes_between_its_check_and_its_load_is_refused(lora: Fixture):
    checked = read_adapter(lora.paths["one"], lora.backend)
    Path(lora.paths["one"]).write_text("another")
    with pytest.raises(ModelLoadError, match=r"one\.gguf changed while it was read"):
        lora.registry.load(checked)
    assert lora.registry.list() == ()
    assert lora.backend.adapters == {}


def test_a_snapshot_does_not_change_when_the_scale_does(lora: Fixture):
    handle = lora.load("one")
    before = lora.registry.snapshot()
    lora.registry.set_scale(handle, 2)
    assert [use.scale for use in before] == [1.0]
    assert [use.scale for use in lora.registry.snapshot()] == [2.0]


def test_an_adapter_at_scale_zero_is_left_out_of_snapshots(lora: Fixture):
    lora.registry.set_scale(lora.load("one"), 0)
    assert lora.registry.snapshot() == ()
    assert len(lora.registry.list()) == 1


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 100.5, -100.5, "1", None, True])
def test_a_wild_scale_is_refused_and_nothing_changes(lora: Fixture, scale: object):
    handle = lora.load("one")
    with pytest.raises(InvalidParameter) as caught:
        lora.registry.set_scale(handle, scale)  # type: ignore[arg-type]
    assert caught.value.param == "scale"
    assert lora.registry.list()[0].scale == 1.0


def test_scaling_an_unknown_handle_is_refused_and_names_it(lora: Fixture):
    with pytest.raises(InvalidParameter, match="lora-x"):
        lora.registry.set_scale("lora-x", 1.0)


def test_unloading_an_unused_adapter_frees_it_at_once(lora: Fixture):
    lora.registry.unload(lora.load("one"))
    assert lora.registry.list() == ()
    assert lora.backend.adapters == {}


def test_unloading_is_idempotent(lora: Fixture):
    handle = lora.load("one")
    lora.registry.unload(handle)
    lora.registry.unload(handle)
    lora.registry.unload("never loaded")
    assert lora.backend.adapters == {}


def test_an_adapter_in_use_is_hidden_at_once_and_freed_when_its_last_user_is_gone(lora: Fixture):
    handle = lora.load("one")
    lora.live = [lora.registry.snapshot(), lora.registry.snapshot()]
    lora.registry.unload(handle)
    assert lora.registry.snapshot() == ()
    lora.live.pop()
    lora.registry.collect()
    assert handle in lora.backend.adapters
    lora.live.pop()
    lora.registry.collect()
    assert handle not in lora.backend.adapters


def test_an_unloaded_adapter_that_is_still_used_comes_back_without_a_second_load(lora: Fixture):
    handle = lora.load("one")
    lora.live = [lora.registry.snapshot()]
    lora.registry.unload(handle)
    lora.backend.load_adapter = None  # type: ignore[assignment]  # a second load would raise
    assert lora.load("one") == handle
    lora.live.clear()
    lora.registry.collect()
    assert handle in lora.backend.adapters


def test_a_freed_adapter_can_be_loaded_again(lora: Fixture):
    lora.registry.unload(lora.load("one"))
    assert lora.load("one") in lora.backend.adapters


def test_equal_files_are_one_adapter(lora: Fixture, tmp_path: Path):
    copy = tmp_path / "copy.gguf"
    copy.write_text("one")
    assert lora.load_path(str(copy)) == lora.load("one")
    assert len(lora.registry.list()) == 1
