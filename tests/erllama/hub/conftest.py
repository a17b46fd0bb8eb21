"""A server, an empty hub, and models that are small and sound."""

from __future__ import annotations

import pytest

from erllama.demo import demo_model_path
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.hub_server import serving


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def config(tmp_path, server):
    return hub_config(tmp_path / "hub", server.url)


@pytest.fixture
def hub(config):
    return Hub(config)


@pytest.fixture(scope="session")
def model_bytes():
    """3.3 MB: thirteen ranges of the size that `hub_config` has."""
    return demo_model_path().read_bytes()


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_random_model(path, SHAPES["tiny-llama"], file_type="F16", seed=1)
    return path.read_bytes()


def hub_config(root, url, **changes):
    return HubConfig(
        **{
            "dir": root,
            "hf_endpoint": url,
            "hf_token": "",
            "ollama_registry": url,
            "chunk_bytes": 256 << 10,
            "keep_free_bytes": 0,
            "backoff_s": 0.01,
            "connect_timeout_s": 5.0,
            "stall_timeout_s": 20.0,
            **changes,
        }
    )
