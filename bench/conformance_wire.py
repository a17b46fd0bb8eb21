"""Cases of conformance: the wire of chat and completions, streams, log probabilities, sampling
parameters, errors and HTTP itself.
"""

from __future__ import annotations

from conformance_kit import (
    HI,
    Cases,
    Json,
    Target,
    body_of,
    chat_fields,
    chunks_of,
    deltas_of,
    equal,
    error_of,
    expect,
    reason_of,
    text_of,
)

CASES = Cases()
case = CASES.case
RAW_HI = b'{"model": "%s", "max_tokens": 4, "messages": [{"role": "user", "content": "%s"}]}'

# --- replies --------------------------------------------------------------------------------------


@case
def a_chat_reply_is_complete(target: Target) -> None:
    body = target.chat()
    equal(body["object"], "chat.completion", "object")
    expect({"id", "created", "model", "choices", "usage"} <= body.keys(), "all members", sorted(body))
    [choice] = body["choices"]
    equal((choice["index"], choice["message"]["role"]), (0, "assistant"), "index and role")
    expect(choice["finish_reason"] in ("stop", "length"), "a finish_reason", choice)


@case
def usage_adds_up(target: Target) -> None:
    usage = target.chat()["usage"]
    equal(usage["prompt_tokens"] + usage["completion_tokens"], usage["total_tokens"], "total_tokens")


@case
def max_tokens_ends_a_reply_by_length(target: Target) -> None:
    body = target.chat(max_tokens=2)
    equal((body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]), ("length", 2), "reason and tokens")


@case
def max_completion_tokens_is_a_limit(target: Target) -> None:
    equal(target.chat(max_tokens=None, max_completion_tokens=2)["usage"]["completion_tokens"], 2, "tokens")


@case
def n_gives_that_many_choices(target: Target) -> None:
    choices = target.chat(n=2, temperature=1, max_tokens=4)["choices"]
    equal([choice["index"] for choice in choices], [0, 1], "indices")


@case
def greedy_replies_repeat(target: Target) -> None:
    one, two = (target.choice()["message"]["content"] for _ in range(2))
    equal(one, two, "text")


@case
def a_seed_repeats_a_reply(target: Target) -> None:
    one, two = (target.choice(temperature=1, seed=7)["message"]["content"] for _ in range(2))
    equal(one, two, "text")


@case
def a_stop_string_is_not_in_the_text(target: Target) -> None:
    text = target.complete(stop=None)["choices"][0]["text"]
    expect(len(text) >= 4, "a text of some characters", text)
    stop = text[2:4]
    choice = target.complete(stop=[stop])["choices"][0]
    equal((choice["text"], choice["finish_reason"]), (text[: text.index(stop)], "stop"), "text and reason")


@case
def a_stop_may_be_one_string(target: Target) -> None:
    target.chat(stop="zzz")


@case
def logit_bias_has_string_keys(target: Target) -> None:
    target.chat(logit_bias={"65": -100, "66": 1.5})


@case
def echo_repeats_the_prompt(target: Target) -> None:
    text = target.complete("Once upon", echo=True, max_tokens=2)["choices"][0]["text"]
    expect(text.startswith("Once upon"), "the prompt first", text)


@case
def several_prompts_are_several_choices(target: Target) -> None:
    choices = target.complete(["Once", "Twice"], max_tokens=2)["choices"]
    equal(sorted(choice["index"] for choice in choices), [0, 1], "indices")


@case
def a_prompt_may_be_token_ids(target: Target) -> None:
    equal(target.complete([65, 66, 67], max_tokens=2)["usage"]["prompt_tokens"], 3, "prompt tokens")


# --- streams --------------------------------------------------------------------------------------


@case
def a_stream_says_what_the_whole_reply_says(target: Target) -> None:
    chunks, message = target.stream(), target.choice()["message"]
    for field in ("content", "reasoning_content"):
        equal(text_of(chunks, field=field), message.get(field) or "", field)


@case
def the_role_is_in_the_first_chunk_only(target: Target) -> None:
    roles = [delta.get("role") for delta in deltas_of(target.stream())]
    equal(roles[0], "assistant", "first role")
    expect(not any(roles[1:]), "no other role", roles)


