"""One engine's configuration. Wrong values fail at once, with the field's name and the limit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from erllama.demo import demo_model_path
from erllama.errors import InvalidParameter, check, check_int, check_number, check_type

CTX_PAD = 256  # llama.cpp pads the context of a sequence to a multiple of this
MAX_UBATCH = 512  # tokens of one pass through the layers at most; a decode of more makes several

FIXED_SLICE = 256  # prompt tokens of a decode where "auto" may not choose
MAX_THREADS = 1024

MODEL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/-]{0,199}\Z")  # as long as a name of the hub may be

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
KV_TYPES = get_args(KvType)
Fingerprint = Literal["safe", "chunked", "trusted"]
Speculation = Literal["exact", "always", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One model and its context.

    path: a GGUF file (the first part of a split one), or "demo" for the embedded model.
    n_ctx: context of *one* sequence in tokens; 0 takes the model's training context. Padded up to a
        multiple of 256 by llama.cpp.
    n_parallel: sequences that run at once; more wait in the queue.
    n_batch: tokens of one llama_decode at most.
    prefill_slice: prompt tokens of one decode. While other sequences generate, slices and their
        tokens take turns: a slice costs running streams its prefill time as a pause. "auto": as many
        as `max_pause_ms` allows then, and `n_batch` when no stream runs; 256 where other lengths are
        not known to compute the same KV (`backend/slices.py`).
    max_pause_ms: how long a slice of "auto" may keep running streams waiting, as far as slices of
        `Backend.slice_unit` tokens can; where they cannot, streams get several tokens between two
        slices, as long as the newcomer keeps half of the time. 0: slices are as long as without
        streams.
    idle_prefill: while no request runs or waits, compute the beginning of the next turn of a chat, as its
        client will send it back.
    max_queue: requests that may wait; the next one is refused with `QueueFull`. A tenant with a name
        may have three quarters of them, beside the `n_parallel` that run.
    long_prompt_tokens: prompts of which more tokens have to be computed never hold all sequence ids:
        one is left for shorter ones, which would else wait until a long one has been computed and
        answered; 0: any prompt may have the last id.
    stream_interval_ms: tokens of running replies leave together at this interval (the first and the
        last of a reply at once); 0: after every step. Each departure wakes half a dozen threads on
        the way to the client, which take cores from the decode: on two cores 50 ms gave 5 to 10 %
        more tokens per second than 0. Twenty updates a second still read as a flow; ray.serve.llm
        batches by 50 ms too.
    speculation: whether tokens that a reply will probably say next (it repeats the conversation, or its
        grammar leaves no choice) are computed ahead, several in one decode. "exact": where llama.cpp
        computes them bit for bit as one by one, so that the reply is the same; "always": also where
        near ties may tip; "off": never.
    decode_budget_s: a llama_decode that takes longer is aborted and the context is made again (see
        `llama_abort` for which devices can); 0: never. Far above what a slice of `prefill_slice`
        tokens takes, else long prompts cannot be computed.
    n_threads: "auto" is at most `max_threads`, and fewer while measured decode times say that other
        processes take the cores; a number stays.
    max_threads: what "auto" may use; 0: the cores that this process may run on (of a replica: the CPUs
        that Ray gave it).
    n_gpu_layers: "auto" is all layers when this build has a GPU and a device is visible, else none.
    use_mmap: the weights stay pages of the file, which processes share and the system may drop.
    use_mlock: the weights are locked in RAM, where the system's limits allow it.
    rope_freq_base, rope_freq_scale: rotary position embeddings, as llama.cpp means them; 0 is the
        model's own.
    flash_attn, type_k, type_v: as llama.cpp means them; a quantised V cache needs flash attention.
    deterministic: sequences never share a decode, so that their numerics do not depend on their
        neighbours. Slower.
    parse_special_in_content: messages of a chat may write control tokens by their names; else
        "<|im_end|>" in one is text.
    chat_template: what stands for the templates of the file, with tools or without: Jinja source, or
        the path of a file with it.
    tool_format: how the model writes tool calls and reasoning, by name; "auto" finds out from its
        template.
    constrain_tool_calls: calls that the model makes of its own accord follow the tools' schemas, too.
    keep_sampled_reasoning: a reply that comes back without its reasoning has it in the prompt all the
        same, as it was sampled, where the template would have shown it. Clients drop what a model
        thought when they resend history; without this, so does the prompt, and the KV from there on.
    spm_infill: prompts with a gap have the text behind it first, as some models were trained.
    template_clock: what a template that asks for the time is told; with "time" a conversation's
        prompt begins anew with every minute.
    """

    path: str
    id: str = "default"
    n_ctx: int = 4096
    n_parallel: int = 4
    n_batch: int = 512
    prefill_slice: int | Literal["auto"] = "auto"
    max_pause_ms: float = 200.0
    idle_prefill: bool = True
    max_queue: int = 128
    long_prompt_tokens: int = 4096
    stream_interval_ms: float = 50.0
    speculation: Speculation = "exact"
    decode_budget_s: float = 120.0
    n_threads: int | Literal["auto"] = "auto"
    max_threads: int = 0
    n_gpu_layers: int | Literal["auto"] = "auto"
    flash_attn: bool = True
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    use_mmap: bool = True
    use_mlock: bool = False
    fingerprint: Fingerprint = "safe"
    deterministic: bool = False
    parse_special_in_content: bool = False
    chat_template: str | None = None
    tool_format: str = "auto"
    constrain_tool_calls: bool = True
    keep_sampled_reasoning: bool = False
    spm_infill: bool = False
    template_clock: Literal["date", "time"] = "date"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0

    def __post_init__(self) -> None:
        named = isinstance(self.path, str) and bool(self.path)
        check("path", named, f"must name a GGUF file or 'demo', got {self.path!r}")
        legal_id = isinstance(self.id, str) and bool(MODEL_ID.match(self.id))
        check("id", legal_id, f"must match {MODEL_ID.pattern}, got {self.id!r}")
        for name, low, high in (
            ("n_ctx", 0, 16_777_216),
            ("n_parallel", 1, 64),  # LLAMA_MAX_SEQ is 256 in llama.cpp; beyond 64 a CPU or one GPU gains nothing
            ("n_batch", 32, 16_384),
            ("max_queue", 0, 100_000),
            ("max_threads", 0, MAX_THREADS),
            ("long_prompt_tokens", 0, 16_777_216),
        ):
            check_int(name, getattr(self, name), low, high)
        enough = self.n_batch >= self.n_parallel
        check("n_batch", enough, f"must be at least n_parallel ({self.n_parallel}), got {self.n_batch}")
        for name, low, high in (
            ("n_threads", 1, MAX_THREADS),
            ("n_gpu_layers", -1, 1_000_000),
            ("prefill_slice", 16, 16_384),
        ):
            value = getattr(self, name)
            if value != "auto":
                check_type(name, value, int, f"'auto' or at least {low}")
                check_int(name, value, low, high)
        for name in (
            *("idle_prefill", "flash_attn", "use_mmap", "use_mlock", "deterministic"),
            *("parse_special_in_content", "constrain_tool_calls", "keep_sampled_reasoning", "spm_infill"),
        ):
            check_type(name, getattr(self, name), bool, "true or false")
        if self.chat_template is not None:
            check_type("chat_template", self.chat_template, str, "Jinja source or the path of a file")
            check("chat_template", bool(self.chat_template.strip()), "must be Jinja source or the path of a file")
        check("tool_format", self.tool_format != "", "must be a name or auto")
        check_type("tool_format", self.tool_format, str, "a name or auto")
        for name, legal in (
            ("type_k", KV_TYPES),
            ("type_v", KV_TYPES),
            ("fingerprint", get_args(Fingerprint)),
            ("speculation", get_args(Speculation)),
            ("template_clock", ("date", "time")),
        ):
            value = getattr(self, name)
            check(name, value in legal, f"must be one of {', '.join(legal)}, got {value!r}")
        by_time = self.deterministic and self.speculation == "always"
        check("speculation", not by_time, "always lets measured times tip near ties: deterministic needs exact or off")
        quantised_v = self.type_v not in ("f32", "f16", "bf16")
        check("type_v", self.flash_attn or not quantised_v, f"{self.type_v} needs flash_attn: true")
        for name in ("rope_freq_base", "rope_freq_scale", "stream_interval_ms", "decode_budget_s", "max_pause_ms"):
            check_number(name, getattr(self, name), 0)

    @property
    def fixed_slice(self) -> int:
        """Prompt tokens of a slice where all have one length."""
        return FIXED_SLICE if self.prefill_slice == "auto" else self.prefill_slice

    @property
    def thread_limit(self) -> int:
        """Threads at most; 0: the cores that this process may run on."""
        return self.max_threads if self.n_threads == "auto" else self.n_threads

    @property
    def max_tenant(self) -> int:
        """Requests of one tenant that may run or wait: the last quarter of the queue is for others."""
        return self.n_parallel + self.max_queue - self.max_queue // 4


def padded_context(n_ctx: int) -> int:
    """The context that llama.cpp makes of a wanted one."""
    return -(-n_ctx // CTX_PAD) * CTX_PAD


def make_config(config: EngineConfig | None, settings: Mapping[str, Any]) -> EngineConfig:
    """A config changed by `settings`, or made of them; "demo" becomes the embedded model's path."""
    known = [field.name for field in fields(EngineConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidParameter(f"unknown setting {unknown[0]!r}; known are {', '.join(known)}", param=unknown[0])
    config = replace(config or EngineConfig(path="demo"), **settings)
    return replace(config, path=str(demo_model_path())) if config.path == "demo" else config
