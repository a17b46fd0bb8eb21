"""`erllama launch` against the real HTTP app with a model that needs nothing, and an agent that tells
how it was started.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.access.keys import KeySpec
from erllama.api_keys import key_hash
from erllama.cli.app import app
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, served
from tests.support.http_site import serving

ROOT = Path(__file__).resolve().parents[3]
KEY = "sk-of-alice"
AGENT = """#!{python}
import json, os, sys
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ)}}))
"""


@pytest.fixture(scope="module")
def site():
    models = [
        served(FakeModel(), FakePrompts(n_ctx=4096), id="small"),
        served(FakeModel(), FakePrompts(n_ctx=65536), id="large"),
    ]
    with serving(app_of(*models)) as url:
        yield url


@pytest.fixture(scope="module")
def keyed_site():
    keys = (KeySpec(name="alice", hash=key_hash(KEY)),)
    with serving(app_of(served(FakeModel()), api_keys=keys)) as url:
        yield url


def invoke(*words, **env):
    return CliRunner().invoke(app, ["launch", *words], env={"COLUMNS": "200", "ERLLAMA_API_KEY": None, **env})


def test_printing_shows_all_and_writes_nothing(site, tmp_path):
    shown = invoke("opencode", "--model", "large", "--host", site, "--print", XDG_STATE_HOME=str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert f"export OPENCODE_CONFIG={tmp_path}/erllama/launch/opencode/opencode.json" in shown.stdout
    assert f'"baseURL": "{site}/v1"' in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_does_in_a_shell_what_launch_does(site, tmp_path):
    """The files of both are the same, down to what a shell would expand."""
    printed = invoke("codex", "--model", "large", "--host", site, "--print", XDG_STATE_HOME=str(tmp_path))
    told = invoke("codex", "--model", "large", "--host", site, "--json", XDG_STATE_HOME=str(tmp_path))
    lines = printed.stdout.splitlines()
    subprocess.run(["sh", "-e", "-c", "\n".join(lines[:-1])], check=True)
    [(path, text)] = json.loads(told.stdout)["files"].items()
    assert Path(path).read_text() == text
    assert json.loads(text)["models"][1]["context_window"] == 65536


def test_a_key_is_sent_and_not_shown(keyed_site):
    for form in ("--print", "--json"):
        shown = invoke("continue", "--host", keyed_site, form, ERLLAMA_API_KEY=KEY)
        assert shown.exit_code == 0, shown.output
        assert KEY not in shown.output
        assert "$ERLLAMA_API_KEY" in shown.stdout


def test_an_agent_is_started_with_its_environment_and_files(site, tmp_path):
    program = tmp_path / "bin" / "codex"
    program.parent.mkdir()
    program.write_text(AGENT.format(python=sys.executable))
    program.chmod(0o755)
    command = [sys.executable, "-m", "erllama.cli.app", "launch", "codex", "--model", "large", "--host", site]
    started = subprocess.run(
        [*command, "--", "exec", "--json", "hi"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    argv = json.loads(started.stdout)["argv"]
    assert argv[-3:] == ["exec", "--json", "hi"]
    catalog = tmp_path / "erllama" / "launch" / "codex" / "models.json"
    assert f'model_catalog_json="{catalog}"' in argv
    assert [model["slug"] for model in json.loads(catalog.read_text())["models"]] == ["small", "large"]


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["nobody"], 1, "none of claude, codex"),
        (["claude"], 1, "choose one of the server's models: small, large"),
        (["claude", "--model", "larg"], 1, "did you mean large"),
        (["claude", "--model", "small"], 1, "needs a context of at least"),
        (["claude", "--model", "small", "--force"], 1, "npm install -g @anthropic-ai/claude-code"),
        (["aider", "--model", "large"], 1, "aider is not installed"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(site, tmp_path, words, exit_code, told):
    refused = invoke(*words, "--host", site, PATH=str(tmp_path), XDG_STATE_HOME=str(tmp_path / "state"))
    assert refused.exit_code == exit_code
    assert told in refused.stderr
    assert "Traceback" not in refused.output
    assert not (tmp_path / "state").exists()


def test_a_server_with_keys_asks_for_one(keyed_site):
    refused = invoke("claude", "--host", keyed_site, "--print")
    assert (refused.exit_code, "set ERLLAMA_API_KEY" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("host", "exit_code"), [("http://127.0.0.1:1", 3), ("ftp://box", 1), ("http://", 1), ("http://box:port", 1)]
)
def test_no_server_has_an_exit_code_of_its_own(host, exit_code):
    refused = invoke("claude", "--host", host, "--print")
    assert refused.exit_code == exit_code
    assert refused.stderr.startswith("error: ")
