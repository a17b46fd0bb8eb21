"""The command `why`: why the prompt of a request had to be computed."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erllama.cli.failures import clear_errors
from erllama.cli.output import AsJson, print_json, print_table
from erllama.cli.server import Key, Server, path_of
from erllama.cli.server_url import Host

why_app = typer.Typer()

_REQUESTS = "/erllama/v1/requests"


@why_app.command(epilog="Example: erllama why 5f0c0a52-8a2c-4a57-9b47-2f1f6f1d8a11")
def why(
    request_id: Annotated[
        str | None, typer.Argument(help="What x-request-id of the answer said; without one the last requests.")
    ] = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Why a prompt was computed: where it left what was known, what did that, and what it cost."""
    with clear_errors(), Server(host, api_key) as server:
        answer = server.get(_REQUESTS if request_id is None else _REQUESTS + path_of(request_id, "why"))
    if as_json:
        print_json(answer)
    elif request_id is None:
        print_table(("request", "model", "prompt", "cached", "cost", "cause"), map(_row, answer["data"]))
    else:
        Console().print(_told(answer))


def _row(card: dict[str, Any]) -> tuple[object, ...]:
    share = f"{card['cached_tokens']} ({card['cached_share']:.0%})"
    return card["id"], card["model"], card["prompt_tokens"], share, _cost(card), card["cause"]


def _told(card: dict[str, Any]) -> Table:
    """A name and a value on each line; each side's text as it goes on where they part."""
    cached = f"{card['cached_tokens']} of {card['prompt_tokens']}"
    cost = _cost(card)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("cause", Text.assemble((card["cause"], "bold"), f": {card['detail']}"))
    table.add_row("cached tokens", f"{cached} from {card['tier']}" if card["tier"] else cached)
    table.add_row("computed", f"{card['computed_tokens']} tokens" + (f", {cost}" if cost else ""))
    table.add_row("known before", f"its first {card['position']} tokens; there they part")
    if card["before"]["text"]:
        table.add_row("before", Text(_line(card["before"]["text"]), "dim"))
    table.add_row("this prompt", _side(card["prompt"]["text"], "green"))
    table.add_row("what was known", _side(card["stored"]["text"], "red"))
    return table


def _side(text: str, style: str) -> Text:
    return Text(_line(text), style) if text else Text("(it ends here)", "dim")


def _line(text: str) -> str:
    """A text without line breaks and control characters, which would spoil the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _cost(card: dict[str, Any]) -> str:
    return "" if card["cost_ms"] is None else f"{card['cost_ms']:.0f} ms"
