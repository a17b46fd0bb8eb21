"""The `erllama` command. Needs no Ray, except that `serve` hands over to the launcher of the
deployments package.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from importlib.metadata import version as package_version
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from erllama.api_keys import NAME, key_hash, new_key
from erllama.cli.failures import clear_errors
from erllama.cli.models import models
from erllama.cli.why import why_app

app = typer.Typer(
    help="Serve GGUF models on a Ray cluster and never compute a prefix twice.",
    no_args_is_help=True,
    add_completion=False,
)
key_app = typer.Typer(help="API keys of a server.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(models)
app.add_typer(why_app)

ModelPath = Annotated[str, typer.Argument(help="A GGUF file, or 'demo' for the embedded model.")]


@app.command()
def serve(config: Annotated[str, typer.Argument(help="A Serve config file.")] = "serve_config.yaml") -> None:
    """Check a config and run it, with the switches that make streaming cheap; Ctrl-C and SIGTERM stop in order."""
    os.execv(sys.executable, [sys.executable, "-m", "deployments.launch", config])


@app.command()
def complete(
    prompt: str,
    model: Annotated[str, typer.Option(help="A GGUF file, or 'demo'.")] = "demo",
    chat: Annotated[
        bool, typer.Option(help="Render the prompt as a user's message with the model's chat template.")
    ] = True,
    tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Answer one prompt in this process, streaming."""
    from erllama.events import Failed, Tokens
    from erllama.model import Model

    with clear_errors(), Model(path=model, n_parallel=1) as loaded:
        ids = loaded.apply_chat_template([{"role": "user", "content": prompt}]) if chat else loaded.tokenize(prompt)
        for event in loaded.infer(ids, response_tokens=tokens, temperature=temperature, seed=seed):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Tokens):
                print(event.text, end="", flush=True)
        print()


@app.command()
def show(model: ModelPath = "demo") -> None:
    """What a GGUF is: architecture, size, quantisation, context, chat template."""
    from erllama.demo import demo_model_path
    from erllama.gguf.check import inspect_gguf

    with clear_errors():
        info = inspect_gguf(str(demo_model_path()) if model == "demo" else model)
        table = Table(show_header=False)
        for field in dataclasses.fields(info):
            if field.name != "chat_template":
                table.add_row(field.name, str(getattr(info, field.name)))
        Console().print(table)


@key_app.command("new")
def new(
    name: Annotated[
        str, typer.Option(help="Whose key it is: keys of one name share what is kept of requests.")
    ] = "default",
) -> None:
    """Make a key and print it, this once, with the lines of the config that accept it."""
    if not NAME.fullmatch(name):
        raise typer.BadParameter(f"must match {NAME.pattern}", param_hint="--name")
    key = new_key()
    print(key)
    print("\n# The key is shown this once. The server knows it by its hash, under http.api_keys:")
    print(f"- name: {name}\n  hash: {key_hash(key)}")


@app.command()
def version() -> None:
    """Versions of erllama and of llama.cpp's build."""
    from erllama.llama.library import build_info

    print(f"erllama {package_version('erllama')}")
    print(build_info())


if __name__ == "__main__":
    app()
