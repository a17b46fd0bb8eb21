"""The commands for the hub: pull, list, rm, cp.

Each imports the hub itself: with it come HTTP and huggingface_hub, which the other commands need not
wait for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from erllama.cli.failures import clear_errors
from erllama.hub.config import HubConfig
from erllama.hub.events import PullEvent
from erllama.hub.name import ModelName

models = typer.Typer()

Directory = Annotated[
    Path | None, typer.Option("--hub", help="The hub's directory; by default in the user's cache directory.")
]
Name = Annotated[str, typer.Argument(help="A model's name: [[host/]namespace/]model[:tag].")]
SOURCE_HELP = (
    "hf://owner/repo[:quant | /file.gguf], ollama://model:tag, https://..., s3://... or another URL of fsspec, "
    "a file, or a name of the Ollama registry."
)


@models.command()
def pull(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    name: Annotated[str | None, typer.Option("--as", help="The model's name; by default made from the source.")] = None,
    hub: Directory = None,
) -> None:
    """Fetch a model into the hub. What was fetched before an interruption is not fetched again."""
    from erllama.hub.hub import Hub

    file = Path(source)
    with clear_errors():
        _show_progress(Hub(HubConfig(dir=hub)).pull(str(file.absolute()) if file.is_file() else source, name))


@models.command("list")
def list_models(hub: Directory = None) -> None:
    """The models of the hub."""
    from erllama.hub.hub import Hub
    from erllama.hub.manifest import Damaged

    table = Table("name", "digest", "size", "architecture", "type", box=None)
    with clear_errors():
        for entry in Hub(HubConfig(dir=hub)).list():
            name = ModelName.parse(entry.name).short
            if isinstance(entry, Damaged):
                table.add_row(name, "", "", "damaged", "")
                typer.secho(f"warning: {entry.reason}", fg="yellow", err=True)
            else:
                digest, details = entry.digest.removeprefix("sha256:")[:12], entry.details
                table.add_row(name, digest, decimal(entry.size), details.architecture, details.file_type)
        Console().print(table)


@models.command()
def rm(name: Name, hub: Directory = None) -> None:
    """Remove a model; files that others share stay."""
    from erllama.hub.hub import Hub

    with clear_errors():
        freed = Hub(HubConfig(dir=hub)).delete(name)
        typer.echo(f"removed {name}, {decimal(freed.n_bytes)} are free")


@models.command()
def cp(name: Name, target: Name, hub: Directory = None) -> None:
    """Give a model another name. Takes no space."""
    from erllama.hub.hub import Hub

    with clear_errors():
        Hub(HubConfig(dir=hub)).copy(name, target)


def _show_progress(events: Iterable[PullEvent]) -> None:
    """A bar for each file, a line for each step."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        for event in events:
            if event.status not in bars and event.total:
                bars[event.status] = progress.add_task(event.status, total=event.total)
            if event.status in bars:
                progress.update(bars[event.status], completed=event.completed)
            else:
                progress.console.print(event.status)
