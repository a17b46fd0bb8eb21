"""`erllama launch AGENT`: a coding agent of another maker, set up for a server and started."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from erllama.agents.clients import KEY_VARIABLE
from erllama.agents.listing import choose_model, codex_catalog, listed_models
from erllama.agents.setup import AgentSetup, Endpoint, state_dir, write_files
from erllama.agents.table import AGENTS, Agent, short_of_context
from erllama.cli.failures import clear_errors
from erllama.cli.output import note
from erllama.cli.server import Key, Server
from erllama.cli.server_url import Host
from erllama.errors import InvalidParameter

launch_app = typer.Typer()
_SHOWN_KEY = f"${KEY_VARIABLE}"
_EXAMPLE = 'Example: erllama launch claude --model qwen3:8b -- -p "What is in this folder?"'


@launch_app.command(epilog=_EXAMPLE)
def launch(
    agent: Annotated[str, typer.Argument(help=f"One of {', '.join(AGENTS)}.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="The agent's own arguments, behind --.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; the server's only one by default.")] = None,
    host: Host = None,
    api_key: Key = None,
    show: Annotated[
        bool, typer.Option("--print", help="Only show the environment, the files and the command.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only show them, as JSON.")] = False,
    force: Annotated[bool, typer.Option(help="Start even if the model's context is too small.")] = False,
) -> None:
    """Start a coding agent with a model of a server.

    Its configuration goes into a directory of its own; the user's is not changed.
    """
    with clear_errors():
        known = _agent(agent)
        endpoint = _endpoint(host, api_key or None, model)
        too_small = short_of_context(known, endpoint.context)
        if too_small and not (force or show or as_json):
            raise InvalidParameter(f"{too_small}; n_ctx in the server's configuration sets it", param="model")
    if too_small:
        typer.secho(f"warning: {too_small}", fg="yellow", err=True)
    elif endpoint.context is None and known.min_context is not None:  # a model of the hub that was never loaded
        note(f"the server does not tell the context of {endpoint.model}; {known.name} needs {known.min_context} tokens")
    folder = state_dir(os.environ, Path.home()) / "launch" / known.name
    if show or as_json:  # the key is named, not shown
        shown = Endpoint(**asdict(endpoint) | ({"key": _SHOWN_KEY} if endpoint.key else {}))
        setup = known.setup(shown, folder, arguments or [])
        typer.echo(_as_json(setup) if as_json else _as_shell(setup))
        return
    _start(known, known.setup(endpoint, folder, arguments or []))


def _agent(name: str) -> Agent:
    try:
        return AGENTS[name]
    except KeyError:
        raise InvalidParameter(f"AGENT: {name!r} is none of {', '.join(AGENTS)}", param="agent") from None


def _endpoint(host: str | None, key: str | None, model: str | None) -> Endpoint:
    with Server(host, key) as server:
        body = server.get("/v1/models", client_version=1)
    chosen = choose_model(listed_models(body), model)
    return Endpoint(server.url, chosen.id, key, chosen.context, codex_catalog(body))


def _start(agent: Agent, setup: AgentSetup) -> NoReturn:
    """Become the agent. Exits with 1 where it is not installed or its files cannot be written."""
    program = shutil.which(setup.argv[0])
    if program is None:
        typer.secho(f"error: {setup.argv[0]} is not installed. To install it: {agent.install}", fg="red", err=True)
        raise typer.Exit(1)
    try:
        write_files(setup.files)
        os.execve(program, list(setup.argv), setup.environment(os.environ))
    except OSError as error:
        typer.secho(f"error: {agent.name} cannot be started: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def _as_json(setup: AgentSetup) -> str:
    return json.dumps(
        {
            "env": dict(setup.env),
            "unset": list(setup.unset),
            "files": {str(path): text for path, text in setup.files.items()},
            "argv": list(setup.argv),
        },
        indent=2,
    )


def _as_shell(setup: AgentSetup) -> str:
    """What a shell would do; a file is shown between the lines of a here document."""
    lines = [f"unset {name}" for name in setup.unset]
    lines += [f"export {name}={_quoted(value)}" for name, value in setup.env.items()]
    for path, text in setup.files.items():
        lines += [f"mkdir -p {_quoted(str(path.parent))}", f"cat > {_quoted(str(path))} <<END"]
        lines += [*_for_here_document(text).splitlines(), "END"]
    return "\n".join([*lines, " ".join(map(_quoted, setup.argv))])


def _for_here_document(text: str) -> str:
    """Nothing of it is for the shell but the key."""
    escaped = re.sub(r"([\\`$])", r"\\\1", text)
    return escaped.replace(f"\\{_SHOWN_KEY}", _SHOWN_KEY)


def _quoted(text: str) -> str:
    return f'"{text}"' if text == _SHOWN_KEY else shlex.quote(text)
