"""The `erllama` command. Needs no Ray, except that `serve` hands over to the launcher of the
deployments package.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated

import typer

from erllama.api_keys import NAME, key_hash, new_key
from erllama.cli.bench import bench_app
from erllama.cli.cache import cache_app
from erllama.cli.chat.command import chat_app
from erllama.cli.doctor import doctor_app
from erllama.cli.launch import launch_app
from erllama.cli.models import models
from erllama.cli.output import AsJson, print_fields, print_json
from erllama.cli.requests.replay import replay_app
from erllama.cli.requests.why import why_app
from erllama.cli.running import running
from erllama.cli.server import Key, open_server
from erllama.cli.server_url import Host
from erllama.errors import ErllamaError

app = typer.Typer(
    help="Serve GGUF models on a Ray cluster and never compute a prefix twice.",
    epilog="First steps: `erllama serve` in one terminal, `erllama chat demo` in another.",
    no_args_is_help=True,
)
key_app = typer.Typer(help="API keys of a server.", no_args_is_help=True)
for group in (chat_app, models, running, launch_app, doctor_app, bench_app, why_app, replay_app):
    app.add_typer(group)
app.add_typer(key_app, name="key")
app.add_typer(cache_app, name="cache")


@app.command(epilog="Example: erllama serve my.yaml")
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="A Serve config file; by default serve_config.yaml here, if there is one.")
    ] = None,
) -> None:
    """Check a config and run it, with the switches that make streaming cheap; Ctrl-C and SIGTERM stop in order.

    Without a config the demo model and the models of this machine's hub are served at port 8000.
    """
    named = "--default" if config is None else str(config)
    os.execv(sys.executable, [sys.executable, "-m", "deployments.launch", named])


@key_app.command("new", epilog="Example: erllama key new --name alice")
def new(
    name: Annotated[
        str, typer.Option(help="Whose key it is: keys of one name share what is kept of requests.")
    ] = "default",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once, with the lines of the config that accept it."""
    if not NAME.fullmatch(name):
        raise typer.BadParameter(f"must match {NAME.pattern}", param_hint="--name")
    key = new_key()
    if as_json:
        print_json({"name": name, "key": key, "hash": key_hash(key)})
        return
    print(key)
    print("\n# The key is shown this once. The server knows it by its hash, under http.api_keys:")
    print(f"- name: {name}\n  hash: {key_hash(key)}")


@app.command(epilog="Example: erllama version --json")
def version(host: Host = None, api_key: Key = None, as_json: AsJson = False) -> None:
    """Versions of erllama and of llama.cpp's build, here and at the server."""
    from erllama.llama.library import build_info

    told: dict[str, object] = {"erllama": package_version("erllama"), "llama.cpp": build_info(), "server": None}
    server = open_server(host, api_key)
    if server is not None:
        with server:
            try:
                told["server"] = f"{server.get('/version').get('version')} at {server.url}"
            except ErllamaError as error:
                told["server"] = f"{server.url}: {error.message}"
    if as_json:
        print_json(told)
    else:
        print_fields(told)


if __name__ == "__main__":
    app()
