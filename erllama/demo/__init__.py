"""The embedded demo model: a tiny chat model trained from scratch by the scripts of this package.

Only `demo_model_path` is meant for the rest of erllama, so importing this package stays cheap: no torch, no numpy.
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