@case
def the_finish_reason_has_a_chunk_of_its_own(target: Target) -> None:
    choices = [choice for chunk in target.stream() for choice in chunk["choices"]]
    expect(not any(choices[-1]["delta"].values()), "an empty delta beside it", choices[-1])
    expect(choices[-1]["finish_reason"] in ("stop", "length"), "a finish_reason", choices[-1])
    equal([choice["finish_reason"] for choice in choices[:-1] if choice["finish_reason"]], [], "reasons before it")


@case
def no_delta_is_empty_but_the_last(target: Target) -> None:
    empty = [delta for delta in deltas_of(target.stream())[1:-1] if not any(delta.values())]
    equal(empty, [], "empty deltas")


@case
def chunks_share_id_and_created(target: Target) -> None:
    equal(len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in target.stream()}), 1, "number of heads")


@case
def usage_comes_last_without_choices(target: Target) -> None:
    *chunks, last = target.stream(stream_options={"include_usage": True})
    equal(last["choices"], [], "choices of the last chunk")
    expect(last["usage"]["completion_tokens"] > 0, "usage", last)
    expect(all("usage" in chunk and chunk["usage"] is None for chunk in chunks), "null in the others", chunks[0])


@case
def no_usage_unless_asked_for(target: Target) -> None:
    equal([chunk["usage"] for chunk in target.stream() if chunk.get("usage")], [], "usages")


@case
def n_streams_all_choices(target: Target) -> None:
    chunks = target.stream(n=2, max_tokens=4)
    for index in (0, 1):
        expect(bool(reason_of(chunks, index)), f"an end of choice {index}", chunks[-1])


@case
def a_streamed_completion_is_the_whole_one(target: Target) -> None:
    fields: Json = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
    chunks = chunks_of(target.post("completions", stream=True, **fields))
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    equal(text, body_of(target.post("completions", **fields))["choices"][0]["text"], "text")


# --- log probabilities ----------------------------------------------------------------------------


@case
def logprobs_spell_the_text(target: Target) -> None:
    choice = target.choice(logprobs=True)
    entries = choice["logprobs"]["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace")
    expect((choice["message"]["content"] or "") in text, "the text among the tokens' bytes", text)
    expect(all(entry["logprob"] <= 0 for entry in entries), "logprobs of at most 0", entries[:2])


@case
def top_logprobs_are_as_many_as_asked_for(target: Target) -> None:
    entries = target.choice(logprobs=True, top_logprobs=3)["logprobs"]["content"]
    expect(all(len(entry["top_logprobs"]) == 3 for entry in entries), "three each", entries[:1])


@case
def streamed_logprobs_are_the_same_tokens(target: Target) -> None:
    whole = target.choice(logprobs=True)["logprobs"]["content"]
    chunks = target.stream(logprobs=True)
    blocks = [choice.get("logprobs") for chunk in chunks for choice in chunk["choices"]]
    streamed = [entry["bytes"] for block in blocks if block for entry in block["content"] or ()]
    equal(streamed, [entry["bytes"] for entry in whole], "bytes of the tokens")


@case
def logprobs_end_where_the_text_ends(target: Target) -> None:
    text = target.complete()["choices"][0]["text"]
    expect(len(text) >= 4, "a text of some characters", text)
    choice = target.complete(stop=[text[2:4]], logprobs=1)["choices"][0]
    offsets = choice["logprobs"]["text_offset"]
    expect(
        all(offset < max(1, len(choice["text"])) for offset in offsets), f"offsets within {choice['text']!r}", offsets
    )


