"""Cases of conformance: the routes and habits of llama.cpp's server, and those of vLLM and LM Studio
that clients of local models ask for. Their names begin with `llama_`, `vllm_` and `lm_studio_`.

`--embeddings` is needed of a llama-server for the vectors.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
from conformance_kit import HI, Cases, Json, Target, body_of, chat_fields, chunks_of, data_of, equal, error_of, expect

CASES = Cases()
case = CASES.case
PROMPT = "Once upon a time there was"
DEFAULTS: Json = {"temperature": 0, "n_predict": 8}
PACES = {"prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms"}


def url_of(target: Target, path: str) -> str:
    """A path beside `/v1`."""
    return str(target.http.base_url).rstrip("/").removesuffix("/v1") + path


def post(target: Target, path: str, **fields: Any) -> httpx.Response:
    return target.http.post(url_of(target, path), json={"model": target.model, **fields})


def get(target: Target, path: str) -> Any:
    return body_of(target.http.get(url_of(target, path), params={"model": target.model}))


def answer(target: Target, path: str, **fields: Any) -> Any:
    return body_of(post(target, path, **fields))


def complete(target: Target, prompt: Any = PROMPT, **fields: Any) -> Any:
    return answer(target, "/completion", prompt=prompt, **DEFAULTS | fields)


def pieces(target: Target, **fields: Any) -> list[Json]:
    """The objects of a streamed completion."""
    reply = post(target, "/completion", prompt=PROMPT, stream=True, **DEFAULTS | fields)
    return [json.loads(data) for data in data_of(reply)]


def refused(target: Target, path: str, kind: str = "invalid_request_error", **fields: Any) -> Json:
    error = error_of(post(target, path, **fields), 400)
    equal((error["code"], error["type"]), (400, kind), "code and type")
    expect(bool(error["message"]), "a message", error)
    return error


# --- /completion ----------------------------------------------------------------------------------


@case
def llama_a_completion_tells_all_there_is(target: Target) -> None:
    body = complete(target)
    wanted = {
        "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated", "generation_settings",
        "prompt", "has_new_line", "truncated", "stop_type", "stopping_word", "tokens_cached", "timings",
    }  # fmt: skip
    expect(wanted <= body.keys(), "all members", sorted(wanted - body.keys()))
    equal((body["stop"], body["prompt"], body["tokens"]), (True, PROMPT, []), "stop, prompt and tokens")


@case
def llama_n_predict_is_a_limit(target: Target) -> None:
    body = complete(target, n_predict=3)
    equal((body["tokens_predicted"], body["stop_type"], body["truncated"]), (3, "limit", False), "how it ended")
    equal(body["generation_settings"]["n_predict"], 3, "n_predict")


@case
def llama_a_stop_word_is_named(target: Target) -> None:
    word = complete(target)["content"][2:4]
    body = complete(target, stop=[word])
    equal((body["stop_type"], body["stopping_word"]), ("word", word), "how it ended")
    expect(word not in body["content"], f"a text without {word!r}", body["content"])


@case
def llama_tokens_are_a_prompt(target: Target) -> None:
    ids = answer(target, "/tokenize", content=PROMPT, add_special=True)["tokens"]
    equal(complete(target, ids)["content"], complete(target)["content"], "the reply to the text")


@case
def llama_texts_and_tokens_may_be_mixed(target: Target) -> None:
    ids = answer(target, "/tokenize", content=PROMPT)["tokens"]
    body = complete(target, [PROMPT, *ids])
    equal(body["tokens_evaluated"], complete(target)["tokens_evaluated"] + len(ids), "tokens_evaluated")


@case
def llama_several_prompts_give_a_list(target: Target) -> None:
    ids = answer(target, "/tokenize", content="One day")["tokens"]
    bodies = complete(target, [PROMPT, ids, {"prompt_string": "The end"}], n_predict=2)
    equal([body["index"] for body in bodies], [0, 1, 2], "indices")
    equal(bodies[0]["content"], complete(target, n_predict=2)["content"], "the reply to the first")


@case
def llama_n_cmpl_gives_that_many(target: Target) -> None:
    bodies = complete(target, n_cmpl=2, n_predict=2, temperature=1)
    equal([body["index"] for body in bodies], [0, 1], "indices")


@case
def llama_tokens_come_when_asked_for(target: Target) -> None:
    body = complete(target, return_tokens=True)
    equal(len(body["tokens"]), body["tokens_predicted"], "number of tokens")
    text = answer(target, "/detokenize", tokens=body["tokens"])["content"]
    equal(text.strip(), body["content"].strip(), "their text")


@case
def llama_a_stream_adds_up_to_the_whole(target: Target) -> None:
    *told, last = pieces(target)
    equal("".join(piece["content"] for piece in told), complete(target)["content"], "text")
    expect(not any(piece["stop"] for piece in told), "stop false until the end", told)
    expect(all(piece["tokens"] for piece in told), "tokens in each piece", told)
    equal((last["stop"], last["content"], last["stop_type"]), (True, "", "limit"), "the end")


@case
def llama_response_fields_are_unnested(target: Target) -> None:
    body = complete(target, response_fields=["content", "generation_settings/n_predict", "nothing/here"])
    equal(set(body), {"content", "generation_settings/n_predict"}, "fields")


@case
def llama_a_seed_repeats_a_completion(target: Target) -> None:
    one, two = (complete(target, temperature=1, seed=7)["content"] for _ in range(2))
    equal(one, two, "text")


@case
def llama_a_grammar_holds(target: Target) -> None:
    equal(
        complete(target, grammar='root ::= "yes" | "no"', n_predict=64)["content"] in ("yes", "no"), True, "yes or no"
    )


@case
def llama_a_schema_holds(target: Target) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "boolean"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    value = json.loads(complete(target, json_schema=schema, n_predict=64)["content"])
    expect(isinstance(value, dict) and isinstance(value["x"], bool), "an object with x", value)


@case
def llama_a_bias_has_three_forms(target: Target) -> None:
    for bias in ([[65, -1.5]], [[65, False]], {"65": -1.5}, [["A", -1]]):
        told = complete(target, logit_bias=bias, n_predict=1)["generation_settings"]["logit_bias"]
        expect(len(told) >= 1 and {"token", "bias"} <= told[0].keys(), f"{bias} in the settings", told)


@case
def llama_knobs_that_are_off_pass(target: Target) -> None:
    off = {
        "mirostat": 0, "typical_p": 1.0, "dry_multiplier": 0, "xtc_probability": 0, "dynatemp_range": 0, "min_keep": 0,
        "cache_prompt": True, "id_slot": -1, "n_keep": 0, "t_max_predict_ms": 0, "top_n_sigma": -1, "n_indent": 0,
    }  # fmt: skip
    complete(target, **off)


# --- probabilities --------------------------------------------------------------------------------


@case
def llama_n_probs_tells_the_likeliest(target: Target) -> None:
    told = complete(target, n_probs=3)["completion_probabilities"]
    equal(len(told), 8, "number of tokens")
    for one in told:
        expect(one["logprob"] <= 0 and isinstance(one["bytes"], list), "id, token, bytes and logprob", one)
        equal(len(one["top_logprobs"]), 3, "number of likeliest")


@case
def llama_n_probs_streams_token_by_token(target: Target) -> None:
    *told, last = pieces(target, n_probs=2)
    for piece in told:
        equal(len(piece["completion_probabilities"]), 1, "tokens in a piece")
    expect("completion_probabilities" not in last, "none at the end", last)


@case
def llama_post_sampling_probs_are_probabilities(target: Target) -> None:
    told = complete(target, n_probs=3, post_sampling_probs=True, temperature=1)["completion_probabilities"]
    for one in told:
        expect(0 < one["prob"] <= 1, "a probability", one)
        expect(0 < sum(top["prob"] for top in one["top_probs"]) <= 1.001, "probabilities", one)
    [greedy, *_] = complete(target, n_probs=3, post_sampling_probs=True, top_k=1)["completion_probabilities"]
    expect(greedy["prob"] > 0.999 or greedy["prob"] == greedy["top_probs"][0]["prob"], "a certain token", greedy)


# --- timings and progress -------------------------------------------------------------------------


@case
def llama_timings_of_a_completion(target: Target) -> None:
    body = complete(target)
    timings = body["timings"]
    expect(timings.keys() >= PACES, "all timings", sorted(timings))
    equal(timings["prompt_n"] + timings["cache_n"], body["tokens_evaluated"], "tokens of the prompt")
    equal(timings["predicted_n"], body["tokens_predicted"], "predicted_n")


@case
def llama_timings_of_openais_replies(target: Target) -> None:
    expect(target.chat()["timings"].keys() >= PACES, "timings of a chat", "none")
    expect(target.complete()["timings"].keys() >= PACES, "timings of a completion", "none")
    expect(target.stream()[-1]["timings"].keys() >= PACES, "timings in the last chunk", "none")


@case
def llama_timings_come_with_the_usage(target: Target) -> None:
    last = target.stream(stream_options={"include_usage": True})[-1]
    expect(last["choices"] == [] and last["timings"].keys() >= PACES, "timings beside the usage", last)


@case
def llama_timings_per_token(target: Target) -> None:
    chunks = target.stream(timings_per_token=True)
    counts = [chunk["timings"]["predicted_n"] for chunk in chunks if "timings" in chunk]
    expect(len(counts) >= 2 and counts == sorted(counts), "growing counts", counts)
    timed = [piece["timings"]["predicted_n"] for piece in pieces(target, timings_per_token=True)]
    expect(len(timed) > 2 and timed == sorted(timed), "growing counts of a completion", timed)


def check_progress(told: list[Json]) -> None:
    expect(bool(told), "progress", told)
    equal(told[0]["cache"], told[0]["processed"], "what is processed at first")
    equal(told[-1]["processed"], told[-1]["total"], "what is processed at last")
    counts = [one["processed"] for one in told]
    equal(counts, sorted(set(counts)), "growing progress")
    expect(all(one["time_ms"] >= 0 for one in told), "times", told)


@case
def llama_progress_of_a_prompt(target: Target) -> None:
    told = [piece["prompt_progress"] for piece in pieces(target, return_progress=True) if "prompt_progress" in piece]
    check_progress(told)
    fields = chat_fields([{"role": "user", "content": "Tell me a story about a fox. " * 20}], {"return_progress": True})
    chunks = chunks_of(target.post("chat/completions", stream=True, **fields))
    check_progress([chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk])


@case
def llama_progress_names_the_tier(target: Target) -> None:
    """Ours alone: where the cached tokens came from."""
    pieces(target, return_progress=True)
    told = [piece["prompt_progress"] for piece in pieces(target, return_progress=True) if "prompt_progress" in piece]
    expect(told[0]["cache"] > 0 and bool(told[0]["cache_tier"]), "a tier", told[0])


# --- tokens and templates -------------------------------------------------------------------------


@case
def llama_tokens_there_and_back(target: Target) -> None:
    text = "What is the capital of France, mon ami? Größe 5."
    ids = answer(target, "/tokenize", content=text)["tokens"]
    equal(answer(target, "/detokenize", tokens=ids)["content"].strip(), text, "text")


@case
def llama_tokens_with_pieces(target: Target) -> None:
    told = answer(target, "/tokenize", content="Hello 媽", with_pieces=True)["tokens"]
    data = b"".join(
        one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"]) for one in told
    )  # fmt: skip
    equal(data.decode().strip(), "Hello 媽", "text of the pieces")


@case
def llama_special_text_may_be_plain(target: Target) -> None:
    marked = answer(target, "/tokenize", content="<|im_start|><x>", parse_special=True)["tokens"]
    plain = answer(target, "/tokenize", content="<|im_start|><x>", parse_special=False)["tokens"]
    expect(len(plain) > len(marked), "more tokens of plain text", (marked, plain))


@case
def llama_a_template_is_applied(target: Target) -> None:
    text = answer(target, "/apply-template", messages=HI)["prompt"]
    expect("Say hello." in text and len(text) > len("Say hello."), "a prompt", text)
    ids = answer(target, "/tokenize", content=text, add_special=True)["tokens"]
    equal(len(ids), target.chat()["usage"]["prompt_tokens"], "tokens of the chat's prompt")


@case
def llama_tokens_of_a_chat_are_counted(target: Target) -> None:
    counted = answer(target, "/v1/chat/completions/input_tokens", messages=HI)["input_tokens"]
    equal(counted, target.chat()["usage"]["prompt_tokens"], "input_tokens")


# --- vectors --------------------------------------------------------------------------------------


@case
def llama_vectors_have_a_form_of_their_own(target: Target) -> None:
    for path in ("/embedding", "/embeddings"):
        told = answer(target, path, content=["Hello", "world"])
        equal([one["index"] for one in told], [0, 1], f"indices of {path}")
        expect(isinstance(told[0]["embedding"][0][0], float), "a list of lists", told)


# --- the server -----------------------------------------------------------------------------------


@case
def llama_health(target: Target) -> None:
    for path in ("/health", "/v1/health"):
        equal(get(target, path), {"status": "ok"}, path)


@case
def llama_props(target: Target) -> None:
    props = get(target, "/props")
    expect(props["default_generation_settings"]["n_ctx"] > 0, "n_ctx", props["default_generation_settings"])
    expect("temperature" in props["default_generation_settings"]["params"], "parameters", props)
    expect(props["total_slots"] > 0 and ".gguf" in props["model_path"], "slots and path", props)
    expect(
        {"chat_template", "bos_token", "eos_token", "modalities", "build_info"} <= props.keys(), "all", sorted(props)
    )


@case
def llama_slots(target: Target) -> None:
    slots = get(target, "/slots")
    expect(len(slots) >= 1 and {"id", "n_ctx", "is_processing"} <= slots[0].keys(), "slots", slots)


@case
def llama_paths_without_v1(target: Target) -> None:
    answer(target, "/chat/completions", messages=HI, max_tokens=2)
    expect(bool(get(target, "/models")["data"]), "models", "none")
    answer(target, "/responses", input="Hello", max_output_tokens=16)


@case
def llama_messages_without_v1(target: Target) -> None:
    answer(target, "/messages", messages=HI, max_tokens=2)


# --- errors ---------------------------------------------------------------------------------------


@case
def llama_errors_have_code_and_type(target: Target) -> None:
    refused(target, "/completion", n_predict=2)
    refused(target, "/completion", prompt="x", temperature="hot")
    refused(target, "/completion", prompt=[1, 2, 10**8], n_predict=1)
    refused(target, "/apply-template")


@case
def llama_a_bad_grammar_is_refused(target: Target) -> None:
    refused(target, "/completion", prompt="x", grammar="root ::= (", n_predict=1)


@case
def llama_wrong_tokens_are_the_clients_fault(target: Target) -> None:
    refused(target, "/detokenize", tokens=[10**8])
    refused(target, "/detokenize", tokens="abc")


@case
def llama_a_prompt_that_is_too_long_is_counted(target: Target) -> None:
    n_ctx = get(target, "/props")["default_generation_settings"]["n_ctx"]
    error = refused(target, "/completion", "exceed_context_size_error", prompt=[65] * (n_ctx + 10), n_predict=1)
    equal((error["n_prompt_tokens"], error["n_ctx"]), (n_ctx + 10, n_ctx), "counts")
    expect("exceeds the available context size" in error["message"], "its words", error)


# --- vLLM and LM Studio ---------------------------------------------------------------------------


@case
def vllm_tokens_of_a_prompt_and_of_a_chat(target: Target) -> None:
    told = answer(target, "/tokenize", prompt="Hello world")
    equal(told["count"], len(told["tokens"]), "count")
    expect(told["max_model_len"] > 0, "max_model_len", told)
    chat = answer(target, "/tokenize", messages=HI)
    equal(chat["count"], target.chat()["usage"]["prompt_tokens"], "count of a chat")
    equal(answer(target, "/detokenize", tokens=told["tokens"])["prompt"].strip(), "Hello world", "text")


@case
def vllm_ping_version_and_load(target: Target) -> None:
    equal(target.http.get(url_of(target, "/ping")).status_code, 200, "status of /ping")
    expect(isinstance(get(target, "/version")["version"], str), "a version", "none")
    expect(get(target, "/load")["server_load"] >= 0, "server_load", "none")


@case
def lm_studio_lists_its_models(target: Target) -> None:
    [card, *_] = get(target, "/api/v0/models")["data"]
    expect({"id", "object", "type", "publisher", "compatibility_type", "state"} <= card.keys(), "a card", card)
    answer(target, "/api/v0/chat/completions", messages=HI, max_tokens=2)
