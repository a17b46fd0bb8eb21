"""Whatever README and docs show is run, or is checked as far as it can be. A block that cannot be run
says why, in a comment before it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from deployments.config import BuildArgs
from deployments.launch import load_args
from docs.generate.command_reference import commands as erllama_commands
from docs.generate.config_keys import all_keys
from erllama.cli.app import app as app_of_commands
from tests.support.http_fakes import FakeModel, app_of, http_client, served
from tests.support.http_site import serving
from tests.support.hub_fakes import FakeLibrary, manifest
from tests.support.snippets import PAGES, ROOT, Snippet, all_snippets, code_spans, commands

ALL = all_snippets()
COMMANDS = dict(erllama_commands())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KEYS = {key.path.replace("[]", "") for key in all_keys()}
# tests/serve and tests/deployments/doctor run those
BECOMES_ANOTHER = {"erllama serve", "erllama doctor"}
HASH = "sha256:" + "0" * 64


def of(language: str, *, run: bool = True) -> list[Snippet]:
    return [each for each in ALL if each.language == language and bool(each.not_run) != run]


def app():
    return app_of(served(FakeModel(), aliases=("qwen:0.5b",)))


def test_every_block_has_a_language_that_something_checks():
    assert len(ALL) > 20
    assert {each.language for each in ALL} <= {"sh", "python", "yaml", "toml", "text"}


# --- shell ----------------------------------------------------------------------------------------


async def check_curl(words: list[str]) -> None:
    """Asked of the application with a fake model: the route is there, and takes the body."""
    body = words[words.index("-d") + 1] if "-d" in words else None
    (url,) = [word for word in words if re.match(r"(https?://)?(localhost|127\.0\.0\.1):8000/", word)]
    path = urlsplit(url if "://" in url else f"http://{url}").path
    async with http_client(app()) as client:
        reply = await (client.post(path, json=json.loads(body)) if body else client.get(path))
    if path.startswith("/erllama/v1"):  # the fake has no store; the route is there
        assert reply.json()["error"]["code"] == "not_supported", reply.text
    else:
        assert reply.status_code == 200, reply.text


def check_erllama(words: list[str]) -> None:
    """It is run, against the application with a fake model and a hub; of what becomes another program the
    options are parsed alone.
    """
    name = next(n for n in (" ".join(words[:length]) for length in (3, 2)) if n in COMMANDS)
    COMMANDS[name].make_context(name, list(words[len(name.split()) :]))
    if name in BECOMES_ANOTHER:
        return
    with serving(app_of(served(FakeModel()), library=FakeLibrary(manifest("qwen:0.5b")))) as url:
        result = CliRunner().invoke(app_of_commands, words[1:], input="Hello\n", env={"ERLLAMA_HOST": url})
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def check_files(words: list[str], *, behind: str) -> None:
    """The file that an option names is there."""
    for option, value in pairwise(words):
        if option == behind:
            assert (ROOT / value).is_file(), value


def check_pip(words: list[str]) -> None:
    for names in re.findall(r"\[([a-z0-9,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= PROJECT["optional-dependencies"].keys()
    check_files(words, behind="-c")


def run_example(words: list[str]) -> str:
    """What a script of examples/ prints of the demo model."""
    assert words[1] == "examples/memory_need.py", "other scripts need a check of their own"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        importlib.import_module("examples.memory_need").main(["demo" if w == "MODEL.gguf" else w for w in words[2:]])
    return out.getvalue()


def check_python(words: list[str]) -> None:
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2])
    else:
        assert "RAM, all together" in run_example(words)


async def check(words: list[str]) -> None:
    match words:
        case ["make", *targets]:
            assert {target for target in targets if "=" not in target} <= TARGETS
        case ["erllama", *_]:
            check_erllama(words)
        case ["curl", *_]:
            await check_curl(words)
        case ["pip", "install", *_]:
            check_pip(words)
        case ["python", *_]:
            check_python(words)
        case ["serve", "deploy" | "run", config]:
            assert load_args(ROOT / config)
        case ["ray", "job", "submit", "--", _, script, *_]:
            check_files(["file", script.removeprefix("$PWD/")], behind="file")
        case ["docker", *_] | ["kubectl", "apply", *_]:
            check_files(words, behind="-f")
        case ["ray", "start", *_] | ["kubectl", "create" | "port-forward", *_] | ["printf" | "openssl", *_]:
            pass  # programs of others
        case _:
            raise AssertionError(f"nothing checks {words}")


@pytest.mark.anyio
@pytest.mark.parametrize("snippet", of("sh") + of("sh", run=False), ids=str)
async def test_shell(snippet: Snippet):
    for words in commands(snippet.text):
        await check(words)


def test_commands_are_taken_apart():
    script = (
        "A=1 make serve  # note\n.venv/bin/erllama run x 'two\nlines' | env $(python -m m --env) ray \\\n start > f\n"
    )
    assert commands(script) == [
        ["python", "-m", "m", "--env"],
        ["make", "serve"],
        ["erllama", "run", "x", "two\nlines"],
        ["ray", "start"],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "erllama complete Hello",
        "erllama run demo --loud",
        "erllama pull",
        "erllama run nemo Hello",
        "make coffee",
        "vim x",
        "pip install 'e[x]'",
    ],
)
@pytest.mark.anyio
async def test_what_is_wrong_is_found(line: str):
    with pytest.raises(BaseException):  # noqa: B017, PT011 - each check has its own way
        await check(commands(line)[0])


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", of("yaml"), ids=str)
def test_configurations_are_taken(snippet: Snippet, tmp_path):
    text = snippet.text.replace("sha256:...", HASH)
    document = yaml.safe_load(text)
    if "applications" in document:
        config = tmp_path / "serve.yaml"
        config.write_text(text)
        assert load_args(config)
        return
    BuildArgs.model_validate({"models": [{"id": "demo", "path": "demo"}], **document})


@pytest.mark.parametrize("snippet", of("toml"), ids=str)
def test_codex_is_pointed_at_a_route(snippet: Snippet):
    config = tomllib.loads(snippet.text)
    provider = config["model_providers"][config["model_provider"]]
    path = f"{urlsplit(provider['base_url']).path}/{provider['wire_api']}"
    assert path == "/v1/responses"


# --- Python ---------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("snippet", of("python"), ids=str)
def test_python(snippet: Snippet, tmp_path, capsys):
    """With the demo model in this process; clients ask the application with a fake model."""
    with serving(app()) as url:
        text = snippet.text.replace("http://127.0.0.1:8000", url).replace("/tmp/kv", str(tmp_path))
        exec(compile(text, str(snippet), "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("snippet", of("python", run=False), ids=str)
def test_what_a_snippet_imports_is_there(snippet: Snippet):
    for node in ast.walk(ast.parse(snippet.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


# --- prose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_keys_and_files_in_prose_exist(page: Path):
    wrong = []
    for span in code_spans(page):
        words = span.removeprefix(".venv/bin/").split()
        if words[0] == "erllama" and len(words) > 1:
            known = any(
                name in COMMANDS or name == "erllama cache" for name in (" ".join(words[:3]), " ".join(words[:2]))
            )
            wrong += [] if known else [span]
        key = re.fullmatch(r"(?:models|store|policy|http|hub|routing|failover|scheduler)\.[a-z_.]+", span.split(":")[0])
        if key and not any(path == key[0] or path.startswith(f"{key[0]}.") for path in KEYS):
            wrong.append(span)
        if re.fullmatch(r"(?:cache_store|erllama|deployments|deploy|bench|examples|tests|docs)/[\w./-]+\.\w+", span):
            wrong += [] if (ROOT / span).exists() else [span]
    assert not wrong


@pytest.mark.model
@pytest.mark.parametrize("snippet", of("text"), ids=str)
def test_outputs_are_what_is_printed(snippet: Snippet, monkeypatch, tmp_path):
    """Every block of text is one, so none can grow old. What depends on the processor, or is a path, is
    written as "...".
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (words,) = commands(snippet.printed_by)
    if words[0] == "python":
        printed = run_example(words)
    else:
        result = CliRunner().invoke(app_of_commands, words[1:])
        assert result.exit_code == 0, result.output
        printed = result.output
    shown = [re.escape(" ".join(line.split())).replace(r"\.\.\.", ".*") for line in snippet.text.strip().splitlines()]
    printed_lines = [" ".join(line.split()) for line in printed.strip().splitlines()]
    assert len(shown) == len(printed_lines), printed
    for pattern, line in zip(shown, printed_lines, strict=True):
        assert re.fullmatch(pattern, line), printed


def test_links_of_the_readme_lead_somewhere():
    """Those of docs/ are checked by `make docs`."""
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https:") and not (ROOT / link).exists()] == []
