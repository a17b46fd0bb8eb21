"""`python -m release.first_answer ENVIRONMENT`: what a new user does with an environment into which
the wheel was installed. No config, an empty home, an empty working directory: the version, the demo
model's header, a server, a chat, the page, and SIGTERM.

The server is the default one at port 8000; Ray must not run on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

URL = "http://127.0.0.1:8000"
COMMAND_S = 60.0
START_S = 180.0  # Ray, and a demo model that is tried in a child process first
STOP_S = 90.0
POLL_S = 0.5
REPLY_TOKENS = 16


class NotServed(Exception):
    """A step did not do what it should; the message says which, and what it said."""


class Home:
    """A user who has just installed the wheel: `environment` is a virtual environment, `folder` an empty
    directory that is home and working directory alike."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self._erllama = str(environment.resolve() / "bin" / "erllama")
        self._folder = folder
        path = f"{environment.resolve() / 'bin'}{os.pathsep}{os.environ['PATH']}"
        unwanted = ("PYTHON", "ERLLAMA", "XDG", "RAY")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        self._environment = {**kept, "HOME": str(folder), "PATH": path}
        self.log = folder / "serve.log"

    def told(self, *arguments: str) -> dict[str, object]:
        """What a command with `--json` prints. Raises `NotServed`."""
        command = [self._erllama, *arguments, "--json"]
        ran = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=COMMAND_S
        )
        if ran.returncode:
            raise NotServed(f"{' '.join(command)} exits with {ran.returncode}: {ran.stderr or ran.stdout}")
        told: dict[str, object] = json.loads(ran.stdout)
        return told

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`erllama serve`, which is told to stop at the end, and killed if it does not. What it started
        goes with it only if it stops."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [self._erllama, "serve"], cwd=self._folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


def check_port() -> None:
    """Raises `NotServed` where somebody serves already: the answer would be theirs."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            raise NotServed(f"{URL} is taken: stop what runs there")


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Raises `NotServed` when the process ends first or `START_S` are over."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        time.sleep(POLL_S)
    raise NotServed(f"no server is ready after {START_S:g} s; exit status {process.poll()}")


def ask(client: httpx.Client) -> Mapping[str, object]:
    """One chat; its usage. Raises `NotServed`."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": REPLY_TOKENS}
    reply = client.post("/v1/chat/completions", json=body)
    if reply.status_code != httpx.codes.OK:
        raise NotServed(f"a chat is answered with {reply.status_code}: {reply.text}")
    if not reply.json()["choices"][0]["message"]["content"]:
        raise NotServed(f"a chat's reply is empty: {reply.text}")
    usage: Mapping[str, object] = reply.json()["usage"]
    return usage


def check_page(client: httpx.Client) -> None:
    """Raises `NotServed` without the page."""
    page = client.get("/", headers={"accept": "text/html"})
    if "text/html" not in page.headers.get("content-type", ""):
        raise NotServed(f"/ is no page but {page.text[:200]!r}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and its exit status. Raises `NotServed` unless that is 0."""
    process.terminate()
    try:
        status = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        raise NotServed(f"the server still runs {STOP_S:g} s after SIGTERM") from None
    if status:
        raise NotServed(f"the server ends with {status}")


def first_answer(home: Home) -> None:
    """All of it; prints what it took. Raises `NotServed`."""
    check_port()
    print("version:", home.told("version"))
    print("demo:", home.told("show", "demo").get("architecture"))
    started = time.monotonic()
    with home.serving() as process, httpx.Client(base_url=URL, timeout=60) as client:
        wait_until_ready(client, process)
        print(f"ready after {time.monotonic() - started:.1f} s")
        print("answered:", dict(ask(client)))
        check_page(client)
        stopping = time.monotonic()
        stop(process)
        print(f"stopped in {time.monotonic() - stopping:.1f} s")


def main(environment: Path) -> None:
    """Exits with 1 and the reason, behind the end of the server's log, when a step fails."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(environment, Path(folder))
        try:
            first_answer(home)
        except NotServed as error:
            log = home.log.read_text(errors="replace")[-4000:] if home.log.exists() else ""
            sys.exit(f"{log}\n{error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
