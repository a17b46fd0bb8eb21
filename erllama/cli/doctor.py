"""`erllama doctor`: hands over to the deployments package, which knows configs and Ray."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from erllama.cli.output import AsJson

doctor_app = typer.Typer()


@doctor_app.command(epilog="Example: erllama doctor serve_config.yaml --json")
def doctor(
    config: Annotated[
        str | None,
        typer.Argument(help="A Serve config file; by default what `erllama serve` takes."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what usually goes wrong on this machine, and say what to do. Exits with 1 when a check fails.

    It writes, reads and deletes an object of 8 MiB in each tier of the store.
    """
    options = [*([config] if config else []), *(["--json"] if as_json else [])]
    os.execv(sys.executable, [sys.executable, "-m", "deployments.doctor", *options])
