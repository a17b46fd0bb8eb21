"""The commands for models by name: pull, list, show, create, cp, rm. They work on a server's hub, or on this
machine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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

from erllama.cli.failures import clear_errors
from erllama.cli.modelfile import parse_modelfile, parse_parameters
from erllama.cli.output import AsJson, note, print_fields, print_json, print_table, size
from erllama.cli.server import Key
from erllama.cli.server_url import Host
from erllama.errors import InvalidParameter

models = typer.Typer()

Directory = Annotated[
    Path | None, typer.Option("--hub", help="A hub's directory on this machine, whatever server runs.")
]
Name = Annotated[str, typer.Argument(help="A model's name: [[host/]namespace/]model[:tag].")]
SOURCE_HELP = (
    "hf://owner/repo[:quant | /file.gguf], ollama://model:tag, https://..., s3://... or another URL of fsspec, "
    "a file, or a name of the Ollama registry."
)
_COLUMNS = ("name", "digest", "size", "architecture", "type", "state")


@models.command(epilog="Example: erllama pull hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M --as qwen:0.5b")
def pull(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    name: Annotated[str | None, typer.Option("--as", help="The model's name; by default made from the source.")] = None,
    hub: Directory = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the hub. What was fetched before an interruption is not fetched again."""
    from erllama.cli.library import Library, LocalLibrary, open_library

    with clear_errors():
        # no server takes files over HTTP, and one of this machine finds them in the hub that it shares
        is_file = host is None and Path(source).is_file()
        library: Library = LocalLibrary(hub) if is_file else open_library(host, api_key, hub)
        with closing(library):
            _pulled(library.pull(source, name), as_json=as_json)


def _pulled(events: Iterable[Any], *, as_json: bool) -> None:
    if as_json:
        for event in events:
            print_json(asdict(event))
    else:
        _show_progress(events)


@models.command("list", epilog="Example: erllama list --json | jq -r '.[].name'")
def list_models(hub: Directory = None, host: Host = None, api_key: Key = None, as_json: AsJson = False) -> None:
    """The models that there are."""
    with _library(host, api_key, hub, changes=False) as library:
        cards = library.list()
        if as_json:
            print_json(cards)
            return
        if not cards:
            note("there are no models yet: `erllama pull SOURCE` fetches one")
        print_table(_COLUMNS, [[_cell(card, column) for column in _COLUMNS] for card in cards])
        for card in cards:
            if card.get("reason"):
                typer.secho(f"warning: {card['name']}: {card['reason']}", fg="yellow", err=True)


@models.command(epilog="Example: erllama show qwen:0.5b")
def show(
    model: Annotated[str, typer.Argument(help="A model's name, the path of a GGUF, or 'demo'.")] = "demo",
    verbose: Annotated[bool, typer.Option(help="With the chat template, whole.")] = False,
    hub: Directory = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """What a model is: architecture, size, quantisation, context, chat template."""
    with clear_errors():
        facts = _file_facts(model) if host is None else None
        if facts is None:
            with _library(host, api_key, hub, changes=False) as library:
                facts = library.show(model)
        if as_json:
            print_json(facts)
        else:
            print_fields({name: _shown(facts, name, verbose=verbose) for name in facts})


@models.command(epilog="Example: erllama create pirate --from qwen:0.5b --system 'You are a pirate.'")
def create(
    name: Name,
    base: Annotated[str | None, typer.Option("--from", help="The model that it is made of.")] = None,
    system: Annotated[str | None, typer.Option(help="Its system text, where a request has none.")] = None,
    template: Annotated[Path | None, typer.Option(help="A file with its chat template, in Jinja.")] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as in Ollama's PARAMETER.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A Modelfile.")] = None,
    hub: Directory = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """A model with another system text, template or parameters. Takes no space."""
    with clear_errors():
        said = parse_modelfile(_text(file)) if file is not None else parse_modelfile("")
        origin = base or said.base
        if not origin:
            raise InvalidParameter("which model is it made of? Give --from, or FROM in the Modelfile", param="from")
        changes: dict[str, Any] = {
            "system": system if system is not None else said.system,
            "template": _text(template) if template is not None else said.template,
            "parameters": {**said.parameters, **parse_parameters(parameter or [])} or None,
        }
        with _library(host, api_key, hub) as library:
            library.create(name, origin, changes)
        _done(f"created {name}", as_json, name=name, base=origin)


@models.command(epilog="Example: erllama cp qwen:0.5b small")
def cp(
    name: Name, target: Name, hub: Directory = None, host: Host = None, api_key: Key = None, as_json: AsJson = False
) -> None:
    """Give a model another name. Takes no space."""
    with _library(host, api_key, hub) as library:
        library.copy(name, target)
        _done(f"{target} is {name}", as_json, name=target, base=name)


@models.command(epilog="Example: erllama rm small")
def rm(
    name: Name,
    force: Annotated[bool, typer.Option(help="Also while requests for it run.")] = False,
    hub: Directory = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove a model; files that others share stay."""
    with _library(host, api_key, hub) as library:
        freed = library.delete(name, force=force)
        text = f"removed {name}" if freed is None else f"removed {name}, {decimal(freed)} are free"
        _done(text, as_json, name=name, deleted=True, freed_bytes=freed)


@contextmanager
def _library(host: str | None, key: str | None, hub: Path | None, *, changes: bool = True) -> Iterator[Any]:
    """That of `open_library`, until the end of the block. With it come huggingface_hub and pydantic, which
    other commands need not wait for.
    """
    from erllama.cli.library import open_library

    with clear_errors(), closing(open_library(host, key, hub, changes=changes)) as library:
        yield library


def _done(text: str, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json(facts)
    else:
        typer.echo(text)


def _shown(facts: dict[str, Any], name: str, *, verbose: bool) -> object:
    value = _cell(facts, name)
    if name not in ("template", "chat_template") or verbose or not value:
        return value
    return f"{len(str(value))} characters; --verbose shows it"


def _cell(card: dict[str, Any], name: str) -> object:
    value = card.get(name)
    return size(value) if name in ("size", "size_bytes") and isinstance(value, int) else value


def _file_facts(model: str) -> dict[str, Any] | None:
    """Of a GGUF on this machine; None when that is no such file."""
    from erllama.demo import demo_model_path
    from erllama.gguf.check import inspect_gguf

    path = demo_model_path() if model == "demo" else Path(model)
    return asdict(inspect_gguf(str(path))) if path.is_file() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"cannot read {path}: {error}") from None


def _show_progress(events: Iterable[Any]) -> None:
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
