"""bench/noise.py's clients change what real clients change, and the real engine computes it or not."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import noise
from harness import Figures


def test_a_claude_that_says_the_same_sends_it_in_another_container_and_with_another_hash():
    client = noise.ClaudeShape(8)
    first = client.ask("hi", "today")
    client.hear(
        {
            "content": [{"type": "text", "text": "Yes."}],
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
        }
    )
    second = client.ask("on", "tomorrow")
    assert first["system"][0] != second["system"][0]
    assert first["system"][1] == second["system"][1]
    assert first["messages"][0]["content"][0]["text"] == second["messages"][0]["content"]
    assert "today" in second["messages"][0]["content"]
    assert "tomorrow" not in str(second)


@pytest.mark.model
def test_a_header_that_changes_costs_a_whole_prompt_without_rules_and_nothing_with_them():
    args = Namespace(model="demo", n_ctx=4096, threads=1, reply=8, turns=2)
    figures = Figures()
    off, on = (noise.run("claude", how, args, figures)[1] for how in ("off", "on"))
    assert off.share < 0.1 < 0.9 < on.share
    assert not noise.problems(noise.run("claude", "on", args, figures))
    assert (off.told, on.told) == ("", "billing-header=1")
