"""The coding agents that npm has, unmodified, against a real server with a restart in between: the
script that measures them, whole.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENTS = ("claude", "codex", "opencode", "qwen")
PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex", "opencode-ai", "@qwen-code/qwen-code")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.model,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here"),
]


@pytest.fixture
def npm(tmp_path):
    """The agents, where a registry gives them."""
    folder = tmp_path / "npm"
    folder.mkdir()
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", *PACKAGES],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if install.returncode:
        pytest.skip(f"npm cannot install the agents here: {install.stderr[-300:]}")
    return folder


def test_agents_understand_the_server_and_find_their_prompts_again_after_a_restart(tmp_path, npm):
    figures = tmp_path / "figures.json"
    script = [sys.executable, str(ROOT / "bench" / "agents.py"), "--npm", str(npm), "--json", str(figures)]
    told = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-4000:]
    values = {figure["name"]: figure["value"] for figure in json.loads(figures.read_text())["figures"]}
    for agent in AGENTS:
        assert values[f"{agent}.run1.errors"] == values[f"{agent}.run2.errors"] == 0, told.stdout
        assert values[f"{agent}.run1.requests"] > 0
        assert values[f"{agent}.share"] >= 0.95, told.stdout
    assert sum(value for name, value in values.items() if name.endswith(".calls")) > 0, "nobody called a tool"
