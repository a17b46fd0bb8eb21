"""`/completion`: what its bodies ask for, its reply whole and streamed, and what it refuses."""

import asyncio
import json

import pytest

from erllama.errors import ContextOverflow, DecodeFailed, EngineStopped
from erllama.events import CacheHitKind, Done, FinishReason, Progress, RequestStats, Tokens
from erllama.grammar.constraint import ConstraintKind
from erllama.request import SamplingParams
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, http_client, replies, served, stats

pytestmark = pytest.mark.anyio

PATH = "/completion"


async def post(body, model=None, prompts=None, path=PATH, **options):
    async with http_client(app_of(served(model or FakeModel(), prompts), **options)) as client:
        return await client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))


def pieces(body):
    """The objects of a stream, which has no terminator."""
    lines = body.decode().split("\n\n")
    assert lines[-1] == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if not line.startswith(":")]


def once(*events, cached=3, **more):
    """A reply of these events, each in a message of its own; ends by a stop string if one is given."""

    async def script(request):
        n = sum(len(event.ids) for event in events if isinstance(event, Tokens))
        for event in events:
            yield [event]
        last = RequestStats(len(request.prompt_tokens), n, cached, 0.0, 10.0, 4.0, CacheHitKind.PARTIAL,
                            more.pop("reason", FinishReason.STOP), **more)  # fmt: skip
        yield [Done(last, "key")]

    return FakeModel(script)


async def test_a_whole_reply_has_all_that_llama_server_tells():
    reply = await post({"prompt": "Once upon", "n_predict": 8, "return_tokens": True})
    body = reply.json()
    assert reply.status_code == 200
    settings = body.pop("generation_settings")
    assert body == {
        "index": 0, "content": "Hello, w", "tokens": list(b"Hello, w"), "id_slot": -1, "stop": True, "model": "demo",
        "tokens_predicted": 8, "tokens_evaluated": 9, "prompt": "Once upon", "has_new_line": False, "truncated": False,
        "stop_type": "limit", "stopping_word": "", "tokens_cached": 16,
        "timings": {
            "cache_n": 3, "prompt_n": 6, "prompt_ms": 1.0, "prompt_per_token_ms": 0.167, "prompt_per_second": 6000.0,
            "predicted_n": 8, "predicted_ms": 1.0, "predicted_per_token_ms": 0.143, "predicted_per_second": 7000.0,
        },
    }  # fmt: skip
    assert (settings["n_predict"], settings["max_tokens"], settings["seed"]) == (8, 8, 4294967295)
    assert (settings["temperature"], settings["mirostat"], settings["stream"]) == (0.8, 0, False)


async def test_a_stream_has_pieces_and_one_object_that_ends_it():
    reply = await post({"prompt": "x", "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *told, last = pieces(reply.content)
    assert [piece["content"] for piece in told] == ["Hell", "o, w", "orld", "!"]
    assert told[1] == {
        "index": 0, "content": "o, w", "tokens": list(b"o, w"), "stop": False, "id_slot": -1, "tokens_predicted": 8,
        "tokens_evaluated": 1,
    }  # fmt: skip
    assert (last["stop"], last["content"], last["tokens"], last["stop_type"]) == (True, "", [], "eos")
    assert (last["tokens_predicted"], last["timings"]["predicted_n"]) == (13, 13)
    whole = (await post({"prompt": "x", "return_tokens": True})).json()
    assert whole["content"] == "".join(piece["content"] for piece in told)
    assert whole["tokens"] == [token for piece in told for token in piece["tokens"]]
    assert whole.keys() == last.keys()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, ("eos", "", False, 7)),
        ({"stop_sequence": "\n\n"}, ("word", "\n\n", False, 6)),
        ({"reason": FinishReason.LENGTH}, ("limit", "", True, 6)),
    ],
)
async def test_how_a_reply_ended(more, told):
    for stream in (False, True):
        reply = await post({"prompt": "abcd", "stream": stream}, once(Tokens((1, 2, 3), "a\nb"), **more))
        body = pieces(reply.content)[-1] if stream else reply.json()
        assert (body["stop_type"], body["stopping_word"], body["truncated"], body["tokens_cached"]) == told
        assert body["has_new_line"] is True


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("ab", [b"ab"]),
        ([97, 98], [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, "bc", 100], [b"abcd"]),
        (["a", 98], [b"ab"]),
        ([[97, 98], "c", ["d", 101], {"prompt_string": "f"}], [b"ab", b"c", b"de", b"f"]),
        ({"prompt_string": "ab", "multimodal_data": []}, [b"ab"]),
        (["ab"], [b"ab"]),
        ([[97]], [b"a"]),
    ],
)
async def test_every_form_of_prompt(prompt, asked):
    model = FakeModel()
    reply = await post({"prompt": prompt, "n_predict": 1}, model)
    assert reply.status_code == 200, reply.text
    assert [bytes(request.prompt_tokens) for request in model.requests] == asked
    bodies = reply.json() if len(asked) > 1 else [reply.json()]
    assert [(body["index"], body["prompt"].encode()) for body in bodies] == list(enumerate(asked))


