"""The typed configuration of one engine. Wrong values fail at construction, with the field's name
and the limit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from erllama.errors import InvalidParameter

CTX_PAD = 256  # llama.cpp pads the context of a sequence to a multiple of this

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,95}\Z")

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Fingerprint = Literal["safe", "chunked", "trusted"]

_SWITCHES = (
    *("flash_attn", "use_mmap", "use_mlock", "deterministic"),
    *("parse_special_in_content", "constrain_tool_calls"),
)


def _check(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise InvalidParameter(f"{name} {message}", param=name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One model and its context.

    Attributes ---------- path: a GGUF file (the first part of a split one), or "demo" for the
    embedded model. n_ctx: context of *one* sequence in tokens; 0 takes the model's training
    context. Padded up to a multiple of 256 by llama.cpp. n_parallel: sequences that run at once;
    more wait in the queue. n_batch: tokens of one llama_decode at most. prefill_slice: prompt
    tokens of one decode. While other sequences generate, slices and their tokens take turns: a
    slice costs running
        streams its prefill time as a pause, so it trades their pace against the newcomer's time to
        first token.
    max_queue: requests that may wait; the next one is refused with `QueueFull`. stream_interval_ms:
    tokens of running replies leave together at this interval (the first and the last of a reply at
    once); 0: after
        every step. Each departure wakes half a dozen threads on the way to the client, which take
        cores from the decode: on two cores 50 ms gave 5 to 10 % more tokens per second than 0.
        Twenty updates a second still read as a flow; ray.serve.llm batches by 50 ms too.
    decode_budget_s: a llama_decode that takes longer is aborted and the context is made again (see
        `llama_abort` for which devices can); 0: never. Far above what a slice of `prefill_slice`
        tokens takes, else long prompts cannot be computed.
    n_threads: CPU threads; "auto" is what the caller's environment grants (the replica passes the
    CPUs that Ray gave it). n_gpu_layers: "auto" puts all layers on a GPU when this build has one
    and a device is visible, else none. flash_attn, type_k, type_v: as llama.cpp means them; a
    quantised V cache needs flash attention. deterministic: sequences never share a decode, so that
    their numerics do not depend on their neighbours. Slower. parse_special_in_content: messages of
    a chat may write control tokens by their names; else "<|im_end|>" in one is text. tool_format:
    how the model writes tool calls and reasoning, by name; "auto" finds out from its template.
    constrain_tool_calls: a call that the model makes of its own accord follows the schemas of the
    tools, too. template_clock: what a chat template that asks for the time is told; with "time" a
    conversation's prompt begins anew with every minute.
    """

    path: str
    id: str = "default"
    n_ctx: int = 4096
    n_parallel: int = 4
    n_batch: int = 512
    prefill_slice: int = 256
    max_queue: int = 128
    stream_interval_ms: float = 50.0
    decode_budget_s: float = 120.0
    n_threads: int | Literal["auto"] = "auto"
    n_gpu_layers: int | Literal["auto"] = "auto"
    flash_attn: bool = True
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    use_mmap: bool = True
    use_mlock: bool = False
    fingerprint: Fingerprint = "safe"
    deterministic: bool = False
    parse_special_in_content: bool = False
    tool_format: str = "auto"
    constrain_tool_calls: bool = True
    template_clock: Literal["date", "time"] = "date"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0

    def __post_init__(self) -> None:
        _check(
            isinstance(self.path, str) and bool(self.path),
            "path",
            f"must name a GGUF file or 'demo', got {self.path!r}",
        )
        _check(
            isinstance(self.id, str) and bool(MODEL_ID.match(self.id)),
            "id",
            f"must match {MODEL_ID.pattern}, got {self.id!r}",
        )
        for name, low, high in (
            ("n_ctx", 0, 16_777_216),
            ("n_parallel", 1, 64),  # LLAMA_MAX_SEQ is 256 in llama.cpp; beyond 64 a CPU or one GPU gains nothing
            ("n_batch", 32, 16_384),
            ("prefill_slice", 16, 16_384),
            ("max_queue", 0, 100_000),
        ):
            value = getattr(self, name)
            _check(_is_int(value), name, f"must be an integer, got {value!r}")
            _check(low <= value <= high, name, f"must be between {low} and {high}, got {value}")
        _check(
            self.n_batch >= self.n_parallel,
            "n_batch",
            f"must be at least n_parallel ({self.n_parallel}), got {self.n_batch}",
        )
        for name, low in (("n_threads", 1), ("n_gpu_layers", -1)):
            value = getattr(self, name)
            _check(
                value == "auto" or (_is_int(value) and value >= low),
                name,
                f"must be 'auto' or at least {low}, got {value!r}",
            )
        for name in (
            "flash_attn",
            "use_mmap",
            "use_mlock",
            "deterministic",
            "parse_special_in_content",
            "constrain_tool_calls",
        ):
            _check(isinstance(getattr(self, name), bool), name, f"must be true or false, got {getattr(self, name)!r}")
        for name in ("type_k", "type_v"):
            _check(
                getattr(self, name) in KV_TYPES,
                name,
                f"must be one of {', '.join(KV_TYPES)}, got {getattr(self, name)!r}",
            )
        _check(
            self.template_clock in ("date", "time"),
            "template_clock",
            f"must be date or time, got {self.template_clock!r}",
        )
        known = isinstance(self.tool_format, str) and bool(self.tool_format)
        _check(known, "tool_format", f"must be a name, got {self.tool_format!r}")
        quantised_v = self.type_v not in ("f32", "f16", "bf16")
        _check(self.flash_attn or not quantised_v, "type_v", f"{self.type_v} needs flash_attn: true")
        _check(
            self.fingerprint in ("safe", "chunked", "trusted"),
            "fingerprint",
            f"must be safe, chunked or trusted, got {self.fingerprint!r}",
        )
        for name in ("rope_freq_base", "rope_freq_scale", "stream_interval_ms", "decode_budget_s"):
            value = getattr(self, name)
            number = _is_int(value) or (isinstance(value, float) and math.isfinite(value))
            _check(number and value >= 0, name, f"must be a finite number of at least 0, got {value!r}")


def padded_context(n_ctx: int) -> int:
    """The context that llama.cpp makes of a wanted one."""
    return -(-n_ctx // CTX_PAD) * CTX_PAD
