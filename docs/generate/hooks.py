"""mkdocs calls this. A line `<!-- generated: NAME -->` of a page becomes what is made from the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deployments.ingress.http_app import DIALECTS
from docs.generate.agent_table import agent_setups, agent_table
from docs.generate.command_reference import command_reference
from docs.generate.config_reference import config_reference
from docs.generate.error_table import error_table
from docs.generate.http_reference import http_part, key
from docs.generate.results import WHOLE_FILES, WITH_PEERS, result

MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
PARTS: Mapping[str, Callable[[], str]] = {
    "configuration": config_reference,
    **{f"http-{name}": partial(http_part, name) for name in ("health", *(key(dialect) for dialect in DIALECTS))},
    "commands": command_reference,
    "errors": error_table,
    "agents": agent_table,
    "agent-setups": agent_setups,
    **{f"result-{name}": partial(result, name) for name in (*WITH_PEERS, *WHOLE_FILES)},
}


def fill(markdown: str) -> str:
    """Raises `KeyError` for a name that nothing makes."""
    return MARK.sub(lambda match: PARTS[match[1]](), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs' event."""
    return fill(markdown)
