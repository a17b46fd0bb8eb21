"""Sound files that the tests of this folder damage copies of."""

import pytest

from erllama.testing.random_gguf import write_random_encoder, write_random_model
from erllama.testing.random_shape import SHAPES


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_random_model(path, SHAPES["tiny-llama"], file_type="F16", seed=1)
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "encoder.gguf"
    write_random_encoder(path, seed=1)
    return path
