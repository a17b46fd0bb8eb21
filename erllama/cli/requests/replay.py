"""The command `replay`: captured requests, sent again to any server, one after the other."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from erllama.cli.failures import REFUSED, NoServer, clear_errors
from erllama.cli.output import AsJson, note, print_json, print_table
from erllama.cli.requests.captured import read_captured
from erllama.cli.requests.measure import Measured, send
from erllama.cli.server import Key
from erllama.cli.server_url import Host, key_headers, root_url

replay_app = typer.Typer()

_CONNECT_S = 5.0


@replay_app.command(epilog="Example: erllama replay /var/lib/erllama/capture --host http://other:8080 --model qwen")
def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What http.capture.dir was, or one of its files.")],
    host: Host = None,
    api_key: Key = None,
    model: Annotated[str | None, typer.Option(help="The model to ask, in place of the one that was asked.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send captured requests again, in their order, to this or another server; time and cached tokens of each.

    Exit code 1 when one of them was refused or broke off.
    """
    with clear_errors():
        captured = read_captured(folder)[:limit]
        url = root_url(host)
        measured: list[Measured] = []
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        headers = key_headers(api_key)
        with httpx.Client(base_url=url, timeout=timeout, headers=headers) as http:
            for one in captured:
                try:
                    measured.append(send(http, one, model))
                except httpx.ConnectError as error:
                    raise NoServer(f"no server answers at {url} ({error})") from None
        _print(measured, as_json=as_json)
    if any(one.error for one in measured):
        raise typer.Exit(REFUSED)


def _print(measured: list[Measured], *, as_json: bool) -> None:
    if as_json:
        print_json({"requests": [asdict(one) for one in measured], **_summary(measured)})
        return
    heads = ("request", "path", "status", "prompt", "cached", "first token", "total", "error")
    print_table(heads, map(_row, measured))
    note(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _summary(measured).items()))


def _row(one: Measured) -> tuple[object, ...]:
    ttft = None if one.ttft_ms is None else f"{one.ttft_ms:.0f} ms"
    return (
        one.id,
        one.path,
        one.status or None,
        one.prompt_tokens,
        one.cached_tokens,
        ttft,
        f"{one.total_ms:.0f} ms",
        one.error,
    )


def _summary(measured: list[Measured]) -> dict[str, Any]:
    """Of all of them; cached tokens of those of which the server tells both counts."""
    told = [one for one in measured if one.prompt_tokens is not None and one.cached_tokens is not None]
    firsts = [one.ttft_ms for one in measured if one.ttft_ms is not None]
    return {
        "sent": len(measured),
        "failed": sum(bool(one.error) for one in measured),
        "prompt_tokens": sum(one.prompt_tokens or 0 for one in told),
        "cached_tokens": sum(one.cached_tokens or 0 for one in told),
        "median_ttft_ms": round(statistics.median(firsts), 1) if firsts else None,
    }
