"""The command `why`: asks a server why the prompt of a request had to be computed."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erllama.cli.failures import clear_errors
from erllama.cli.output import AsJson, print_json
from erllama.cli.server import Key, Server, path_of
from erllama.cli.server_url import Host

why_app = typer.Typer()


@why_app.command(epilog="Example: erllama why 5f0c0a52-8a2c-4a57-9b47-2f1f6f1d8a11")
def why(
    request_id: Annotated[
        str | None, typer.Argument(help="What x-request-id of the answer said. Without one the last requests.")
    ] = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Why a prompt was computed: where it left what was stored, what did that, and what it cost."""
    path = "/erllama/v1/requests" + ("" if request_id is None else path_of(request_id, "why"))
    with clear_errors(), Server(host, api_key) as server:
        answer = server.get(path)
        if as_json:
            print_json(answer)
        else:
            Console().print(_listed(answer["data"]) if request_id is None else _told(answer))


def _listed(cards: list[dict[str, Any]]) -> Table:
    table = Table("request", "model", "prompt", "cached", "cause", "cost", box=None)
    for card in cards:
        share = f"{card['cached_tokens']} ({card['cached_share']:.0%})"
        table.add_row(card["id"], card["model"], str(card["prompt_tokens"]), share, card["cause"], _cost(card))
    return table


def _told(card: dict[str, Any]) -> Table:
    """Two columns; texts are marked where the two sides part."""
    cached = f"{card['cached_tokens']} of {card['prompt_tokens']}"
    table = Table(show_header=False, box=None)
    table.add_row("cause", Text.assemble((card["cause"], "bold"), f": {card['detail']}"))
    table.add_row("cached tokens", f"{cached} from {card['tier']}" if card["tier"] else cached)
    table.add_row("computed", f"{card['computed_tokens']} tokens, {_cost(card)}")
    table.add_row("known before", f"its first {card['position']} tokens; there it goes on otherwise:")
    if card["before"]["text"]:
        table.add_row("before", Text(repr(card["before"]["text"])[1:-1], "dim"))
    table.add_row("this prompt", _side(card["prompt"]["text"], "green"))
    table.add_row("what was known", _side(card["stored"]["text"], "red"))
    return table


def _side(text: str, style: str) -> Text:
    return Text(repr(text)[1:-1], style) if text else Text("(it ends here)", "dim")


def _cost(card: dict[str, Any]) -> str:
    return "time not measured" if card["cost_ms"] is None else f"{card['cost_ms']:.0f} ms"
