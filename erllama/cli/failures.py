"""Errors that are the user's to mend, as one line, and the exit codes of the command.

0 is well, 1 an error or a refusal, 2 a wrong use (typer's own), 3 no server, 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cache_store import StoreError
from erllama.errors import ErllamaError

REFUSED = 1
NO_SERVER = 3
INTERRUPTED = 130


class NoServer(ErllamaError):
    """Nothing answers at the address."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """One line and an exit code instead of a traceback for errors that are the user's to fix."""
    try:
        yield
    except ErllamaError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        raise typer.Exit(NO_SERVER if isinstance(error, NoServer) else REFUSED) from error
    except StoreError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
