"""What each agent is told: the shapes that the real programs read."""

import itertools
import json
import os
import tomllib

import pytest

from erllama.agents.setup import AgentSetup, Endpoint, state_dir, write_files
from erllama.agents.table import AGENTS, WORK_TOKENS, short_of_context

CATALOG = '{"models": [{"slug": "qwen3:8b"}]}'
KEYED = Endpoint("http://box:8000", "qwen3:8b", "sk-secret", 32_768, CATALOG)
BARE = Endpoint("http://box:8000", "qwen3:8b")


def made(name, tmp_path, at=KEYED, *arguments) -> AgentSetup:
    return AGENTS[name].setup(at, tmp_path, arguments)


def toml_of(argv) -> dict:
    """What Codex makes of its `-c` options."""
    lines = [value for option, value in itertools.pairwise(argv) if option == "-c"]
    return tomllib.loads("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude", {"ANTHROPIC_BASE_URL": "http://box:8000", "ANTHROPIC_AUTH_TOKEN": "sk-secret"}),
        ("qwen", {"OPENAI_BASE_URL": "http://box:8000/v1", "OPENAI_API_KEY": "sk-secret", "OPENAI_MODEL": "qwen3:8b"}),
        ("gemini", {"GOOGLE_GEMINI_BASE_URL": "http://box:8000", "GEMINI_API_KEY": "sk-secret"}),
        ("aider", {"OPENAI_API_BASE": "http://box:8000/v1", "OPENAI_API_KEY": "sk-secret"}),
        (
            "goose",
            {"GOOSE_PROVIDER": "openai", "OPENAI_HOST": "http://box:8000", "OPENAI_BASE_PATH": "v1/chat/completions"},
        ),
    ],
)
def test_the_environment_points_at_the_server(name, expected, tmp_path):
    env = made(name, tmp_path).env
    assert {variable: env.get(variable) for variable in expected} == expected


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_gets_the_model_the_users_arguments_last_and_only_files_of_its_own(name, tmp_path):
    setup = made(name, tmp_path, KEYED, "one", "--two")
    assert setup.argv[-2:] == ("one", "--two")
    told = [*setup.argv, *setup.env.values(), *setup.files.values()]
    assert any("qwen3:8b" in text for text in told)
    assert any("http://box:8000" in text for text in told)
    assert all(path.is_relative_to(tmp_path) for path in setup.files)


@pytest.mark.parametrize("name", AGENTS)
def test_no_agent_is_told_a_key_where_there_is_none(name, tmp_path):
    setup = made(name, tmp_path, BARE)
    assert "None" not in json.dumps([setup.argv, dict(setup.env), list(setup.files.values())])


