"""What commands print: tables for people on stdout, or JSON alone with `--json`; notes go to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Without lines, so that it can be cut by columns; None is empty."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))  # texts may look like markup
    Console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """A name and a value on each line; empty ones are left out."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in fields.items():
        if value not in (None, "", (), [], {}):
            table.add_row(name, Text(str(value)))
    Console().print(table)


def note(text: str) -> None:
    """A remark beside the output."""
    typer.secho(text, err=True, dim=True)


def size(n_bytes: int | None) -> str:
    """`1.2 GB`; "" for what is not known."""
    return decimal(n_bytes) if n_bytes else ""
