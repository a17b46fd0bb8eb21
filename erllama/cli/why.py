"""The command `why`: asks a server why the prompt of a request had to be computed."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

why_app = typer.Typer()

DEFAULT_HOST = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0

Host = Annotated[str, typer.Option("--host", envvar="ERLLAMA_HOST", help="The server.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="ERLLAMA_API_KEY", help="The API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the server answered.")]


@why_app.command()
def why(
    request_id: Annotated[
        str | None, typer.Argument(help="What x-request-id of the answer said. Without one the last requests.")
    ] = None,
    host: Host = DEFAULT_HOST,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Why a prompt was computed: where it left what was stored, what did that, and what it cost.

    Example: erllama why 5f0c0a52-8a2c-4a57-9b47-2f1f6f1d8a11
    """
    path = "requests" if request_id is None else f"requests/{quote(request_id, safe='')}/why"
    answer = _asked(host, path, api_key)
    if as_json:
        typer.echo(json.dumps(answer, indent=1, ensure_ascii=False))
    elif request_id is None:
        Console().print(_listed(answer["data"]))
    else:
        Console().print(_told(answer))


def _asked(host: str, path: str, api_key: str | None) -> Any:
    import httpx  # the other commands need not wait for it

    base = (host if "://" in host else f"http://{host}").rstrip("/")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(timeout=_TIMEOUT_S, headers=headers) as client:
            reply = client.get(f"{base}/erllama/v1/{path}")
            answer = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _failed(f"{base} does not answer: {error}") from error
    except ValueError as error:
        raise _failed(f"{base} is no erllama server: status {reply.status_code}, and no JSON") from error
    if reply.is_success:
        return answer
    detail = answer.get("error") if isinstance(answer, dict) else None
    message = detail.get("message") if isinstance(detail, dict) else None
    raise _failed(str(message or f"status {reply.status_code}"))


def _failed(message: str) -> typer.Exit:
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(1)


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
