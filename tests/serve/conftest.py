"""One real `serve run` for the tests of this folder: several models, one of which cannot load, one
that scales from zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from erllama.testing.random_gguf import write_random_encoder, write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.driver import driver
from tests.support.serve_process import ServeProcess, running

DEMO = {
    "id": "demo",
    "path": "demo",
    "n_ctx": 2048,
    "n_parallel": 4,
    "n_threads": 1,
    "num_cpus": 0.5,
    "aliases": ["gpt-demo"],
}


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.gguf (generates), encoder.gguf (embeds only) and lora.gguf (an adapter of tiny)."""
    folder = tmp_path_factory.mktemp("gguf")
    write_random_model(folder / "tiny.gguf", SHAPES["tiny-llama"], vocab=None, file_type="F16", seed=1)
    write_random_encoder(folder / "encoder.gguf", seed=1)
    write_random_lora(folder / "lora.gguf", folder / "tiny.gguf", rank=4, seed=1, scale=1.0)
    return folder


@pytest.fixture(scope="session")
def app_args(gguf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("kv")
    tiny = str(gguf_folder / "tiny.gguf")
    small = {"n_ctx": 256, "n_threads": 1, "num_cpus": 0.1}
    return {
        "models": [
            DEMO,
            {"id": "tiny", "path": tiny, **small},
            {"id": "narrow", "path": tiny, "n_parallel": 1, "max_queue": 1, **small},
            {"id": "encoder", "path": str(gguf_folder / "encoder.gguf"), **small},
            {"id": "broken", "path": str(gguf_folder / "missing.gguf"), **small},
            {"id": "sleepy", "path": tiny, "autoscaling": {"min_replicas": 0, "max_replicas": 1}, **small},
        ],
        "store": {"tiers": [{"url": str(store / "fast")}, {"url": str(store / "slow"), "compression": "zstd"}]},
    }


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, app_args: dict[str, Any]) -> Iterator[ServeProcess]:
    with running(tmp_path_factory.mktemp("serve"), app_args, "demo", "tiny", "narrow", "encoder") as process:
        yield process


@pytest.fixture
def client(server: ServeProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def cluster(server: ServeProcess) -> Iterator[None]:
    """This process as a driver of the server's cluster, as a Ray job is."""
    with driver():
        yield
