"""The commands for stored prefixes: over HTTP with a real store below, and on a tier itself."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from erllama.cli.app import app
from tests.support.admin_site import TEXT
from tests.support.admin_site import site as admin_site
from tests.support.http_site import serving


def run(*words, url=None, status=0):
    result = CliRunner().invoke(app, [*words], env={"COLUMNS": "200", **({"ERLLAMA_HOST": url} if url else {})})
    assert result.exit_code == status, (result.output, result.exception)
    return result.stderr if status else result.stdout


@pytest.fixture
def stored(tmp_path):
    """The URL of a server that has stored a prefix, its key, and the folder of its tier."""
    with _loop() as submit:
        context = admin_site(tmp_path)
        one = submit(context.__aenter__())
        try:
            kept = submit(one.kept())
            assert one.replicas[0]._model.store.flush(30)
            with serving(_on_loop(one.app, submit.loop)) as url:
                yield url, kept["key"], tmp_path / "kv"
        finally:
            submit(context.__aexit__(None, None, None))


@contextmanager
def _loop():
    """An event loop on a thread, on which replicas live that a server on another one asks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def submit(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    submit.loop = loop
    try:
        yield submit
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _on_loop(app, loop):
    """`app`, whose requests run on another event loop than their server."""

    async def bridged(scope, receive, send):
        here = asyncio.get_running_loop()

        def there(function):
            async def call(*args):
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*args), here))

            return call

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(app(scope, there(receive), there(send)), loop))

    return bridged


def test_a_prefix_is_listed_pinned_exported_evicted_and_imported(stored, tmp_path):
    url, key, _ = stored
    [line] = [line for line in run("cache", "ls", url=url).splitlines() if line.startswith(key[:16])]
    assert TEXT[:20].split()[0] in line
    assert "tokens are pinned as manual" in run("cache", "pin", key[:8], "--name", "manual", url=url)
    assert "pinned" in run("cache", "evict", key[:8], url=url, status=1)
    run("cache", "unpin", key[:8], "--name", "manual", url=url)
    file = tmp_path / "it.kv"
    told = json.loads(run("cache", "export", key[:8], str(file), "--json", url=url))
    assert (told["key"], told["bytes"]) == (key, file.stat().st_size)
    assert file.stat().st_size > 1000
    assert not list(tmp_path.glob("*.part"))
    assert json.loads(run("cache", "evict", key, "--json", url=url))["deleted"]
    assert "900 tokens" in run("cache", "import", str(file), url=url)
    assert key in {card["key"] for card in json.loads(run("cache", "ls", "--json", url=url))["data"]}
    assert "no stored prefix" in run("cache", "pin", "ffffff", url=url, status=1)


def test_why_names_the_cause_of_each_of_the_last_requests(stored):
    url, *_ = stored
    [line] = run("why", url=url).splitlines()[1:]
    assert "first_seen" in line
    [card] = json.loads(run("why", "--json", url=url))["data"]
    told = run("why", card["id"], url=url)
    assert "first_seen" in told
    assert "900 tokens" in told
    assert "nobody" in run("why", "nobody", url=url, status=1)


def test_a_tier_is_verified_and_what_is_damaged_is_named_and_deleted(stored):
    _, _, folder = stored
    objects = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".parquet" and path.stat().st_size > 2000
    ]
    told = json.loads(run("cache", "verify", str(folder), "--json"))
    assert told["objects"] >= len(objects) > 0
    assert told["damaged"] == []
    data = bytearray(objects[0].read_bytes())
    data[len(data) // 2] ^= 1
    objects[0].write_bytes(data)
    assert "1 damaged" in CliRunner().invoke(app, ["cache", "verify", str(folder)]).stdout
    run("cache", "verify", str(folder), "--delete", status=1)
    assert not objects[0].exists()
    run("cache", "verify", str(folder))


def test_garbage_is_collected_down_to_a_size(stored):
    _, _, folder = stored
    total = json.loads(run("cache", "verify", str(folder), "--json"))["bytes"]
    told = json.loads(run("cache", "gc", str(folder), "--max-bytes", str(total // 2), "--json"))
    assert told["evicted"] > 0
    assert json.loads(run("cache", "verify", str(folder), "--json"))["bytes"] <= total // 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("verify", "/nowhere/at/all"), "no directory"),
        (("verify", "nothing://x"), "nothing"),
        (("verify", "/tmp", "--option", "x"), "NAME=VALUE"),
        (("gc", "/nowhere/at/all", "--max-bytes", "1"), "no directory"),
        (("gc", "/tmp", "--max-bytes", "much"), "max_bytes"),
    ],
)
def test_a_tier_that_cannot_be_is_refused(words, error):
    said = run("cache", *words, status=1)
    assert error in said
    assert "Traceback" not in said
