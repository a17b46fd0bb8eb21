"""The commands about what a server runs: ps, stop, embed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from erllama.cli.failures import clear_errors
from erllama.cli.output import AsJson, print_json, print_table, size
from erllama.cli.server import Key, Server
from erllama.cli.server_url import Host

running = typer.Typer()


@running.command(epilog="Example: erllama ps --host gpu-box:8000")
def ps(host: Host = None, api_key: Key = None, as_json: AsJson = False) -> None:
    """The models that are in memory: size, context, where, and until when."""
    with clear_errors(), Server(host, api_key) as server:
        cards: list[dict[str, Any]] = server.get("/api/ps")["models"]
        if as_json:
            print_json(cards)
            return
        rows = [
            (card["name"], size(card["size"]), card.get("context_length"), card.get("node", "")[:12], _until(card))
            for card in cards
        ]
        print_table(("name", "size", "context", "node", "until"), rows)


@running.command(epilog="Example: erllama stop qwen:0.5b")
def stop(
    model: Annotated[str, typer.Argument(help="A model of the server's hub.")],
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take a model of the hub out of memory. What it holds is saved; the next request loads it again."""
    with clear_errors(), Server(host, api_key) as server:
        told = server.post("/models/unload", {"model": model})
        if as_json:
            print_json(told)
        else:
            typer.echo(f"{model} is not in memory any more")


@running.command(epilog='Example: erllama embed qwen:0.5b "a text" "another text" --json')
def embed(
    model: Annotated[str, typer.Argument(help="A model's name.")],
    texts: Annotated[list[str], typer.Argument(help="The texts.")],
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """The embeddings of texts: a line of numbers each."""
    with clear_errors(), Server(host, api_key) as server:
        told = server.post("/v1/embeddings", {"model": model, "input": texts})
        vectors: list[list[float]] = [entry["embedding"] for entry in told["data"]]
        if as_json:
            print_json({"model": told["model"], "embeddings": vectors, "usage": told["usage"]})
            return
        for vector in vectors:
            typer.echo(" ".join(f"{number:.6g}" for number in vector))


def _until(card: dict[str, Any]) -> str:
    text = str(card.get("expires_at") or "")
    return "it stays" if text.startswith("2300") or not text else text[:19].replace("T", " ")
