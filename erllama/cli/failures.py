"""Errors that are the user's to mend, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from erllama.errors import ErllamaError


@contextmanager
def clear_errors() -> Iterator[None]:
    """One line and exit code 1 instead of a traceback for errors that are the user's to fix."""
    try:
        yield
    except ErllamaError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        raise typer.Exit(1) from error
