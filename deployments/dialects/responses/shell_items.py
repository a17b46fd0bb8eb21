"""Calls of tools that OpenAI's models know without a definition, as items of an input: shells and
patches, which a client ran itself. A template is shown them as calls of functions. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The type of a call: the name of its function, and the field that has its arguments.
_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
}
CALLS = tuple(_CALLS)
OUTPUTS = tuple(f"{kind}_output" for kind in _CALLS)


def call_id(item: Mapping[str, Any]) -> str:
    """What joins a call and its output."""
    return next((value for name in ("call_id", "id") if isinstance(value := item.get(name), str)), "")


def called(item: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the function, and the JSON of its arguments."""
    name, field = _CALLS[item["type"]]
    return name, json.dumps(item.get(field) or {}, ensure_ascii=False)


def output_text(item: Mapping[str, Any]) -> str:
    output = item.get("output")
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
