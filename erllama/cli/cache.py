"""The commands for stored prefixes: what a server keeps (ls, stats, pin, evict, export, import), and a tier of a
store by its URL (verify, gc).
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from erllama.cli.failures import REFUSED, clear_errors
from erllama.cli.modelfile import named_values
from erllama.cli.output import AsJson, note, print_json, print_table, size
from erllama.cli.server import Key, Server, path_of
from erllama.cli.server_url import Host
from erllama.errors import ErllamaError, InvalidParameter

cache_app = typer.Typer(help="Stored prefixes: on a server, or in a tier.", no_args_is_help=True)

PREFIXES = "/erllama/v1/prefixes"
_CHUNK = 1 << 20
_LISTED_S = 600.0
_COLLECTED_S = 3600.0

Model = Annotated[str | None, typer.Option("--model", "-m", help="The model; the server's only one by default.")]
Tenant = Annotated[str | None, typer.Option(help="Whose prefixes: the name of a key; one's own by default.")]
Prefix = Annotated[str, typer.Argument(help="The key of a prefix, as `cache ls` shows it; a beginning of it will do.")]
Url = Annotated[str, typer.Argument(help="A tier of the configuration: a directory, s3://bucket/prefix, ...")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE for the driver, as in storage_options.")
]


@cache_app.command(epilog="Example: erllama cache ls --order hits --limit 20")
def ls(
    model: Model = None,
    tenant: Tenant = None,
    order: Annotated[str, typer.Option(help="recent, hits, bytes or tokens.")] = "recent",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """What is stored, with the text that it begins with."""
    with clear_errors(), Server(host, api_key) as server:
        told = server.get(PREFIXES, model=model, tenant=tenant, order=order, limit=limit)
        if as_json:
            print_json(told)
            return
        rows = [
            (card["key"][:16], card["tokens"], size(card["bytes"]), card["hits"], " ".join(card["tiers"]),
             "pinned" if card["pins"] else "", " ".join(card["text"].split())[:60])
            for card in told["data"]
        ]  # fmt: skip
        print_table(("key", "tokens", "size", "hits", "tiers", "", "text"), rows)


@cache_app.command(epilog="Example: erllama cache stats --json")
def stats(host: Host = None, api_key: Key = None, as_json: AsJson = False) -> None:
    """Hits, saves and the tiers of each model's replicas."""
    with clear_errors(), Server(host, api_key) as server:
        cluster = server.get("/erllama/v1/cluster")
        tiers = cluster.get("tiers", [])
        replicas = [(model, one) for model in cluster.get("models", []) for one in model.get("replicas", [])]
        if as_json:
            print_json({"replicas": [one | {"model": model["id"]} for model, one in replicas], "tiers": tiers})
            return
        columns = ("model", "replica", "prompt tokens", "cached", "share", "saves", "evictions")
        print_table(columns, [_replica_row(model, one) for model, one in replicas])
        typer.echo()
        rows = [
            (tier["model"], tier["name"], size(tier.get("bytes")), size(tier.get("budget_bytes")), tier.get("objects"))
            for tier in tiers
        ]
        rows = list(dict.fromkeys(rows))  # replicas with the same tiers tell the same
        print_table(("model", "tier", "size", "budget", "objects"), rows)


