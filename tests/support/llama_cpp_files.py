"""Real chat templates and vocabularies: they lie in the source package of llama-cpp-python, which
`make setup` builds from and leaves unpacked.
"""

from pathlib import Path

import llama_cpp
import pytest

from erllama.llama.library import initialise
from erllama.llama.vocab import LlamaVocab

MODELS = Path(__file__).resolve().parents[2] / "build" / "llama.cpp" / "models"


def real_templates() -> dict[str, Path]:
    """Chat templates by their names without the suffix; `make setup` puts them there."""
    return {path.stem: path for path in sorted((MODELS / "templates").glob("*.jinja"))}


def real_template(name: str) -> str:
    path = MODELS / "templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `make setup`")
    return path.read_text()


def real_vocab(name: str) -> LlamaVocab:
    """A vocabulary of which the package has a file without a model, e.g. "qwen2"; the caller closes
    it.
    """
    path = MODELS / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `make setup`")
    initialise()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    return LlamaVocab(llama_cpp.llama_model_load_from_file(str(path).encode(), params), owns_model=True)
