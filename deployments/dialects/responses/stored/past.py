"""What came before a request, read out of the stored responses; and its own input, as it is stored.
May take long: texts of many turns are parsed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deployments.dialects.responses.stored.response import StoredResponse, new_id
from deployments.dialects.responses.stored.store import Past
from deployments.http.body import encode_given

Items = list[dict[str, Any]]

_PREFIXES = {"reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


def input_items(response: StoredResponse) -> Items:
    """What the request of a response brought itself."""
    items: Items = json.loads(response.input)
    return items


def output_items(response: StoredResponse) -> Items:
    items: Items = json.loads(response.body)["output"]
    return items


def conversation(past: Past) -> Items:
    """The items before a request's own."""
    return [item for response in past.chain for item in input_items(response) + output_items(response)]


def whole_conversation(given: str | list[Any] | None, past: Past) -> Items:
    """The items before a request, and its own behind them, each with an id."""
    own: Items = json.loads(own_input(given, referred_items(past)))
    return conversation(past) + own


def referred_items(past: Past) -> Mapping[str, dict[str, Any]]:
    """Items that references may mean, by id."""
    return {item["id"]: item for response in past.holders for item in output_items(response)}


def own_input(given: str | list[Any] | None, referred: Mapping[str, dict[str, Any]]) -> str:
    """The JSON of a request's items, each with an id and no reference among them."""
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return encode_given([_with_id(item, referred) for item in given or () if isinstance(item, dict)])


def _with_id(item: dict[str, Any], referred: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if item.get("type") == "item_reference":
        return referred.get(str(item.get("id")), item)
    if isinstance(item.get("id"), str):
        return item
    kind = item.get("type", "message")
    return {**item, "id": new_id(_PREFIXES.get(str(kind), "msg")), "type": kind}
