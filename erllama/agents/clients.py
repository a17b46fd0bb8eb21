"""How each agent is pointed at a server. Pure: from an endpoint, a folder of the agent's own and the
user's arguments to an `AgentSetup`.

All but goose, whose documentation names the variables, were run as they are written here. Nothing of
the user's own configuration is changed. Where an agent merges several configurations
(Codex, opencode, Claude Code, Qwen Code) the user's own stays in force, and the endpoint stands
above it; Gemini CLI gets a home of its own, because a sign-in that the user has chosen there would
win over the environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from erllama.agents.setup import AgentSetup, Endpoint

PROVIDER = "erllama"
KEY_VARIABLE = "ERLLAMA_API_KEY"
_REPLY_TOKENS = 8192  # what agents that must know a limit of replies are told, unless the context is short

_CLAUDE_LEAST_WINDOW = 100_000


def reply_tokens(context: int) -> int:
    """How long a reply may be: at most a quarter of the context, the rest is the prompt's."""
    return min(_REPLY_TOKENS, max(256, context // 4))


def claude(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    """Every name that it asks for is mapped to the one model, the small one of its side requests,
    too. Below 100,000 tokens it takes no number for the context, and compacts when it is told that
    a prompt was too long.
    """
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    env = {
        "ANTHROPIC_BASE_URL": at.url,
        "ANTHROPIC_AUTH_TOKEN": at.token,
        **dict.fromkeys(names, at.model),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # calls to its maker
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a hash that changes, at the head of each prompt
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
    }
    if at.context and at.context >= _CLAUDE_LEAST_WINDOW:
        env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(at.context)
    return AgentSetup(("claude", *arguments), env, unset=("ANTHROPIC_API_KEY",))


def codex(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    """Its model's list tells it the context and shorter instructions; it reads it from a file."""
    provider = {"name": PROVIDER, "base_url": at.openai_url, "wire_api": "responses"}
    if at.key:
        provider["env_key"] = KEY_VARIABLE
    settings = {
        "model": at.model,
        "model_provider": PROVIDER,
        **{f"model_providers.{PROVIDER}.{name}": value for name, value in provider.items()},
    }
    files = {}
    if at.codex_catalog is not None:
        catalog = folder / "models.json"
        files[catalog] = at.codex_catalog
        settings["model_catalog_json"] = str(catalog)
    # a string of JSON is one of TOML
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    env = {KEY_VARIABLE: at.key} if at.key else {}
    return AgentSetup(("codex", *options, *arguments), env, files)


def opencode(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    """A provider in a file of its own, which opencode merges with the user's."""
    limit = {} if at.context is None else {"limit": {"context": at.context, "output": reply_tokens(at.context)}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": PROVIDER,
        "options": {"baseURL": at.openai_url, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {at.model: {"name": at.model, **limit}},
    }
    name = f"{PROVIDER}/{at.model}"
    config = {"provider": {PROVIDER: provider}, "model": name, "small_model": name}
    path = folder / "opencode.json"
    env = {KEY_VARIABLE: at.token, "OPENCODE_CONFIG": str(path)}
    return AgentSetup(("opencode", *arguments), env, {path: _json(config)})


def qwen(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    env = {"OPENAI_BASE_URL": at.openai_url, "OPENAI_API_KEY": at.token, "OPENAI_MODEL": at.model}
    return AgentSetup(("qwen", "--auth-type", "openai", *arguments), env)


def gemini(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
    }
    env = {"GOOGLE_GEMINI_BASE_URL": at.url, "GEMINI_API_KEY": at.token, "GEMINI_CLI_HOME": str(folder)}
    files = {folder / ".gemini" / "settings.json": _json(settings)}
    unset = ("GOOGLE_API_KEY", "GOOGLE_GENAI_USE_GCA", "GOOGLE_GENAI_USE_VERTEXAI")
    return AgentSetup(("gemini", "--model", at.model, *arguments), env, files, unset)


def aider(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    """`openai/` before the name says which protocol its library speaks."""
    env = {"OPENAI_API_BASE": at.openai_url, "OPENAI_API_KEY": at.token}
    return AgentSetup(("aider", "--model", f"openai/{at.model}", *arguments), env)


def continue_cli(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    """Its file is YAML, of which JSON is a part."""
    model = {
        "name": at.model,
        "provider": "openai",
        "model": at.model,
        "apiBase": at.openai_url,
        "apiKey": at.token,
    }
    path = folder / "config.yaml"
    config = {"name": PROVIDER, "version": "0.0.1", "schema": "v1", "models": [model]}
    return AgentSetup(("cn", "--config", str(path), *arguments), files={path: _json(config)})


def goose(at: Endpoint, folder: Path, arguments: Sequence[str]) -> AgentSetup:
    env = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": at.model,
        "OPENAI_HOST": at.url,
        "OPENAI_BASE_PATH": "v1/chat/completions",
        "OPENAI_API_KEY": at.token,
    }
    return AgentSetup(("goose", *arguments), env)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