def test_claude_code_asks_for_one_model_under_all_of_its_names(tmp_path):
    setup = made("claude", tmp_path)
    names = {name: value for name, value in setup.env.items() if name.endswith("_MODEL")}
    assert set(names) == {
        "ANTHROPIC_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    }
    assert set(names.values()) == {"qwen3:8b"}


@pytest.mark.parametrize(("context", "told"), [(None, None), (32_768, None), (131_072, "131072")])
def test_claude_code_is_told_a_context_that_it_can_take(context, told, tmp_path):
    at = Endpoint("http://box", "m", context=context)
    assert made("claude", tmp_path, at).env.get("CLAUDE_CODE_AUTO_COMPACT_WINDOW") == told


def test_a_key_of_the_maker_does_not_reach_the_server(tmp_path):
    base = {"ANTHROPIC_API_KEY": "sk-of-the-maker", "PATH": "/bin", "ANTHROPIC_BASE_URL": "https://elsewhere"}
    env = made("claude", tmp_path).environment(base)
    assert "sk-of-the-maker" not in env.values()
    assert (env["PATH"], env["ANTHROPIC_BASE_URL"]) == ("/bin", "http://box:8000")


def test_codex_gets_a_provider_and_its_list_of_models(tmp_path):
    setup = made("codex", tmp_path)
    assert toml_of(setup.argv) == {
        "model": "qwen3:8b",
        "model_provider": "erllama",
        "model_catalog_json": str(tmp_path / "models.json"),
        "model_providers": {
            "erllama": {
                "name": "erllama",
                "base_url": "http://box:8000/v1",
                "wire_api": "responses",
                "env_key": "ERLLAMA_API_KEY",
            }
        },
    }
    assert setup.files == {tmp_path / "models.json": CATALOG}
    assert setup.env == {"ERLLAMA_API_KEY": "sk-secret"}


def test_codex_without_key_and_list_names_neither(tmp_path):
    setup = made("codex", tmp_path, BARE)
    told = toml_of(setup.argv)
    assert "model_catalog_json" not in told
    assert "env_key" not in told["model_providers"]["erllama"]
    assert (setup.files, setup.env) == ({}, {})


def test_opencode_gets_a_provider_with_limits_and_reads_the_key_from_the_environment(tmp_path):
    setup = made("opencode", tmp_path)
    [(path, text)] = setup.files.items()
    config = json.loads(text)
    assert (config["model"], config["small_model"]) == ("erllama/qwen3:8b", "erllama/qwen3:8b")
    provider = config["provider"]["erllama"]
    assert provider["npm"] == "@ai-sdk/openai-compatible"
    assert provider["options"] == {"baseURL": "http://box:8000/v1", "apiKey": "{env:ERLLAMA_API_KEY}"}
    assert provider["models"]["qwen3:8b"]["limit"] == {"context": 32_768, "output": 8192}
    assert setup.env == {"ERLLAMA_API_KEY": "sk-secret", "OPENCODE_CONFIG": str(path)}
    [bare] = made("opencode", tmp_path, BARE).files.values()
    assert "limit" not in json.loads(bare)["provider"]["erllama"]["models"]["qwen3:8b"]


def test_gemini_cli_gets_a_home_where_no_other_sign_in_is_chosen(tmp_path):
    setup = made("gemini", tmp_path)
    [(path, text)] = setup.files.items()
    assert path == tmp_path / ".gemini" / "settings.json"
    assert setup.env["GEMINI_CLI_HOME"] == str(tmp_path)
    assert json.loads(text)["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert setup.environment({"GOOGLE_GENAI_USE_VERTEXAI": "true"}).keys() == setup.env.keys()


def test_continue_gets_one_model_of_an_openai_provider(tmp_path):
    setup = made("continue", tmp_path, KEYED, "-p", "hi")
    assert setup.argv == ("cn", "--config", str(tmp_path / "config.yaml"), "-p", "hi")
    [text] = setup.files.values()
    [model] = json.loads(text)["models"]
    assert model == {
        "name": "qwen3:8b",
        "provider": "openai",
        "model": "qwen3:8b",
        "apiBase": "http://box:8000/v1",
        "apiKey": "sk-secret",
    }


def test_a_context_without_room_for_the_first_prompt_is_too_small():
    claude = AGENTS["claude"]
    least = claude.first_prompt + WORK_TOKENS
    assert short_of_context(claude, least) is None
    told = short_of_context(claude, least - 1)
    assert str(least) in told
    assert str(least - 1) in told
    assert short_of_context(claude, None) is None
    assert short_of_context(AGENTS["goose"], 512) is None, "nobody has measured it"


def test_files_are_for_their_user_alone_and_replace_what_was_there(tmp_path):
    path = tmp_path / "deep" / "er" / "config.json"
    write_files({path: "old"})
    write_files({path: "new"})
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o077 == 0
    assert os.listdir(path.parent) == ["config.json"]


def test_state_lies_where_the_user_wants_it(tmp_path):
    assert state_dir({}, tmp_path) == tmp_path / ".local" / "state" / "erllama"
    assert state_dir({"XDG_STATE_HOME": "/var/state"}, tmp_path).as_posix() == "/var/state/erllama"