async def test_only_a_text_at_the_beginning_gets_a_bos():
    model, prompts = FakeModel(), FakePrompts()
    prompts.adds_bos = True
    given = ["ab", [97, "bc"], ["a", "b", 99]]
    reply = await post({"prompt": given, "n_predict": 1}, model, prompts)
    assert [bytes(request.prompt_tokens) for request in model.requests] == [b"\x02ab", b"abc", b"\x02abc"]
    assert [body["prompt"] for body in reply.json()] == ["<s>ab", "abc", "<s>abc"]


async def test_choices_of_several_prompts_have_indices_and_seeds_of_their_own():
    model = FakeModel()
    reply = await post({"prompt": ["a", "b"], "n_cmpl": 2, "seed": 5, "n_predict": 2}, model)
    assert [(body["index"], body["prompt"]) for body in reply.json()] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert sorted((bytes(one.prompt_tokens), one.sampling.seed) for one in model.requests) == [
        (b"a", 5), (b"a", 6), (b"b", 5), (b"b", 6),
    ]  # fmt: skip
    assert len({request.request_id for request in model.requests}) == 4
    streamed = pieces((await post({"prompt": ["a", "b"], "stream": True})).content)
    assert {piece["index"] for piece in streamed if piece["stop"]} == {0, 1}


async def test_options_become_sampling_and_limits():
    model = FakeModel()
    given = {
        "n_predict": 5.0, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 32,
        "presence_penalty": 0.1, "frequency_penalty": -0.2, "seed": 42, "stop": ["x", "y"], "ignore_eos": True, "n_probs": 3,
        "cache_prompt": False, "id_slot": 1, "n_keep": -1, "unheard_of": [1], "samplers": None,
    }  # fmt: skip
    assert (await post({"prompt": "p", **given}, model)).status_code == 200
    [request] = model.requests
    assert request.sampling == SamplingParams(
        temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.1, repeat_last_n=32, presence_penalty=0.1,
        frequency_penalty=-0.2, seed=42,
    )  # fmt: skip
    assert (request.max_tokens, request.stop, request.ignore_eos, request.logprobs) == (5, ("x", "y"), True, 3)
    assert not request.report_progress


