"""`python -m deploy.release_check`: build the wheel from what git tracks, look into it, install it
into an empty environment and serve the demo model from there. Exits with 1 and the reasons where
something is wrong. Takes two to three minutes, most of it pip's.

No Ray may run on the machine meanwhile. `--no-serve` leaves the installation out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from packaging.metadata import Metadata

from deploy.wheel_check import changelog_problems, content_problems, metadata_problems, mode_problems, read_wheel

ROOT = Path(__file__).resolve().parents[1]
START_S = 180.0
STOP_S = 90.0


class ReleaseError(Exception):
    """The release is not fit; the message says why, a line for each reason."""


def tracked_files() -> list[str]:
    """Relative to the root; those that were removed and not yet committed are left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def executables(tracked: Sequence[str]) -> list[str]:
    """Those of the files that may be executed."""
    return [name for name in tracked if os.access(ROOT / name, os.X_OK)]


def build(folder: Path, tracked: Sequence[str]) -> Path:
    """The wheel, made from a copy: setuptools packs whatever an earlier build left in `build/lib`."""
    source, out = folder / "source", folder / "dist"
    for name in tracked:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)  # with the mode: one of them is executed
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)])
    (wheel,) = out.glob("*.whl")
    return wheel


def examine(path: Path, tracked: Sequence[str]) -> str:
    """The version of a wheel without faults. Raises `ReleaseError`."""
    wheel = read_wheel(path)
    problems = [
        *metadata_problems(wheel.metadata),
        *content_problems(wheel, tracked),
        *mode_problems(wheel, executables(tracked)),
    ]
    version = str(Metadata.from_email(wheel.metadata, validate=False).version)
    problems += changelog_problems((ROOT / "CHANGELOG.md").read_text(), version)
    if problems:
        raise ReleaseError("\n".join(problems))
    return version


def install(folder: Path, wheel: Path, cache_dir: str | None) -> Path:
    """The `bin` of a new environment that has the wheel and what it needs, nothing else. `cache_dir`:
    pip's, which has llama.cpp built.
    """
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    cache = [] if cache_dir is None else ["--cache-dir", cache_dir]
    constraints = str(ROOT / "constraints.txt")
    run([str(binaries / "pip"), "install", "--quiet", *cache, "-c", constraints, str(wheel)])
    run([str(binaries / "pip"), "check"])
    return binaries


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """What it prints. Raises `ReleaseError` with the end of its output."""
    done = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command)} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _environment(home: Path | None) -> dict[str, str]:
    """Without this checkout on Python's path, and with caches below `home`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept if home is None else {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def try_commands(binaries: Path, folder: Path, version: str) -> None:
    """`erllama version` and `show demo` of the installed package."""
    erllama = str(binaries / "erllama")
    told = json.loads(run([erllama, "version", "--json"], folder))
    if told["erllama"] != version:
        raise ReleaseError(f"erllama version says {told['erllama']}, the wheel is {version}")
    if "erllama demo" not in run([erllama, "show", "demo"], folder):
        raise ReleaseError("erllama show demo does not name the demo model")


@contextmanager
def served(binaries: Path, folder: Path) -> Iterator[str]:
    """The URL of `erllama serve` with the package's own config at a free port, stopped by SIGTERM.
    Raises `ReleaseError` when it does not leave in order.
    """
    package = run([str(binaries / "python"), "-c", "import deployments; print(deployments.__path__[0])"], folder)
    config = yaml.safe_load((Path(package.strip()) / "default_config.yaml").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config["http_options"]["port"] = port
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    log = folder / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(binaries / "erllama"), "serve", "serve.yaml"],
            cwd=folder,
            env=_environment(folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log)
        yield url
    finally:
        _stop(process, log)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=10) as reply:
                if reply.status == 200:
                    return
        except OSError:  # not yet: refused, or 503
            pass
        time.sleep(0.25)
    raise ReleaseError(f"erllama serve is not ready; its log ends with:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise ReleaseError(f"erllama serve exited with {process.returncode}:\n{log.read_text()[-3000:]}")


def ask(url: str) -> str:
    """One reply of the demo model."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        text = json.load(reply)["choices"][0]["message"]["content"]
    if not text:
        raise ReleaseError("the demo model answered with nothing")
    return str(text)


def check(options: argparse.Namespace, folder: Path) -> None:
    """All of it, a line for each step. Raises `ReleaseError`."""
    tracked = tracked_files()
    wheel = build(folder, tracked)
    version = examine(wheel, tracked)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, metadata and contents are in order", flush=True)
    if options.no_serve:
        return
    started = time.monotonic()
    binaries = install(folder, wheel, options.cache_dir)
    print(f"installed into an empty environment in {time.monotonic() - started:.0f} s", flush=True)
    home = folder / "home"
    home.mkdir()
    try_commands(binaries, home, version)
    print("erllama version and erllama show demo answer", flush=True)
    started = time.monotonic()
    with served(binaries, home) as url:
        print(f"erllama serve was ready after {time.monotonic() - started:.0f} s and says {ask(url)!r}", flush=True)
    print("and stopped in order")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-serve", action="store_true", help="only build the wheel and look into it")
    parser.add_argument("--cache-dir", help="pip's cache with a built llama.cpp")
    with tempfile.TemporaryDirectory(prefix="erllama-release-") as folder:
        try:
            check(parser.parse_args(argv), Path(folder))
        except ReleaseError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
