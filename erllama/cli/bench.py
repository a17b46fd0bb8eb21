"""`erllama bench`: how fast a server is, ours or another of OpenAI's API, as a client sees it."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from erllama.agents.listing import ListedModel, choose_model, listed_models
from erllama.benchmark.client import BenchClient
from erllama.benchmark.summary import Summary, TurnSummary, summarise
from erllama.benchmark.turn import Turn
from erllama.benchmark.workload import Workload
from erllama.cli.failures import REFUSED, clear_errors
from erllama.cli.output import AsJson, note, print_json, print_table
from erllama.cli.server import Key, Server
from erllama.cli.server_url import Host, key_headers

bench_app = typer.Typer()
_READ_S = 600.0  # silence of a server that computes a long prompt
_COLUMNS = ("turn", "prompt", "cached", "TTFT", "TTFT max", "prefill tok/s", "decode tok/s", "gap p50", "gap p99")


@bench_app.command(epilog="Example: erllama bench --host http://127.0.0.1:8080 --prompt-tokens 4000 --concurrency 4")
def bench(
    model: Annotated[str | None, typer.Option(help="The model; the server's only one by default.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each first prompt, about.")] = 2000,
    concurrency: Annotated[int, typer.Option(help="Conversations at once.")] = 1,
    turns: Annotated[int, typer.Option(help="Turns of each conversation: the first is cold, the others go on.")] = 3,
    reply_tokens: Annotated[int, typer.Option(help="Tokens of each reply at most.")] = 64,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Measure an OpenAI-compatible server: first token cold and warm, prefill, decode, gaps, cached tokens.

    Its prompts are new in each run. Exits with 1 when a request failed.
    """
    with clear_errors():
        workload = Workload(prompt_tokens, concurrency, turns, reply_tokens)
        with Server(host, api_key) as server:
            chosen = choose_model(listed_models(server.get("/v1/models")), model)
        workload.check_context(chosen.context)
        found = asyncio.run(_measured(server.url, api_key, chosen, workload, quiet=as_json))
    summary = summarise(found, workload)
    if as_json:
        print_json({"server": server.url, "model": chosen.id, "workload": asdict(workload), **asdict(summary)})
    else:
        _show(server.url, chosen.id, workload, summary)
    if summary.errors:
        raise typer.Exit(REFUSED)


async def _measured(url: str, key: str | None, model: ListedModel, workload: Workload, *, quiet: bool) -> list[Turn]:
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(_READ_S, pool=None)
    console = Console(stderr=True, quiet=quiet)
    async with httpx.AsyncClient(base_url=url, headers=key_headers(key), limits=limits, timeout=timeout) as http:
        client = BenchClient(http, model.id, workload, secrets.token_hex(8))
        with console.status("asking how many words make a prompt ...") as status:
            n_words = await client.calibrate()
            total, done = workload.concurrency * workload.turns, list[Turn]()

            def tell(turn: Turn) -> None:
                done.append(turn)
                status.update(f"{len(done)} of {total} turns")

            status.update(f"0 of {total} turns")
            return await client.measure(n_words, tell)


def _show(url: str, model: str, workload: Workload, summary: Summary) -> None:
    note(
        f"{model} at {url}: {workload.concurrency} conversations at once of {workload.turns} turns, first prompts of "
        f"some {workload.prompt_tokens} tokens, replies of at most {workload.reply_tokens}; medians"
    )
    rows = [(str(turn.number), *_cells(turn)) for turn in summary.turns]
    if summary.warm is not None and len(summary.turns) > 2:
        rows.append(("2 and on", *_cells(summary.warm)))
    print_table(_COLUMNS, rows)
    if summary.output_tok_s is not None:
        typer.echo(f"{summary.output_tok_s:.1f} tok/s of replies in all, prefills included")
    cold = summary.cold
    if cold is not None and cold.server_prefill_tok_s and cold.server_decode_tok_s:
        rates = f"prefill {cold.server_prefill_tok_s:.0f} tok/s, decode {cold.server_decode_tok_s:.1f} tok/s"
        typer.echo(f"By the server's own clock, first turns: {rates}")
    for line in summary.unknown:
        note(f"- {line}")
    for error in summary.errors:
        typer.secho(f"error: {error}", fg="red", err=True)


def _cells(turn: TurnSummary) -> tuple[Any, ...]:
    return (
        _number(turn.n_prompt, 0),
        _number(turn.n_cached, 0),
        _ms(turn.ttft_s),
        _ms(turn.ttft_max_s),
        _number(turn.prefill_tok_s, 0),
        _number(turn.decode_tok_s, 1),
        _ms(turn.gap_p50_s),
        _ms(turn.gap_p99_s),
    )


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1000:.1f} ms"
