"""The steps of `release/first_answer.py` against commands and servers that do the wrong thing; `make
release-check` runs them against the real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from release import first_answer
from release.first_answer import Home, NotServed, ask, check_page, stop, wait_until_ready


@pytest.fixture
def home(tmp_path: Path) -> Callable[[str], Home]:
    """A user of an environment whose `erllama` is this shell script."""

    def make(script: str) -> Home:
        program, folder = tmp_path / "environment/bin/erllama", tmp_path / "home"
        program.parent.mkdir(parents=True)
        folder.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return Home(tmp_path / "environment", folder)

    return make


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def test_a_command_is_run_as_a_user_who_has_nothing(home, monkeypatch, tmp_path):
    for name in ("ERLLAMA_HOST", "PYTHONPATH", "XDG_CACHE_HOME", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "ours")
    told = home(
        'printf \'{"argv": "%s", "env": "%s", "home": "%s", "cwd": "%s"}\' "$*" "$(env | grep -c =ours)" "$HOME" "$PWD"'
    )
    folder = str(tmp_path / "home")
    assert told.told("show", "demo") == {"argv": "show demo --json", "env": "0", "home": folder, "cwd": folder}


def test_a_command_that_fails_is_told_with_its_words(home):
    with pytest.raises(NotServed, match="exits with 2: no such file"):
        home("echo no such file >&2; exit 2").told("show", "demo")


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_status(home):
    with home("echo broken; exit 3").serving() as process, client(refused) as http:
        process.wait()
        with pytest.raises(NotServed, match="exit status 3"):
            wait_until_ready(http, process)


def test_what_the_server_says_is_kept(home):
    user = home("echo broken; exit 3")
    with user.serving() as process:
        process.wait()
    assert user.log.read_text() == "broken\n"


def test_a_server_is_waited_for_until_it_is_ready(home, monkeypatch):
    monkeypatch.setattr(first_answer, "POLL_S", 0.0)
    answers = iter([503, 503, 200])
    with home("exec sleep 60").serving() as process:
        with client(lambda _: httpx.Response(next(answers))) as http:
            wait_until_ready(http, process)
        assert next(answers, None) is None
    assert process.returncode == -15


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (httpx.Response(503, text="loading"), "answered with 503: loading"),
        (httpx.Response(200, json={"choices": [{"message": {"content": ""}}]}), "reply is empty"),
    ],
)
def test_a_chat_without_an_answer_is_told(reply, reason):
    with client(lambda _: reply) as http, pytest.raises(NotServed, match=reason):
        ask(http)


def test_a_root_that_is_no_page_is_told():
    answer = httpx.Response(200, text="Ollama is running")
    with client(lambda _: answer) as http, pytest.raises(NotServed, match="Ollama is running"):
        check_page(http)


@pytest.mark.parametrize(("code", "reason"), [("raise SystemExit(4)", "ends with 4"), ("", None)])
def test_the_status_after_sigterm_counts(code, reason):
    source = f"import signal, sys\ndef end(*_):\n    {code or 'raise SystemExit(0)'}\nsignal.signal(15, end)\nprint(flush=True)\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if reason is None:
            stop(process)
        else:
            with pytest.raises(NotServed, match=reason):
                stop(process)
