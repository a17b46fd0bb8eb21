"""erllama's engine: GGUF models through llama.cpp, many sequences in one context, streaming.
Imports no ray and speaks no HTTP.

    from erllama import Model
    with Model(path="demo") as model:
        print(model.complete("Hello", response_tokens=16).text)

llama.cpp itself is loaded with the first model.
"""

from __future__ import annotations

from erllama.config import EngineConfig
from erllama.errors import (
    ContextOverflow,
    DecodeFailed,
    EngineStopped,
    ErllamaError,
    InvalidParameter,
    ModelLoadError,
    ModelNotFound,
    NotSupported,
    QueueFull,
    RequestError,
)
from erllama.events import Completion, Done, Event, Failed, FinishReason, RequestStats, Tokens
from erllama.model import Model
from erllama.request import GenerationRequest, Prompt, SamplingParams
from erllama.stats import EngineStats, ModelInfo, ModelStatus
from erllama.stream import InferStream

__all__ = [
    "Completion",
    "ContextOverflow",
    "DecodeFailed",
    "Done",
    "EngineConfig",
    "EngineStats",
    "EngineStopped",
    "ErllamaError",
    "Event",
    "Failed",
    "FinishReason",
    "GenerationRequest",
    "InferStream",
    "InvalidParameter",
    "Model",
    "ModelInfo",
    "ModelLoadError",
    "ModelNotFound",
    "ModelStatus",
    "NotSupported",
    "Prompt",
    "QueueFull",
    "RequestError",
    "RequestStats",
    "SamplingParams",
    "Tokens",
]