@cache_app.command(epilog="Example: erllama cache pin 3f2a --ttl-s 86400 --name manual")
def pin(
    key: Prefix,
    ttl_s: Annotated[float, typer.Option(help="For how long, in seconds.")] = 3600.0,
    name: Annotated[str, typer.Option(help="The pin's name; by default the key.")] = "",
    model: Model = None,
    tenant: Tenant = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Keep a prefix from being evicted."""
    with clear_errors(), Server(host, api_key) as server:
        whole = _whole_key(server, key, model, tenant)
        body = {"ttl_s": ttl_s, "name": name} | ({"tenant": tenant} if tenant else {})
        told = server.post(f"{PREFIXES}{path_of(whole, 'pin')}", body, model=model)
        _tell(told, f"{told['tokens']} tokens are pinned as {told['name'] or whole}", as_json)


@cache_app.command(epilog="Example: erllama cache unpin 3f2a --name manual")
def unpin(
    key: Prefix,
    name: Annotated[str | None, typer.Option(help="The pin's name, if it has one.")] = None,
    model: Model = None,
    tenant: Tenant = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take a pin back."""
    with clear_errors(), Server(host, api_key) as server:
        whole = _whole_key(server, key, model, tenant)
        told = server.delete(f"{PREFIXES}{path_of(whole, 'pin')}", name=name, model=model, tenant=tenant)
        _tell(told, f"{told['name']} is not pinned any more", as_json)


@cache_app.command(epilog="Example: erllama cache evict 3f2a")
def evict(
    key: Prefix, model: Model = None, tenant: Tenant = None, host: Host = None, api_key: Key = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Delete a prefix, unless it is pinned or others begin with it."""
    with clear_errors(), Server(host, api_key) as server:
        whole = _whole_key(server, key, model, tenant)
        told = server.delete(f"{PREFIXES}{path_of(whole)}", model=model, tenant=tenant)
        _tell(told, f"{size(told['bytes'])} are free", as_json)


@cache_app.command(epilog="Example: erllama cache export 3f2a manual.kv")
def export(
    key: Prefix,
    file: Annotated[Path, typer.Argument(help="Where to; - is stdout.")],
    model: Model = None,
    tenant: Tenant = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """A prefix as one file, which another server of the same model can import."""
    with clear_errors(), Server(host, api_key) as server:
        whole = _whole_key(server, key, model, tenant)
        pieces = server.download(f"{PREFIXES}{path_of(whole, 'export')}", model=model, tenant=tenant)
        n_bytes = _written(pieces, file)
        if str(file) == "-":
            note(f"{size(n_bytes)} written")
        else:
            _tell({"key": whole, "file": str(file), "bytes": n_bytes}, f"{size(n_bytes)} in {file}", as_json)


@cache_app.command("import", epilog="Example: erllama cache import manual.kv")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `cache export` wrote.")],
    model: Model = None,
    tenant: Tenant = None,
    host: Host = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take a prefix over from a file. Each object of it is verified first."""
    with clear_errors(), Server(host, api_key) as server:
        told = server.upload(f"{PREFIXES}/import", _chunks(file), model=model, tenant=tenant)
        _tell(told, f"{told['tokens']} tokens, {size(told['bytes'])}", as_json)


@cache_app.command(epilog="Example: erllama cache verify /var/cache/erllama")
def verify(
    url: Url,
    option: Options = None,
    delete: Annotated[bool, typer.Option(help="Delete what is damaged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every object of a tier and check its digests. Exits with 1 when one is damaged."""
    from cache_store.verify import verify_tier

    n_objects = n_bytes = n_outdated = 0
    damaged: list[dict[str, str]] = []
    with clear_errors():
        for found in verify_tier(_tier(url, None, option), delete=delete):
            n_objects, n_bytes, n_outdated = n_objects + 1, n_bytes + found.n_bytes, n_outdated + found.outdated
            if found.problem:
                damaged.append({"name": found.name, "problem": found.problem})
                typer.secho(f"{found.name}: {found.problem}", fg="red", err=True)
    told = {"objects": n_objects, "bytes": n_bytes, "outdated": n_outdated, "damaged": damaged, "deleted": delete}
    _tell(
        told,
        f"{n_objects} objects, {size(n_bytes) or '0 bytes'}: {len(damaged)} damaged, {n_outdated} outdated",
        as_json,
    )
    if damaged:
        raise typer.Exit(REFUSED)


@cache_app.command(epilog="Example: erllama cache gc /var/cache/erllama --max-bytes 20GiB")
def gc(
    url: Url,
    max_bytes: Annotated[str, typer.Option(help='What the tier may hold: a number, or "20GiB".')],
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Bring a tier down to nine tenths of a size, least worth first, and sweep what dead writers left. For when no
    server runs that does it."""
    from cache_store import Store, StoreConfig

    with clear_errors():
        store = Store(StoreConfig((_tier(url, max_bytes, option),)))
        try:
            store.wait_loaded(_LISTED_S)
            report = store.collect_garbage(store.tier_labels[0], deadline_s=_COLLECTED_S)
        finally:
            store.close(timeout_s=10.0)
        told = {
            "bytes": report.n_bytes, "target_bytes": report.target_bytes, "evicted": report.evicted,
            "evicted_bytes": report.evicted_bytes, "swept": report.swept, "failure": report.failure,
        }  # fmt: skip
        freed = f"{report.evicted} objects, {size(report.evicted_bytes) or '0 bytes'} are gone"
        _tell(told, f"{freed}; {size(report.n_bytes) or '0 bytes'} are left", as_json)
        if not report.is_done:
            raise ErllamaError(report.failure or "what is left may not go: it is pinned")


def _tell(told: Any, text: str, as_json: bool) -> None:
    if as_json:
        print_json(told)
    else:
        typer.echo(text)


def _tier(url: str, max_bytes: str | None, options: list[str] | None) -> Any:
    """Raises `InvalidParameter`. A directory must be there: none is made for being looked at."""
    from cache_store.config import TierConfig

    given = dict(named_values("--option", options or []))
    try:
        tier = TierConfig(url, max_bytes, storage_options=given)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None
    if tier.is_local and not Path(tier.path).expanduser().is_dir():
        raise InvalidParameter(f"there is no directory {tier.path}")
    return tier


def _whole_key(server: Server, beginning: str, model: str | None, tenant: str | None) -> str:
    """Of a key that people have shortened. Raises `InvalidParameter` when several begin so."""
    if len(beginning) >= 64:
        return beginning
    listed = server.get(PREFIXES, model=model, tenant=tenant, limit=1000)["data"]
    found = [card["key"] for card in listed if card["key"].startswith(beginning)]
    if len(found) == 1:
        return str(found[0])
    what = "no stored prefix" if not found else f"{len(found)} stored prefixes"
    raise InvalidParameter(f"{what} of those last used begin with {beginning!r}", param="key")


def _replica_row(model: dict[str, Any], one: dict[str, Any]) -> tuple[object, ...]:
    prompt, cached = one.get("prompt_tokens") or 0, one.get("cached_tokens") or 0
    share = f"{cached / prompt:.0%}" if prompt else ""
    saves = sum((one.get("saves") or {}).values())
    return model["id"], str(one.get("id", ""))[:8], prompt, cached, share, saves, one.get("evictions")


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            yield piece


def _written(pieces: Generator[bytes, None, None], file: Path) -> int:
    """A file is there whole or not at all."""
    n_bytes = 0
    with closing(pieces):
        if str(file) == "-":
            for piece in pieces:
                n_bytes += sys.stdout.buffer.write(piece)
            return n_bytes
        part = file.with_name(file.name + ".part")
        try:
            with part.open("wb") as stream:
                for piece in pieces:
                    n_bytes += stream.write(piece)
            part.replace(file)
        except OSError as error:
            raise ErllamaError(f"cannot write {file}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
    return n_bytes
