"""Commands as somebody types them, against the real HTTP application over fakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from erllama.cli.app import app
from tests.support.http_fakes import FakeModel, app_of, served
from tests.support.http_site import serving
from tests.support.hub_fakes import LOADED, FakeLibrary, manifest

Run = Callable[..., Any]


@pytest.fixture
def site() -> Iterator[SimpleNamespace]:
    """A server with a configured model "demo" and a hub with "tiny:v1"."""
    model, library = FakeModel(), FakeLibrary(manifest("tiny:v1"))
    library.standings["tiny:v1"] = LOADED
    with ExitStack() as stack:
        url = stack.enter_context(serving(app_of(served(model), library=library)))
        yield SimpleNamespace(url=url, model=model, library=library)


@pytest.fixture
def command(site: SimpleNamespace) -> Run:
    """Runs a command against the server; what it prints on stdout, parsed where it is JSON. `status` is
    the exit code that it must have; with another one than 0 stderr is returned.
    """

    def run(*words: str, status: int = 0, said: str | None = None, host: str | None = None) -> Any:
        environment = {"COLUMNS": "200", "ERLLAMA_HOST": host or site.url}
        result = CliRunner().invoke(app, list(words), input=said, env=environment)
        assert result.exit_code == status, (result.output, result.exception)
        if status:
            assert "Traceback" not in result.output
            return result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()] if "--json" in words else result.stdout

    return run
