"""What the cases of bench/conformance.py are written with: a target to ask, and words for what it
should answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

Json = dict[str, Any]
HI: list[Json] = [{"role": "user", "content": "Say hello."}]
MAX_TOKENS = 24  # of free text; what has to end by itself gets `LONG`
LONG = 512


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test: `http` has the base URL, which ends with /v1."""

    http: httpx.Client
    model: str

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http.post(path, json={"model": self.model, **fields})

    def chat(self, messages: list[Json] | None = None, **fields: Any) -> Json:
        """The body of a chat that has to succeed. Greedy and short unless `fields` say otherwise."""
        return body_of(self.post("chat/completions", **chat_fields(messages, fields)))

    def choice(self, messages: list[Json] | None = None, **fields: Any) -> Json:
        choices = self.chat(messages, **fields)["choices"]
        expect(len(choices) == 1, "one choice", choices)
        choice: Json = choices[0]
        return choice

    def complete(self, prompt: Any = "Once upon a time", **fields: Any) -> Json:
        return body_of(self.post("completions", prompt=prompt, **DEFAULTS | fields))

    def stream(self, messages: list[Json] | None = None, **fields: Any) -> list[Json]:
        """The chunks of a streamed chat."""
        fields = chat_fields(messages, fields)
        return chunks_of(self.post("chat/completions", stream=True, **fields))

    def refused(self, param: str | None = None, path: str = "chat/completions", **fields: Any) -> Json:
        """The error of a request that has to be refused with 400. Servers that name no field pass
        where the message has its name.
        """
        given = fields if path != "chat/completions" else chat_fields(fields.pop("messages", None), fields)
        reply = self.post(path, **given)
        return error_of(reply, 400, param)


DEFAULTS: Json = {"temperature": 0, "max_tokens": MAX_TOKENS}


def chat_fields(messages: list[Json] | None, fields: Json) -> Json:
    return {"messages": HI if messages is None else messages} | DEFAULTS | fields


def expect(holds: bool, wanted: str, saw: object) -> None:
    """Raises `AssertionError` with what was wanted and what was seen."""
    if not holds:
        raise AssertionError(f"wanted {wanted}, saw {saw!r:.300}")


def equal(saw: object, wanted: object, what: str) -> None:
    expect(saw == wanted, f"{what} {wanted!r:.200}", saw)


def succeeded(reply: httpx.Response) -> None:
    expect(reply.status_code == 200, "status 200", f"{reply.status_code} {reply.text[:250]}")


def body_of(reply: httpx.Response) -> Json:
    succeeded(reply)
    body: Json = reply.json()
    return body


def error_of(reply: httpx.Response, status: int, param: str | None = None) -> Json:
    expect(reply.status_code == status, f"status {status}", f"{reply.status_code} {reply.text[:250]}")
    error = reply.json().get("error")
    expect(isinstance(error, dict) and isinstance(error.get("message"), str), "an error with a message", reply.text)
    if param is not None:
        leaf = param.rpartition(".")[2]
        expect(leaf in f"{error.get('param')} {error['message']}", f"an error that names {param}", error)
    found: Json = error
    return found


def data_of(reply: httpx.Response) -> list[str]:
    """What the events of a stream carry."""
    succeeded(reply)
    lines = [line for line in reply.text.replace("\r\n", "\n").split("\n") if line.startswith("data:")]
    return [line.removeprefix("data:").strip() for line in lines]


def chunks_of(reply: httpx.Response) -> list[Json]:
    data = data_of(reply)
    expect(reply.headers["content-type"].startswith("text/event-stream"), "an event stream", reply.headers)
    expect(bool(data) and data[-1] == "[DONE]", "[DONE] at the end", data[-1:])
    return [json.loads(one) for one in data[:-1]]


def deltas_of(chunks: list[Json], index: int = 0) -> list[Json]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def text_of(chunks: list[Json], index: int = 0, field: str = "content") -> str:
    return "".join(delta.get(field) or "" for delta in deltas_of(chunks, index))


def reason_of(chunks: list[Json], index: int = 0) -> str | None:
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    found: str | None = next((reason for reason in reasons if reason), None)
    return found


def calls_of(chunks: list[Json]) -> list[Json]:
    """The tool calls of a stream, put together as clients do."""
    calls: list[Json] = []
    for piece in (piece for delta in deltas_of(chunks) for piece in delta.get("tool_calls") or ()):
        if piece["index"] == len(calls):
            calls.append({"id": piece.get("id"), "name": piece["function"]["name"], "arguments": ""})
        calls[piece["index"]]["arguments"] += piece["function"].get("arguments") or ""
    return calls


def tool(name: str = "get_weather", **properties: Json) -> Json:
    properties = properties or {"city": {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": f"Answers with {name}.", "parameters": parameters},
    }


def called(name: str = "get_weather", arguments: str = '{"city": "Ulm"}', **fields: Any) -> Json:
    """A message of history that calls a tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


def result(content: Any = "Sunny, 21 degrees.") -> Json:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


Case = Callable[[Target], None]


class Cases:
    """Named cases in their order. `case` is a decorator: the function's name is the case's."""

    def __init__(self) -> None:
        self.by_name: dict[str, Case] = {}

    def case(self, function: Case) -> Case:
        self.by_name[function.__name__] = function
        return function
