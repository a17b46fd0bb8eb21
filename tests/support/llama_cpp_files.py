"""Real chat templates and vocabularies: they lie in the source package of llama-cpp-python, which
`make setup` builds from and leaves unpacked.
"""

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "build" / "llama.cpp" / "models"


def real_templates() -> dict[str, Path]:
    """Chat templates by their names without the suffix; `make setup` puts them there."""
    return {path.stem: path for path in sorted((MODELS / "templates").glob("*.jinja"))}


def real_template(name: str) -> str:
    path = MODELS / "templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `make setup`")
    return path.read_text()


def real_vocab(name: str) -> Path:
    """A GGUF that holds a vocabulary and nothing else, e.g. "qwen2"."""
    path = MODELS / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `make setup`")
    return path
