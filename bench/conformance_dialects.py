"""What a server should answer in the dialects of Anthropic, Ollama and OpenAI's Responses, asked case by
case as `conformance.py` does for chat completions.

    python bench/conformance_dialects.py --base-url http://127.0.0.1:8000 --model demo
    [--only WORD] [--json FILE]
    python bench/conformance_dialects.py --table NAME=FILE [NAME=FILE ...]

The base URL is the root, without /v1. `--table` prints results of earlier runs side by side. Names
begin with the dialect. The exit status is 1 if a case failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
from conformance import ask, case_parser
from conformance_kit import HI, Cases, Json, Target, body_of, equal, expect, succeeded

CASES = Cases()
SCHEMA: Json = {"type": "object", "properties": {"city": {"enum": ["Ulm", "Rome"]}}, "required": ["city"]}
ANTHROPIC = {"anthropic-version": "2023-06-01", "anthropic-beta": "something-nobody-knows-2026-01-01"}


def events_of(reply: httpx.Response) -> list[tuple[str, Json]]:
    """Name and data of each event of a stream, `[DONE]` left out."""
    succeeded(reply)
    events = []
    for block in reply.text.replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        named = next((line[6:].strip() for line in lines if line.startswith("event:")), "")
        data = "".join(line[5:].strip() for line in lines if line.startswith("data:"))
        if data and data != "[DONE]":
            events.append((named, json.loads(data)))
    return events


def lines_of(reply: httpx.Response) -> list[Json]:
    succeeded(reply)
    return [json.loads(line) for line in reply.text.splitlines() if line]


# --- Anthropic --------------------------------------------------------------------------------------


def messages(target: Target, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    body = {"model": target.model, "max_tokens": 2, "temperature": 0, "messages": HI} | fields
    return target.http.post(path, json=body, headers=ANTHROPIC)


TOOL: Json = {"name": "get_weather", "description": "Weather of a city.", "input_schema": SCHEMA}


@CASES.case
def anthropic_whole(target: Target) -> None:
    body = body_of(messages(target))
    equal((body["type"], body["role"]), ("message", "assistant"), "type and role")
    expect(body["content"][0]["type"] == "text", "a text block", body)
    expect(body["usage"]["input_tokens"] > 0, "input tokens", body["usage"])
    equal(body["stop_reason"], "max_tokens", "stop_reason")


@CASES.case
def anthropic_stream_is_in_order(target: Target) -> None:
    events = events_of(messages(target, stream=True))
    expect(all(name == data["type"] for name, data in events), "event lines equal to data.type", events[:2])
    kinds = [name for name, _ in events if name != "ping"]
    equal(kinds[:2], ["message_start", "content_block_start"], "the beginning")
    equal(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"], "the end")
    expect(dict(events)["message_delta"]["usage"]["output_tokens"] > 0, "output tokens", events[-2:])


@CASES.case
def anthropic_forced_call(target: Target) -> None:
    choice = {"type": "tool", "name": "get_weather"}
    body = body_of(messages(target, tools=[TOOL], tool_choice=choice, max_tokens=200))
    calls = [block for block in body["content"] if block["type"] == "tool_use"]
    expect(len(calls) == 1 and calls[0]["input"].get("city") in ("Ulm", "Rome"), "one call", body["content"])
    equal(body["stop_reason"], "tool_use", "stop_reason")


@CASES.case
def anthropic_streamed_call(target: Target) -> None:
    events = events_of(messages(target, stream=True, tools=[TOOL], tool_choice={"type": "any"}, max_tokens=200))
    starts = [data["content_block"] for name, data in events if name == "content_block_start"]
    calls = [block for block in starts if block["type"] == "tool_use"]
    expect(bool(calls) and calls[0]["input"] == {}, "a call that begins with empty input", starts)
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    text = "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
    expect(json.loads(text)["city"] in ("Ulm", "Rome"), "arguments in pieces", text)


@CASES.case
def anthropic_tool_results_in_history(target: Target) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Ulm"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "is_error": True,
        "content": [{"type": "text", "text": "No."}],
    }
    history = [*HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    body_of(messages(target, messages=history, tools=[TOOL]))


@CASES.case
def anthropic_system_blocks_and_messages(target: Target) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    body_of(messages(target, system=system, messages=[*HI, {"role": "system", "content": "9 tokens left"}]))


@CASES.case
def anthropic_fields_of_new_clients_pass(target: Target) -> None:
    new = {"context_management": {"edits": []}, "output_config": {"effort": "high"}, "betas": ["x"], "speed": "fast"}
    body_of(messages(target, "/v1/messages?beta=true", thinking={"type": "adaptive"}, metadata={"user_id": "u"}, **new))


@CASES.case
def anthropic_max_tokens_beyond_the_context(target: Target) -> None:
    body_of(messages(target, max_tokens=64_000, stop_sequences=["e"]))


@CASES.case
def anthropic_stop_sequence_is_named(target: Target) -> None:
    body = body_of(messages(target, stop_sequences=["e", "a", "o"], max_tokens=200))
    equal(body["stop_reason"], "stop_sequence", "stop_reason")
    expect(body["stop_sequence"] in ("e", "a", "o"), "the sequence", body["stop_sequence"])


@CASES.case
def anthropic_count_tokens(target: Target) -> None:
    reply = messages(target, "/v1/messages/count_tokens")
    expect(body_of(reply)["input_tokens"] > 0, "a count", reply.text)


@CASES.case
def anthropic_cache_reads_are_counted(target: Target) -> None:
    asked: Json = {"messages": [{"role": "user", "content": "Tell me of ships and harbours. " * 20}]}
    body_of(messages(target, **asked))
    usage = body_of(messages(target, **asked))["usage"]
    expect(usage.get("cache_read_input_tokens", 0) > usage["input_tokens"], "most of it read from the cache", usage)


@CASES.case
def anthropic_error_shape(target: Target) -> None:
    reply = messages(target, messages=[])
    equal(reply.status_code, 400, "status")
    body = reply.json()
    equal((body.get("type"), body["error"]["type"]), ("error", "invalid_request_error"), "shape")


@CASES.case
def anthropic_prompt_too_long(target: Target) -> None:
    reply = messages(target, messages=[{"role": "user", "content": "word " * 60_000}])
    equal(reply.status_code, 400, "status")
    expect("prompt is too long" in reply.json()["error"]["message"], "the words that clients act on", reply.text)


# --- Ollama -----------------------------------------------------------------------------------------


def ollama(target: Target, path: str = "/api/chat", **fields: Any) -> httpx.Response:
    options = {"temperature": 0, "num_predict": 2}
    return target.http.post(path, json={"model": target.model, "options": options, **fields})


@CASES.case
def ollama_chat_whole(target: Target) -> None:
    body = body_of(ollama(target, messages=HI, stream=False))
    equal((body["done"], body["message"]["role"]), (True, "assistant"), "done and role")
    expect(body["eval_count"] == 2 and body["total_duration"] > 0, "counts and durations", body)


@CASES.case
def ollama_chat_streams_by_default(target: Target) -> None:
    lines = lines_of(ollama(target, messages=HI))
    expect(all(not line["done"] for line in lines[:-1]) and lines[-1]["done"], "done in the last line", lines[-2:])
    equal(lines[-1]["done_reason"], "length", "done_reason")


@CASES.case
def ollama_format_is_a_schema(target: Target) -> None:
    body = body_of(ollama(target, messages=HI, stream=False, format=SCHEMA, options={"num_predict": 200}))
    expect(json.loads(body["message"]["content"])["city"] in ("Ulm", "Rome"), "JSON of the schema", body)


@CASES.case
def ollama_generate(target: Target) -> None:
    body = body_of(ollama(target, "/api/generate", prompt="Once upon a time", stream=False))
    expect(isinstance(body["response"], str) and body["done"], "a response", body)


@CASES.case
def ollama_empty_chat_loads(target: Target) -> None:
    body = body_of(ollama(target, messages=[], stream=False))
    equal((body["done"], body["done_reason"]), (True, "load"), "done and reason")


@CASES.case
def ollama_lists_and_shows(target: Target) -> None:
    names = [model["name"] for model in body_of(target.http.get("/api/tags"))["models"]]
    expect(any(name.partition(":")[0] == target.model for name in names), "the model", names)
    shown = body_of(target.http.post("/api/show", json={"model": target.model}))
    expect("completion" in shown["capabilities"], "capabilities", shown.get("capabilities"))
    body_of(target.http.get("/api/version"))


@CASES.case
def ollama_error_shape(target: Target) -> None:
    reply = ollama(target, messages=HI, stream=False, format=7)
    equal(reply.status_code, 400, "status")
    expect(isinstance(reply.json()["error"], str), "an error that is a text", reply.text)


# --- Responses --------------------------------------------------------------------------------------


def responses(target: Target, **fields: Any) -> httpx.Response:
    body = {"model": target.model, "input": "Say hello.", "max_output_tokens": 2, "temperature": 0} | fields
    return target.http.post("/v1/responses", json=body)


FUNCTION: Json = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}


@CASES.case
def responses_whole(target: Target) -> None:
    body = body_of(responses(target))
    equal((body["object"], body["status"]), ("response", "incomplete"), "object and status")
    equal(body["output"][-1]["content"][0]["type"], "output_text", "the content")
    expect(body["usage"]["input_tokens_details"]["cached_tokens"] >= 0, "details of usage", body["usage"])


@CASES.case
def responses_stream_is_in_order(target: Target) -> None:
    events = events_of(responses(target, stream=True))
    expect(all(name == data["type"] for name, data in events), "event lines equal to data.type", events[:2])
    kinds = [name for name, _ in events]
    equal(kinds[:2], ["response.created", "response.in_progress"], "the beginning")
    equal(kinds[-1], "response.incomplete", "the end")
    numbers = [data.get("sequence_number") for _, data in events]
    equal(numbers, list(range(len(events))), "sequence numbers")


@CASES.case
def responses_forced_call(target: Target) -> None:
    body = body_of(responses(target, tools=[FUNCTION], tool_choice="required", max_output_tokens=200))
    [call] = [item for item in body["output"] if item["type"] == "function_call"]
    expect(json.loads(call["arguments"])["city"] in ("Ulm", "Rome"), "arguments", call)
    expect(call["id"].startswith("fc_"), "an id with its prefix", call["id"])


@CASES.case
def responses_built_in_tools_are_skipped(target: Target) -> None:
    nested = {"type": "namespace", "name": "ns", "description": "d", "tools": [FUNCTION]}
    body_of(responses(target, tools=[{"type": "web_search"}, nested, FUNCTION]))


@CASES.case
def responses_items_of_history(target: Target) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "eA=="},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "get_weather", "arguments": '{"city":"Ulm"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
    ]
    body_of(responses(target, input=items, tools=[FUNCTION], store=False, include=["reasoning.encrypted_content"]))


@CASES.case
def responses_go_on_from_an_earlier_one(target: Target) -> None:
    first = body_of(responses(target, store=True))
    more = body_of(responses(target, input="And now?", previous_response_id=first["id"]))
    expect(more["usage"]["input_tokens"] > first["usage"]["input_tokens"], "a longer prompt", more["usage"])


@CASES.case
def responses_form_of_the_text(target: Target) -> None:
    form = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
    body = body_of(responses(target, text={"format": form}, max_output_tokens=200))
    text = body["output"][-1]["content"][0]["text"]
    expect(json.loads(text)["city"] in ("Ulm", "Rome"), "JSON of the schema", text)


def table(results: dict[str, list[Json]]) -> str:
    """Results of several servers, a row per case."""
    by_name = {server: {case["name"]: case["failure"] for case in cases} for server, cases in results.items()}
    rows = [f"| case | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in next(iter(by_name.values())):
        cells = ["pass" if found[name] is None else "fail" for found in by_name.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    parser = case_parser(__doc__, base_url="http://127.0.0.1:8000", where="the root of the server")
    parser.add_argument("--table", nargs="+", metavar="NAME=FILE", help="print earlier results side by side, and end")
    args = parser.parse_args()
    if args.table:
        pairs = (pair.partition("=") for pair in args.table)
        print(table({name: json.loads(Path(file).read_text())["cases"] for name, _, file in pairs}))
        return 0
    cases = {name: case for name, case in CASES.by_name.items() if args.only in name}
    return ask(args, cases)


if __name__ == "__main__":
    sys.exit(main())
