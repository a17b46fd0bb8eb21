"""The commands for the hub, as somebody types them."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from erllama.cli.app import app


@pytest.fixture
def run(tmp_path):
    def run(*words, status=0):
        result = CliRunner().invoke(app, [*words, "--hub", str(tmp_path / "hub")], env={"COLUMNS": "200"})
        assert result.exit_code == status, result.output
        return result.output

    return run


def test_a_model_is_pulled_listed_copied_and_removed(run, tmp_path, tiny_bytes, monkeypatch):
    (tmp_path / "Tiny.gguf").write_bytes(tiny_bytes)
    monkeypatch.chdir(tmp_path)
    assert "success" in run("pull", "Tiny.gguf")
    run("cp", "tiny", "me/copy:v1")
    listed = run("list")
    assert [line.split()[0] for line in listed.splitlines()] == ["name", "me/copy:v1", "tiny"]
    assert "llama" in listed
    assert "0 bytes" in run("rm", "tiny")
    assert "0 bytes" not in run("rm", "me/copy:v1")
    assert "no models yet" in run("list")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("rm", "nothing"), "not in the hub"),
        (("cp", "nothing", "x"), "not in the hub"),
        (("pull", "/nowhere/m.gguf"), "no such file"),
        (("pull", "nothing://x"), "is no source"),
        (("rm", "a b"), "model name 'a b'"),
    ],
)
def test_an_error_is_one_line(run, words, error):
    output = run(*words, status=1)
    assert error in output
    assert "Traceback" not in output


def test_a_damaged_model_is_listed_with_a_warning(run, tmp_path):
    folder = tmp_path / "hub" / "manifests"
    folder.mkdir(parents=True)
    (folder / "broken@latest.json").write_text("{")
    output = run("list")
    assert "the manifest of broken is damaged" in output


def test_show_has_the_template_whole_only_when_asked_and_texts_are_no_markup(run):
    assert "characters; --verbose shows it" in run("show", "demo")
    assert "messages[0].role" in run("show", "demo", "--verbose")


def test_what_a_command_does_not_need_is_not_imported():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['huggingface_hub', 'pydantic', 'llama_cpp', 'ray', 'prompt_toolkit']); "
        "import erllama.cli.app"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