@case
def legacy_logprobs_are_parallel_lists(target: Target) -> None:
    logprobs = target.complete(logprobs=2)["choices"][0]["logprobs"]
    lengths = {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    equal(len(lengths), 1, "number of lengths")


@case
def legacy_top_logprobs_hold_the_sampled_token(target: Target) -> None:
    logprobs = target.complete(logprobs=1, temperature=1, seed=3)["choices"][0]["logprobs"]
    pairs = list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
    expect(all(token in top for token, top in pairs), "the sampled token in each map", pairs[:2])


@case
def top_logprobs_without_logprobs_are_refused(target: Target) -> None:
    target.refused("top_logprobs", top_logprobs=3)


# --- parameters -----------------------------------------------------------------------------------


@case
def values_that_mean_off_pass(target: Target) -> None:
    target.chat(top_k=-1, top_p=1, min_p=0, repeat_last_n=-1, seed=-1, presence_penalty=0, frequency_penalty=0)


@case
def no_limit_is_minus_one(target: Target) -> None:
    target.chat(max_tokens=-1, stop=["e", "o", "a", "\n", ".", "!", " "])


@case
def null_means_absent(target: Target) -> None:
    target.chat(stop=None, seed=None, tools=None, logprobs=None, response_format=None, stream_options=None, user=None)


@case
def bookkeeping_fields_pass(target: Target) -> None:
    fields: Json = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    target.chat(**fields, safety_identifier="s", prompt_cache_key="k", verbosity="low")


@case
def a_temperature_that_is_text_is_refused(target: Target) -> None:
    target.refused("temperature", temperature="hot")


@case
def a_top_p_above_one_is_refused(target: Target) -> None:
    target.refused("top_p", top_p=1.5)


@case
def n_of_zero_is_refused(target: Target) -> None:
    target.refused("n", n=0)


@case
def stream_options_need_a_stream(target: Target) -> None:
    target.refused("stream_options", stream_options={"include_usage": True})


@case
def an_unknown_role_is_refused_by_name(target: Target) -> None:
    error = target.refused(messages=[{"role": "king", "content": "x"}])
    expect("role" in str(error), "an error that names the role", error)


@case
def no_messages_are_refused(target: Target) -> None:
    target.refused("messages", messages=[])


@case
def an_image_for_a_text_model_is_refused(target: Target) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error_of(target.post("chat/completions", **chat_fields([{"role": "user", "content": [part]}], {})), 400)


@case
def a_lone_surrogate_is_refused(target: Target) -> None:
    content = RAW_HI % (target.model.encode(), b"\\ud800")
    error_of(target.http.post("chat/completions", content=content, headers={"content-type": "application/json"}), 400)


@case
def a_pair_of_surrogates_is_a_character(target: Target) -> None:
    content = RAW_HI % (target.model.encode(), b"\\ud83d\\ude00")
    body_of(target.http.post("chat/completions", content=content, headers={"content-type": "application/json"}))


@case
def a_prompt_that_cannot_fit_is_refused(target: Target) -> None:
    reply = target.post("chat/completions", **chat_fields([{"role": "user", "content": "word " * 300_000}], {}))
    error_of(reply, 400)


# --- HTTP -----------------------------------------------------------------------------------------


@case
def a_body_that_is_no_json_is_refused(target: Target) -> None:
    error_of(target.http.post("chat/completions", content=b"{", headers={"content-type": "application/json"}), 400)


@case
def an_unknown_model_is_404(target: Target) -> None:
    error_of(target.http.post("chat/completions", json={"model": "no-such-model", "messages": HI}), 404)


@case
def an_unknown_path_is_404_with_an_error(target: Target) -> None:
    error_of(target.http.get("nope"), 404)


@case
def models_are_listed(target: Target) -> None:
    body = body_of(target.http.get("models"))
    equal(body["object"], "list", "object")
    expect(target.model in [model["id"] for model in body["data"]], target.model, body["data"])


@case
def one_model_is_told(target: Target) -> None:
    equal(body_of(target.http.get(f"models/{target.model}"))["id"], target.model, "id")


@case
def a_slash_at_the_end_means_nothing(target: Target) -> None:
    reply = target.http.get("models/")
    expect(reply.status_code == 200 and reply.json().get("object") == "list", "the list", reply.text)


@case
def head_answers_where_get_does(target: Target) -> None:
    reply = target.http.head("models")
    equal((reply.status_code, reply.content), (200, b""), "status and body")


@case
def options_answers(target: Target) -> None:
    status = target.http.options("chat/completions").status_code
    expect(status in (200, 204), "200 or 204", status)


@case
def a_wrong_method_is_refused(target: Target) -> None:
    status = target.http.get("chat/completions").status_code
    expect(status in (404, 405), "404 or 405", status)
