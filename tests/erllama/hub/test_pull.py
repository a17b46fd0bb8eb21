"""Pulls from a local server, from the first question to the file that llama.cpp is given."""

from __future__ import annotations

from erllama.hub.events import PullEvent


def pull(hub, source, **options) -> list[PullEvent]:
    return list(hub.pull(source, **options))


def test_a_file_behind_a_url_is_pulled_and_has_a_name(hub, server, model_bytes):
    server.add("/files/Demo-Model.gguf", model_bytes)
    events = pull(hub, f"{server.url}/files/Demo-Model.gguf")
    assert hub.path_of("demo-model").read_bytes() == model_bytes
    words = [event.status for event in events]
    assert words[0] == "pulling manifest"
    assert words[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert "pulling Demo-Model.gguf" in words
