"""The real engine in process, on the trained demo model and on tiny random ones."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erllama import Model
from erllama.errors import ContextOverflow, EngineStopped, InvalidParameter, ModelLoadError, NotSupported
from erllama.events import Done, FinishReason, Progress, Tokens
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.request import build_request
from erllama.stats import ModelStatus
from erllama.testing.random_gguf import write_random_encoder, write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_random_model(folder / "tiny.gguf", SHAPES["tiny-llama"], vocab=None, file_type="F16", seed=1)
    write_random_encoder(folder / "encoder.gguf", seed=1)
    write_random_lora(folder / "a.gguf", folder / "tiny.gguf", rank=4, seed=1, scale=1.0)
    write_random_lora(folder / "b.gguf", folder / "tiny.gguf", rank=4, seed=2, scale=1.0)
    return folder


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with Model(path="demo", n_ctx=1024, n_parallel=8, n_threads=1) as model:
        yield model


@pytest.fixture
def tiny(folder: Path) -> Iterator[Model]:
    with Model(path=str(folder / "tiny.gguf"), n_ctx=256, n_parallel=4, n_threads=1) as model:
        yield model


def ask(model: Model, question: str, **params):
    ids = model.apply_chat_template([{"role": "user", "content": question}])
    return model.complete(ids, **{"response_tokens": 64, "temperature": 0.0, **params})


def test_the_demo_model_greets_and_stops_by_itself(demo):
    reply = ask(demo, "Hello!")
    assert "help" in reply.text.lower()
    assert reply.stats.finish_reason is FinishReason.STOP
    assert reply.stats.completion_tokens == len(reply.tokens)


def test_model_info_and_status_tell_what_it_is(demo):
    info = demo.model_info()
    assert (info.architecture, info.quant_type, info.context_size) == ("llama", "Q8_0", 1024)
    assert (info.generates, info.embeds, info.has_chat_template) == (True, True, True)
    assert 8 < info.quant_bits < 9.5
    assert demo.status() is ModelStatus.IDLE
    assert "idle" in repr(demo)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replies_do_not_depend_on_neighbours_nor_on_the_order_of_arrival(demo, temperature):
    rng = random.Random(3)
    prompts = [[rng.randrange(1000) for _ in range(20 + 15 * i)] for i in range(8)]
    params = [
        {"response_tokens": 20 + 8 * i, "temperature": temperature, "seed": i, "ignore_eos": True} for i in range(8)
    ]
    alone = [demo.complete(prompt, **param).tokens for prompt, param in zip(prompts, params, strict=True)]
    for _ in range(3):
        order = rng.sample(range(8), 8)
        streams = {i: demo.infer(prompts[i], params[i]) for i in order}
        assert [streams[i].result().tokens for i in range(8)] == alone


def test_deterministic_mode_gives_the_same_replies(demo):
    with Model(path="demo", n_ctx=1024, n_parallel=4, n_threads=1, deterministic=True) as solo:
        streams = [
            solo.infer(solo.tokenize(text), response_tokens=16, temperature=0) for text in ("One", "Two", "Three")
        ]
        replies = [stream.result().tokens for stream in streams]
    assert replies == [
        demo.complete(text, response_tokens=16, temperature=0).tokens for text in ("One", "Two", "Three")
    ]


def test_a_cancelled_stream_ends_with_done_cancelled_and_frees_its_sequence(demo):
    with demo.infer(demo.tokenize("Once upon a time"), ignore_eos=True) as stream:
        events = iter(stream)
        assert isinstance(next(events), Tokens)
        demo.cancel(stream.ref)
        demo.cancel(stream.ref)
        *_, last = events
    assert isinstance(last, Done)
    assert last.stats.cancelled
    assert demo.stats().n_free_seq_ids == 8


def test_text_of_the_stream_joins_to_the_reply_and_logprobs_cover_every_token(demo):
    reply = ask(demo, "Tell me a short story.", logprobs=2)
    ids = demo.apply_chat_template([{"role": "user", "content": "Tell me a short story."}])
    events = list(demo.infer(ids, response_tokens=64, temperature=0.0))
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == reply.text
    assert len(reply.logprobs) == len(reply.tokens)
    assert all(entry.top[0][0] == entry.token for entry in reply.logprobs)
    assert all(-20 < entry.logprob <= 0 for entry in reply.logprobs)


def test_tokenising_is_safe_beside_inference(demo):
    stop = threading.Event()
    failures = []

    def tokenise() -> None:
        while not stop.is_set():
            text = "The code of the blue box is 1234."
            if demo.detokenize(demo.tokenize(text)) != text:
                failures.append(text)

    threads = [threading.Thread(target=tokenise) for _ in range(2)]
    for thread in threads:
        thread.start()
    expected = demo.complete("Once upon a time", response_tokens=48, temperature=0).tokens
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert demo.complete("Once upon a time", response_tokens=48, temperature=0).tokens == expected


def test_max_tokens_zero_only_prefills(demo):
    reply = demo.complete("Once upon a time", response_tokens=0)
    assert (reply.text, reply.stats.completion_tokens, reply.stats.finish_reason) == ("", 0, FinishReason.LENGTH)


def test_generation_ends_with_the_context(tiny):
    reply = tiny.complete([5] * 250, ignore_eos=True)
    assert reply.stats.completion_tokens == 6
    assert reply.stats.finish_reason is FinishReason.LENGTH


def test_a_prompt_beyond_the_context_names_both_numbers(tiny):
    with pytest.raises(ContextOverflow, match=r"257.*256"):
        tiny.complete([5] * 257)


def test_a_grammar_is_followed_to_its_end(demo):
    assert ask(demo, "Is it good?", grammar='root ::= ("yes" | "no") "!"').text in ("yes!", "no!")
    assert ask(demo, "Is it good?", grammar='root ::= ("yes" | "no") "!"', temperature=1.5, seed=4).text in (
        "yes!",
        "no!",
    )


def test_an_ambiguous_grammar_is_followed(tiny):
    (x,) = tiny.tokenize("x", add_special=False)
    gbnf = 'root ::= s\ns ::= "x" s "1" | "x" s "2" | "y"'
    reply = tiny.complete("Hello", response_tokens=60, grammar=gbnf, logit_bias={x: 100}, temperature=0)
    assert reply.text == "x" * 60


def test_a_grammar_that_gets_too_costly_ends_its_request_and_not_the_engine(tiny):
    (a,) = tiny.tokenize("a", add_special=False)
    costly = Constraint(ConstraintKind.REGEX, "(((a{0,50}|b){0,50}|c){0,50}|d){0,50}", "response_format")
    request = build_request(
        "costly", tiny.tokenize("Hello"), {"response_tokens": 100, "grammar": costly, "logit_bias": {a: 100}}
    )
    with pytest.raises(InvalidParameter) as caught:
        tiny.submit(request).result()
    assert caught.value.param == "response_format"
    assert tiny.complete("Hello", response_tokens=2).stats.completion_tokens <= 2


def test_adapters_are_kept_by_requests_in_flight_and_never_share_a_batch(tiny, folder):
    params = {"response_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    prompt = [5, 6, 7]
    plain = tiny.complete(prompt, **params).tokens
    a = tiny.load_adapter(str(folder / "a.gguf"))
    with_a = tiny.complete(prompt, **params).tokens
    assert with_a != plain

    running = tiny.infer(prompt, params)  # keeps the set {a}
    tiny.unload_adapter(a)
    tiny.unload_adapter(a)
    b = tiny.load_adapter(str(folder / "b.gguf"))
    beside = tiny.infer(prompt, params)  # runs with {b} at the same time
    assert running.result().tokens == with_a
    with_b = beside.result().tokens
    assert with_b not in (plain, with_a)

    tiny.set_adapter_scale(b, 0.0)
    assert tiny.complete(prompt, **params).tokens == plain
    assert [adapter.handle for adapter in tiny.list_adapters()] == [b]
    tiny.unload_adapter(b)
    assert tiny.list_adapters() == ()


def test_a_wrong_adapter_is_refused_and_the_model_goes_on(tiny, folder):
    for path in (folder / "tiny.gguf", folder / "none.gguf", folder / "encoder.gguf"):
        with pytest.raises(ModelLoadError):
            tiny.load_adapter(str(path))
    with pytest.raises(InvalidParameter):
        tiny.set_adapter_scale("none", 1.0)
    assert tiny.complete([5], response_tokens=1).stats.completion_tokens <= 1


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(folder, demo):
    with Model(path=str(folder / "encoder.gguf")) as encoder:
        for model in (encoder, demo):
            inputs = [model.tokenize(text) for text in ("hello world", "a", "something rather longer than that")]
            together = np.array(model.embed_many(inputs))
            assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-4)
            alone = np.array([model.embed(tokens) for tokens in inputs])
            assert np.abs(together - alone).max() < 2e-2  # other batch shapes take other kernels
        assert not encoder.model_info().generates
        with pytest.raises(NotSupported):
            encoder.complete("hello")
        with pytest.raises(InvalidParameter):
            encoder.embed([])
        with pytest.raises(ContextOverflow):
            encoder.embed([5] * 100_000)


def test_a_missing_or_malformed_file_is_a_clear_error(tmp_path):
    with pytest.raises(ModelLoadError, match="no such file"):
        Model(path=str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf"):
        Model(path=str(tmp_path / "bad.gguf"))
    with pytest.raises(InvalidParameter):
        Model(path="demo", no_such_setting=1)


def test_after_shutdown_every_call_says_so(folder):
    model = Model(path=str(folder / "tiny.gguf"), n_ctx=256)
    model.shutdown()
    model.shutdown()
    with pytest.raises(EngineStopped):
        model.complete([5])
    with pytest.raises(EngineStopped):
        model.tokenize("x")


def test_progress_of_a_long_prompt_and_of_the_same_again(demo):
    tokens = demo.tokenize("The fox and the crow went to market. " * 60)[:600]
    events = list(demo.infer(tokens, {"response_tokens": 2, "report_progress": True}))
    told = [event for event in events if isinstance(event, Progress)]
    assert told[0].processed == told[0].cached
    assert told[-1].processed == told[-1].total == len(tokens)
    assert len(told) >= 3, "in slices"
    counts = [event.processed for event in told]
    assert counts == sorted(set(counts))
    assert events[: len(told)] == told
    again = list(demo.infer([*tokens, *tokens[:8]], {"response_tokens": 2, "report_progress": True}))
    assert again[0].cached >= len(tokens)
    assert again[0].tier == "live"
    assert not any(isinstance(event, Progress) for event in demo.infer(tokens, {"response_tokens": 2}))


def test_probabilities_behind_the_sampling_sum_up_to_one(demo):
    params = {"response_tokens": 6, "logprobs": 20, "post_sampling": True, "top_k": 10, "temperature": 1.0, "seed": 3}
    reply = demo.complete(demo.tokenize("Once upon a time"), **params)
    assert len(reply.logprobs) == len(reply.tokens) > 0
    for token, entry in zip(reply.tokens, reply.logprobs, strict=True):
        assert sum(np.exp(logprob) for _, _, logprob in entry.top) == pytest.approx(1)
        assert token in [likely for likely, _, _ in entry.top]
