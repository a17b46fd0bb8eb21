"""The embedded demo model: a tiny chat model, trained from scratch by the scripts of `demo_model/`
in the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_model_path"]


def demo_model_path() -> Path:
    """Return where the packaged GGUF lies; FileNotFoundError when the installation lacks it."""
    path = Path(__file__).with_name("demo.gguf")
    if not path.is_file():
        raise FileNotFoundError(f"the demo model is not part of this installation: {path} does not exist")
    return path