async def test_what_is_off_keeps_the_defaults():
    model = FakeModel()
    off = {
        "n_predict": -1, "seed": -1, "stop": [], "n_probs": 0, "grammar": "", "logit_bias": [], "mirostat": 0, "mirostat_tau": 9,
        "dry_multiplier": 0.0, "dry_sequence_breakers": ["x"], "xtc_probability": 0, "typical_p": 1, "typ_p": 1.0, "min_keep": 1,
        "dynatemp_range": 0, "top_n_sigma": -1, "n_indent": 0, "t_max_predict_ms": -1, "lora": [], "image_data": [],
        "adaptive_target": -0.5, "temperature": None, "grammar_lazy": False,
    }  # fmt: skip
    for more in ({}, {"seed": 4294967295}):
        reply = await post({"prompt": "p", **off, **more}, model)
        assert reply.status_code == 200, reply.text
        assert (model.requests[-1].sampling, model.requests[-1].max_tokens) == (SamplingParams(), None)
        assert (model.requests[-1].grammar, model.requests[-1].logprobs) == (None, None)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mirostat": 2}, "mirostat"), ({"mirostat": True}, "mirostat"), ({"typical_p": 0.5}, "typical_p"),
        ({"dry_multiplier": 0.8}, "dry_multiplier"), ({"xtc_probability": 0.5}, "xtc_probability"),
        ({"dynatemp_range": 1}, "dynatemp_range"), ({"top_n_sigma": 1.5}, "top_n_sigma"), ({"min_keep": 5}, "min_keep"),
        ({"n_indent": 4}, "n_indent"), ({"t_max_predict_ms": "x"}, "t_max_predict_ms"), ({"lora": [{"id": 0}]}, "lora"),
        ({"image_data": [{"data": ""}]}, "image_data"), ({"adaptive_target": 0.5}, "adaptive_target"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"), ({"json_schema": {"type": "bad"}}, "json_schema"),
        ({"grammar": "bad"}, "grammar"), ({"n_probs": 21}, "n_probs"), ({"n_probs": -1}, "n_probs"), ({"n_cmpl": 17}, "n_cmpl"),
        ({"n_predict": -2}, "n_predict"), ({"temperature": "x"}, "temperature"), ({"top_p": 2}, "top_p"),
        ({"repeat_penalty": 0}, "repeat_penalty"), ({"samplers": ["min_p", "top_k"]}, "samplers"), ({"samplers": "kpt"}, "samplers"),
        ({"logit_bias": [1]}, "logit_bias"), ({"logit_bias": [[1, "x"]]}, "logit_bias"), ({"logit_bias": [[300, 1]]}, "logit_bias"),
        ({"logit_bias": [[True, 1]]}, "logit_bias"), ({"stop": 5}, "stop"), ({"stop": ["x"] * 65}, "stop"),
        ({"response_fields": "content"}, "response_fields"), ({"stream": "yes"}, "stream"), ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"), ({"prompt": [1.5]}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": [300]}, "prompt"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["AAAA"]}}, "multimodal_data"), ({"prompt": ["x"] * 65}, "64"),
        ({"prompt": None}, "prompt"), ({"prompt": [[1], 2]}, "prompt"), ({"seed": True}, "seed"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(fields, name):
    model = FakeModel()
    reply = await post({"prompt": "x", **fields}, model)
    assert (reply.status_code, model.requests) == (400, []), reply.text
    error = reply.json()["error"]
    assert error.keys() == {"code", "message", "type"}
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert name in error["message"]


async def test_samplers_that_are_left_out_are_off():
    model = FakeModel()
    for samplers in (["dry", "top_k", "typ_p", "min_p", "temperature"], []):
        body = {"prompt": "x", "samplers": samplers, "temperature": 0.5, "top_p": 0.7, "repeat_penalty": 1.2}
        assert (await post(body, model)).status_code == 200
    some, none = (request.sampling for request in model.requests)
    assert some == SamplingParams(temperature=0.5, top_p=1.0)
    assert none == SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


@pytest.mark.parametrize(
    ("bias", "pairs"),
    [
        ([[65, 1.5], [66, False]], {65: 1.5, 66: -1000.0}),
        ([["AB", -100]], {65: -100.0, 66: -100.0}),
        ({"65": 2, "B": -1}, {65: 2.0, 66: -1.0}),
        ([["AA", 1], [65, 1]], {65: 3.0}),
        ([[65, -900], [65, -900]], {65: -1000.0}),
    ],
)
async def test_the_forms_of_logit_bias(bias, pairs):
    model, prompts = FakeModel(), FakePrompts()
    prompts.adds_bos = True
    reply = await post({"prompt": "x", "logit_bias": bias}, model, prompts)
    assert reply.status_code == 200, reply.text
    assert dict(model.requests[0].sampling.logit_bias) == pairs
    told = reply.json()["generation_settings"]["logit_bias"]
    assert {one["token"]: one["bias"] for one in told} == pairs


async def test_the_time_of_a_line_is_a_limit():
    model = FakeModel()
    for ms in (500, 0, -1):
        assert (await post({"prompt": "x", "t_max_predict_ms": ms}, model)).status_code == 200
    assert [request.line_time_ms for request in model.requests] == [500, None, None]


async def test_grammars_and_schemas_are_constraints():
    model = FakeModel()
    for fields in ({"grammar": 'root ::= "a"'}, {"json_schema": {"type": "string"}}, {"json_schema": {}}):
        assert (await post({"prompt": "x", **fields}, model)).status_code == 200
    kinds = [(request.constraint.kind, request.constraint.text) for request in model.requests]
    assert kinds == [
        (ConstraintKind.GBNF, 'root ::= "a"'),
        (ConstraintKind.JSON_SCHEMA, '{"type": "string"}'),
        (ConstraintKind.JSON_SCHEMA, '{"type": "object"}'),
    ]


async def test_response_fields_are_unnested_and_those_that_are_missing_left_out():
    wanted = ["content", "generation_settings/n_predict", "nope", "content/x", "timings/nope"]
    for stream in (False, True):
        reply = await post({"prompt": "x", "n_predict": 4, "response_fields": wanted, "stream": stream})
        body = pieces(reply.content)[-1] if stream else reply.json()
        assert body == {"content": "" if stream else "Hell", "generation_settings/n_predict": 4}


# --- probabilities --------------------------------------------------------------------------------


async def test_probabilities_of_a_whole_reply():
    model = FakeModel()
    body = (await post({"prompt": "x", "n_predict": 2, "n_probs": 2}, model)).json()
    assert body["completion_probabilities"][1] == {
        "id": 101, "token": "e", "bytes": [101], "logprob": -0.5,
        "top_logprobs": [
            {"id": 65, "token": "A", "bytes": [65], "logprob": -0.5}, {"id": 66, "token": "B", "bytes": [66], "logprob": -1.5},
        ],
    }  # fmt: skip
    assert not model.requests[0].post_sampling


async def test_probabilities_behind_the_sampling_are_no_logarithms():
    model = FakeModel()
    body = (await post({"prompt": "x", "n_predict": 1, "n_probs": 1, "post_sampling_probs": True}, model)).json()
    [one] = body["completion_probabilities"]
    assert one.keys() == {"id", "token", "bytes", "prob", "top_probs"}
    assert one["prob"] == one["top_probs"][0]["prob"] == pytest.approx(0.6065, abs=1e-4)
    assert model.requests[0].post_sampling
    await post({"prompt": "x", "post_sampling_probs": True}, model)
    assert (model.requests[1].post_sampling, model.requests[1].logprobs) == (False, None)


async def test_with_probabilities_each_token_is_a_piece():
    *told, last = pieces((await post({"prompt": "x", "n_probs": 1, "stream": True})).content)
    assert [piece["content"] for piece in told] == list("Hello, world!")
    assert [piece["tokens"] for piece in told] == [[byte] for byte in b"Hello, world!"]
    assert all(len(piece["completion_probabilities"]) == 1 for piece in told)
    assert [piece["tokens_predicted"] for piece in told] == list(range(1, 14))
    assert "completion_probabilities" not in last


async def test_tokens_that_share_a_character_keep_the_text_whole():
    body = {"prompt": "x", "n_probs": 1, "stream": True}
    told = pieces((await post(body, FakeModel(replies("a€b", per_item=2)))).content)[:-1]
    assert "".join(piece["content"] for piece in told) == "a€b"
    assert [token for piece in told for token in piece["tokens"]] == list("a€b".encode())


# --- progress and timings -------------------------------------------------------------------------

PROGRESS = (Progress(100, 60, 60, "disk", 1.4), Progress(100, 60, 100, "disk", 25.0))


async def test_progress_of_the_prompt_comes_when_asked_for_with_its_tier():
    model = once(*PROGRESS, Tokens((1,), "a"))
    first, second, token, _ = pieces(
        (await post({"prompt": "x", "stream": True, "return_progress": True}, model)).content
    )
    assert first["prompt_progress"] == {"total": 100, "cache": 60, "processed": 60, "time_ms": 1, "cache_tier": "disk"}
    assert (second["prompt_progress"]["processed"], second["content"], second["stop"]) == (100, "", False)
    assert "prompt_progress" not in token
    assert model.requests[0].report_progress


async def test_timings_per_token_are_known_from_the_engines_progress():
    model = once(*PROGRESS, Tokens((1,), "a"), Tokens((2,), "b"))
    *told, last = pieces((await post({"prompt": "x", "stream": True, "timings_per_token": True}, model)).content)
    assert [piece["timings"]["predicted_n"] for piece in told] == [1, 2]
    for piece in told:
        assert (piece["timings"]["cache_n"], piece["timings"]["prompt_n"], piece["timings"]["prompt_ms"]) == (
            60,
            40,
            25.0,
        )
        assert piece["timings"].keys() == last["timings"].keys()
    assert told[0]["timings"]["predicted_ms"] == 0 <= told[1]["timings"]["predicted_ms"]
    assert (last["timings"]["prompt_ms"], last["timings"]["predicted_per_token_ms"]) == (10.0, 4.0)


async def test_a_whole_reply_asks_the_engine_for_no_progress():
    model = once(Tokens((1,), "a"))
    reply = await post({"prompt": "x", "return_progress": True, "timings_per_token": True}, model)
    assert reply.status_code == 200
    assert not model.requests[0].report_progress


# --- errors and ends ------------------------------------------------------------------------------


async def test_a_prompt_that_is_too_long_is_told_with_its_counts():
    reply = await post({"prompt": "x" * 5000})
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "code": 400, "message": "request (5000 tokens) exceeds the available context size (4096 tokens)",
        "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DecodeFailed("no"), 500, "server_error"),
        (EngineStopped("going"), 503, "unavailable_error"),
        (ContextOverflow("too long", param="prompt"), 400, "invalid_request_error"),
    ],
)
async def test_errors_have_their_types(error, status, kind):
    reply = await post({"prompt": "x"}, FakeModel(replies("", error=error)))
    assert reply.status_code == status
    assert (reply.json()["error"]["code"], reply.json()["error"]["type"]) == (status, kind)


async def test_a_stream_that_fails_says_so_in_a_piece():
    reply = await post({"prompt": "x", "stream": True}, FakeModel(replies("Hello", error=DecodeFailed("no"))))
    assert reply.status_code == 200
    assert pieces(reply.content)[-1] == {"error": {"code": 500, "message": "no", "type": "server_error"}}


async def test_unknown_models_and_methods_are_answered_in_its_shape():
    reply = await post({"prompt": "x", "model": "other"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.get(PATH)
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, 405)
    reply = await post({"prompt": "x"}, api_keys=("secret",))
    assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
    assert (await post(b"{")).json()["error"]["type"] == "invalid_request_error"


async def test_a_client_that_leaves_cancels_its_request():
    started = asyncio.Event()

    async def endless(request):
        yield [Tokens((1,), "a")]
        started.set()
        await asyncio.sleep(3600)
        yield [Done(stats(request, 1), "key")]

    model = FakeModel(endless)
    async with exchange(app_of(served(model)), PATH, {"prompt": "x", "stream": True}) as one:
        assert (await one.start())[0] == 200
        await one.chunk()
        await started.wait()
        one.disconnect()
        await asyncio.wait_for(one.task, 5)
    assert len(model.cancelled) == 1
