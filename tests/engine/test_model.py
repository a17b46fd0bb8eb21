"""`erllama.Model` on the stub backend."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gated_stub import WAIT_S, GatedStub

from erllama.errors import EngineStopped, InvalidParameter, ModelLoadError
from erllama.model import Model
from erllama.request import Done, Event, FinishReason, GenerationRequest, Tokens
from erllama.stats import ModelStatus


@pytest.fixture
def stub() -> GatedStub:
    return GatedStub(256, 2)


@pytest.fixture
def model(tmp_path: Path, stub: GatedStub) -> Iterator[Model]:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not read by the stub")
    with Model(path=str(path), n_ctx=256, n_parallel=2, fingerprint="trusted", make_backend=lambda _: stub) as model:
        yield model
        stub.release()
    assert stub.closed


def test_complete_takes_text_or_token_ids(model: Model):
    assert model.complete("hello", seed=1, response_tokens=5).tokens == model.complete(list(b"hello"), seed=1, response_tokens=5).tokens


def test_streamed_text_is_the_text_of_the_whole_reply(model: Model):
    streamed = "".join(e.text for e in model.infer(model.tokenize("hello"), seed=1, response_tokens=20) if isinstance(e, Tokens))
    assert streamed == model.complete("hello", seed=1, response_tokens=20).text


def test_params_may_come_as_a_mapping_too(model: Model):
    assert len(model.infer([1, 2], {"response_tokens": 3}).result().tokens) == 3


def test_leaving_a_stream_cancels_its_request(model: Model, stub: GatedStub):
    stub.hold(n_free=1)
    with model.infer([1, 2]) as stream:
        next(iter(stream))
    stub.release()
    last = list(stream)[-1]
    assert isinstance(last, Done)
    assert last.stats.finish_reason is FinishReason.CANCELLED


def test_closing_a_stream_that_has_ended_is_fine(model: Model):
    stream = model.infer([1, 2], response_tokens=1)
    assert len(list(stream)) == 2
    stream.close()
    assert list(stream) == []


def test_the_result_of_a_stream_that_was_read_is_an_error(model: Model):
    stream = model.infer([1, 2], response_tokens=1)
    stream.result()
    with pytest.raises(InvalidParameter, match="read already"):
        stream.result()


def test_the_error_of_a_request_is_raised_by_its_result(model: Model):
    with pytest.raises(InvalidParameter, match="grammar"):
        model.infer([1, 2], grammar="nonsense").result()


def test_a_second_request_of_an_id_is_refused_and_the_first_keeps_its_stream(model: Model, stub: GatedStub):
    stub.hold()
    first = model.submit(GenerationRequest("same", (1, 2), max_tokens=4))
    with pytest.raises(InvalidParameter, match="in flight"):
        model.submit(GenerationRequest("same", (1, 2)))
    stub.release()
    assert len(first.result().tokens) == 4


def test_posted_requests_go_to_the_sink_and_streams_do_not(tmp_path: Path, stub: GatedStub):
    posted: list[tuple[str, Event]] = []
    ended = threading.Event()

    def sink(events: list[tuple[str, Event]]) -> None:
        posted.extend(events)
        if any(isinstance(event, Done) for _, event in events):
            ended.set()

    (tmp_path / "m.gguf").write_bytes(b"")
    with Model(path=str(tmp_path / "m.gguf"), fingerprint="trusted", sink=sink, make_backend=lambda _: stub) as model:
        model.infer([1], response_tokens=2).result()
        model.post(GenerationRequest("posted", (1, 2), max_tokens=2))
        assert ended.wait(WAIT_S)
    assert {name for name, _ in posted} == {"posted"}


def test_the_queue_is_told(model: Model, stub: GatedStub):
    assert (model.queue_depth, model.pending_len, model.status()) == (0, 0, ModelStatus.IDLE)
    stub.hold()
    streams = [model.infer([1, 2], response_tokens=1) for _ in range(5)]
    stub.wait_until_held()
    assert model.pending_len == 5
    stub.release()
    for stream in streams:
        stream.result()
    assert (model.queue_depth, model.pending_len, model.status()) == (0, 0, ModelStatus.IDLE)
    assert repr(model) == "<Model default idle running=0/2 queued=0>"


def test_an_adapter_is_listed_as_soon_as_loading_it_returns(model: Model, tmp_path: Path):
    (tmp_path / "lora").write_text("lora")
    handle = model.load_adapter(str(tmp_path / "lora"))
    assert [a.handle for a in model.list_adapters()] == [handle]


def test_shutdown_is_idempotent_and_a_stopped_model_refuses(model: Model):
    model.shutdown()
    model.stop()
    with pytest.raises(EngineStopped):
        model.infer([1, 2])
    with pytest.raises(EngineStopped):
        model.embed([1, 2])


def test_a_model_whose_file_cannot_be_digested_is_freed_again(tmp_path: Path, stub: GatedStub):
    with pytest.raises(ModelLoadError):
        Model(path=str(tmp_path / "nowhere.gguf"), fingerprint="trusted", make_backend=lambda _: stub)
    assert stub.closed


@pytest.mark.parametrize("setting", ["n_context", "make_back_end"])
def test_an_unknown_setting_is_refused_and_named(setting: str):
    with pytest.raises(InvalidParameter, match=f"unknown setting '{setting}'"):
        Model(**{setting: 1})
