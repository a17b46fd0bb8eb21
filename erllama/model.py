"""`erllama.Model`: a GGUF model in this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Self

from cache_store import Store, StoreConfig, StoreStats
from erllama.backend.base import ModelBackend
from erllama.cache.live import LivePrefixes
from erllama.cache.policy import CachePolicy, SaveReason
from erllama.cache.setup import make_flow, make_prompt_log, make_root_of
from erllama.config import EngineConfig, make_config
from erllama.diagnosis.prompt_log import Blame
from erllama.engine.adapters import read_adapter
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop, Wake
from erllama.engine.prewarm import prewarm
from erllama.engine.reply_events import Deliver
from erllama.engine.submission import check_request
from erllama.errors import ErllamaError
from erllama.events import Completion
from erllama.gguf.fingerprint import FingerprintMode, default_cache_path, fingerprint
from erllama.model_drafts import DraftMethods
from erllama.model_info import make_model_info, make_model_memory, make_templates
from erllama.model_prefixes import PrefixMethods
from erllama.model_requests import RequestMethods
from erllama.pooled import PooledOutputs
from erllama.request import GenerationRequest
from erllama.session_name import session_name
from erllama.stats import AdapterInfo, EngineStats, EvictResult, GpuDevice, ModelInfo, ModelMemory, ModelStatus
from erllama.stream import InferStream, seconds_until

log = logging.getLogger(__name__)


class Model(PooledOutputs, PrefixMethods, RequestMethods, DraftMethods):
    """A GGUF model served in this process by one engine thread.

    >>> with Model(path="demo") as model:
    ...     print(model.complete("Once upon a time", response_tokens=16, temperature=0).text)

    Every method may be called from any thread. Calls that generate run together, up to `n_parallel`
    of them, in one llama.cpp context (continuous batching); more wait in order of arrival, up to
    `max_queue`, then `QueueFull` is raised.

    Parameters of generation (keyword arguments of `complete` and `infer`; an unknown name is an
    error) are the fields of `SamplingParams`, `stop`, `grammar`, `logprobs`, `ignore_eos`,
    `parent_key`, `session_id` and `salt` of `GenerationRequest`, where each is described, and
    `response_tokens`: tokens to generate at most; None: until the model stops or the context ends.
    `stop` may be one string, `logit_bias` a mapping {token id: bias}.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        sink: Deliver | None = None,
        store: Store | StoreConfig | None = None,
        policy: CachePolicy | None = None,
        make_backend: Callable[[EngineConfig], ModelBackend] | None = None,
        blame: Blame | None = None,
        **settings: Any,
    ) -> None:
        """Load a model from an `EngineConfig`, from its fields as keywords, or from both.

        A `store` keeps KV beyond the life of this process: a `StoreConfig` opens one that belongs
        to the model, a `Store` is the caller's to close. Without one, prefixes are shared within
        the context only. `policy` says what is saved when. `sink` receives, on the engine thread
        and once per step, the events of requests that `post` queued. `make_backend` loads the file,
        by default through llama.cpp; tests pass `StubBackend.from_config`. `blame` finds the client
        noise that made a prompt computed (`why`).

        Raises `ModelLoadError` when the file is missing, malformed or not a model,
        `InvalidParameter` for a wrong setting.
        """
        config = make_config(config, settings)
        self._config = config
        self._closed = False
        self._shutdown_lock = threading.Lock()
        self._policy = policy or CachePolicy()
        self._backend = (make_backend or _load_with_llama_cpp)(config)
        self._owned_store: Store | None = None
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self._backend.close)  # gigabytes; nobody else can free them
            if isinstance(store, StoreConfig):
                store = self._owned_store = Store(store)
                if_it_fails.callback(store.close, timeout_s=0)
            self.store = store  # public for whoever keeps its tiers in order
            self._fingerprint = fingerprint(config.path, FingerprintMode(config.fingerprint), default_cache_path())
            self._templates = make_templates(self._backend.vocab, config)
            self._prompt_log = make_prompt_log(self._backend, config, self._policy, store, blame)
            if_it_fails.callback(self._prompt_log.close)
            max_live, max_tenant = config.n_parallel + config.max_queue, config.max_tenant
            self._loop = EngineLoop(self._build, sink, max_live=max_live, max_tenant=max_tenant, name=config.id)
            if_it_fails.pop_all()

    # --- generating -------------------------------------------------------------------------------

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """Continue `prompt` (text or token ids); blocks until the whole reply is there. Raises a
        `RequestError` that names the parameter and the limit, or the error the engine met.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        return self.infer(tokens, **params).result()

    def prepare_grammars(self) -> None:
        """What the first constrained request would do otherwise: a second and 60 MB for a
        vocabulary of 152 k, half of it with the interpreter held, so that running streams would
        pause. Idempotent.
        """
        if self._backend.generates:
            self._backend.grammars.prepare()

    def check(self, request: GenerationRequest) -> None:
        """Raise a `RequestError` when this model can never serve `request`. Any thread."""
        check_request(request, self._backend)

    def post(self, request: GenerationRequest) -> None:
        """Queue a request whose events go to the `sink` that the model was made with."""
        self._loop.submit(request)

    def cancel(self, ref: str) -> None:
        """Stop a request at its next token boundary; its stream ends with `Done` whose stats say
        cancelled. Returns at once. Idempotent: unknown and finished references are fine.
        """
        self._loop.cancel(ref)

    # --- prefixes and sessions --------------------------------------------------------------------

    def prefill_only(
        self, tokens: Sequence[int], parent_key: str | None = None, *, session_id: str | None = None, salt: str = ""
    ) -> Completion:
        """Compute and save the KV of `tokens`, which `finish_key` names then; blocks."""
        return self.infer(tokens, response_tokens=0, parent_key=parent_key, session_id=session_id, salt=salt).result()

    def prewarm(self, k: int, timeout_s: float, salts: Iterable[str] = ("",)) -> int:
        """Put the `k` most valuable stored prefixes back into the context, as far as there are
        empty sequences; how many are live then, 0 without a store. `salts`: of requests with these.

        Computes nothing, waits up to `timeout_s` for the store. What fails is logged, not raised.
        """
        if self.store is None or k < 1:
            return 0
        give_up = time.monotonic() + timeout_s
        return prewarm(self._loop, self.store, limit=k, n_ctx=self._backend.n_ctx, give_up=give_up, salts=salts)

    def continue_(
        self,
        session_id: str,
        suffix: Sequence[int] = (),
        expect_committed: Sequence[int] | int | None = None,
        *,
        salt: str = "",
        **params: Any,
    ) -> InferStream:
        """Continue a session of requests with this `salt`: its committed tokens, then `suffix`. Raises
        as `transcript` does.
        """
        committed = self.transcript(session_id, expect_committed, salt=salt)
        return self.infer([*committed, *suffix], session_id=session_id, salt=salt, **params)

    def transcript(
        self, session_id: str, expect_committed: Sequence[int] | int | None = None, *, salt: str = ""
    ) -> tuple[int, ...]:
        """The tokens committed to a session; the caller expects these ids, or so many.

        Raises `SessionNotFound` for a session that is not known (any more), or is that of requests
        with another salt, `TranscriptMismatch` with `diverges_at` when the tokens differ.
        """
        name = session_name(session_id, salt)
        return self._call(lambda engine: engine.sessions.transcript(name, expect_committed))

    def end_session(self, session_id: str, *, salt: str = "") -> None:
        """Forget a session; its KV may be given up like any other. Idempotent."""
        name = session_name(session_id, salt)
        self._call(lambda engine: engine.end_session(name))

    def reset_session(self, session_id: str, *, salt: str = "") -> None:
        """`end_session`, and drop its KV from the context. What was saved stays in the store."""
        name = session_name(session_id, salt)
        self._call(lambda engine: engine.end_session(name, drop=True))

    def evict(self) -> EvictResult:
        """Save what the context holds, waiting for the store up to the policy's
        `evict_save_timeout_s`, then give its memory back; the next request restores. Requests that
        run go on and keep the context; then only the KV of ended ones is given up.
        """
        return self._give_back(lambda engine: engine.evict())

    def unload(self) -> EvictResult:
        """Like `evict`, then frees the weights, too, adapters included; what needs them next (not
        the calls that treat text) loads them again, or raises `ModelLoadError`.

        While requests run or wait, or when the file is gone or changed, the weights stay:
        `weights_unloaded` of the result tells.
        """
        return self._give_back(lambda engine: engine.evict(weights=True))

    def _give_back(self, order: Callable[[Engine], EvictResult]) -> EvictResult:
        give_up = time.monotonic() + self._policy.evict_save_timeout_s
        result = self._call(order)
        if self.store is not None:
            self.store.flush(seconds_until(give_up))
        return result

    # --- text -------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; safe beside running inference."""
        return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens left out; safe beside running inference."""
        return self._vocab.detokenize(tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a chat rendered by the model's own template (that for tools, if it has one
        and some are offered), ready to generate the assistant's turn. `messages` are {"role",
        "content"} mappings as OpenAI has them.

        Raises `NotSupported` when the model has no template, `InvalidParameter` when its template
        refuses the messages.
        """
        template = self._templates.rendering(tools)
        with_system = [{"role": "system", "content": system}, *messages] if system is not None else list(messages)
        conversation = template.conversation(with_system, tools=tools)
        return conversation.tokenize(self._vocab, template.render_conversation(conversation))

    # --- adapters ---------------------------------------------------------------------------------

    def load_adapter(self, path: str) -> str:
        """Load a LoRA GGUF at scale 1.0 for new requests; returns its handle."""
        checked = read_adapter(path, self._backend)  # seconds for a large one: not on the engine thread
        return self._call(lambda engine: engine.adapters.load(checked))

    def unload_adapter(self, handle: str) -> None:
        """Take an adapter away from new requests, free it with its last user. Idempotent."""
        self._call(lambda engine: engine.adapters.unload(handle))

    def set_adapter_scale(self, handle: str, scale: float) -> None:
        """Set an adapter's scale for new requests. Raises `InvalidParameter` for an unknown one."""
        self._call(lambda engine: engine.adapters.set_scale(handle, scale))

    def list_adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that new requests get."""
        return self._call(lambda engine: engine.adapters.list())

    # --- state ------------------------------------------------------------------------------------

    def model_info(self) -> ModelInfo:
        """What the model is; never disturbs inference."""
        tiers = None if self.store is None else self.store.tier_labels
        has_template = self._templates.exist
        return make_model_info(
            self._backend, self._config, self._fingerprint, self.status(), tiers, has_chat_template=has_template
        )

    def status(self) -> ModelStatus:
        """`idle`, `prefilling` or `generating`; never disturbs inference."""
        return self._loop.stats.status

    def stats(self) -> EngineStats:
        """Counters and gauges; never disturbs inference."""
        return self._loop.stats

    def memory(self) -> ModelMemory:
        """What it holds in memory, and what giving that back would cost."""
        return make_model_memory(self._backend, self._loop.stats, self._loop.idle_s)

    def live_prefixes(self) -> Future[LivePrefixes]:
        """What the context holds: answered between two steps. Raises `EngineStopped`."""
        return self._loop.call(Engine.live_prefixes)

    @property
    def phase(self) -> ModelStatus:
        """The same as `status()`."""
        return self.status()

    @property
    def kv_root(self) -> str:
        """The chain root of this model's KV without adapters: `finish_key`s hang on it."""
        return self._root_of(())

    def store_stats(self) -> StoreStats | None:
        """Counters and gauges of the store; None without one. Never disturbs inference."""
        return None if self.store is None else self.store.stats()

    def vram_info(self) -> tuple[GpuDevice, ...]:
        """The GPUs that llama.cpp sees; none on a CPU build."""
        return self._backend.gpu_devices()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a free sequence."""
        return self._loop.stats.n_queued

    @property
    def pending_len(self) -> int:
        """Requests that wait or run."""
        return (stats := self._loop.stats).n_queued + stats.n_running

    @property
    def last_cache_hit(self) -> str:
        """How the newest admitted request found its prefix: exact, partial or cold."""
        return self._loop.stats.last_cache_hit

    def check_alive(self, stuck_after_s: float) -> None:
        """Raise `EngineStopped` when the engine thread is dead or stuck: see the loop's."""
        self._loop.check_alive(stuck_after_s)

    def shutdown(self, timeout_s: float = 30.0) -> None:
        """Save what the context holds, end what runs, stop the engine thread and free the model.
        Waits for the store as `evict` does, or `timeout_s` if that is less. Idempotent.
        """
        with self._shutdown_lock:  # SIGTERM may arrive in the middle of a graceful stop
            give_up = time.monotonic() + min(timeout_s, self._policy.evict_save_timeout_s)
            if not self._closed:
                self._save_at_shutdown(give_up)
            self._closed = True  # llama.cpp's vocabulary goes with the model
            self._loop.stop(timeout_s)
            self._prompt_log.close()
            if self._owned_store is not None:
                self._owned_store.close(timeout_s=seconds_until(give_up))
            self._backend.close()

    stop = shutdown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        stats = self._loop.stats
        return (
            f"<Model {self._config.id} {stats.status} running={stats.n_running}/{stats.n_parallel} "
            f"queued={stats.n_queued}>"
        )

    # --- inside -----------------------------------------------------------------------------------

    def _build(self, deliver: Deliver, wake: Wake) -> Engine:
        salt = "" if self.store is None else self.store.salt
        self._root_of = make_root_of(self._backend, self._config, self._fingerprint, salt)
        flow = make_flow(self._backend, self._config, self._policy, self.store, wake, self._prompt_log)
        return Engine(self._backend, self._config, deliver, flow=flow, root_of=self._root_of)

    def _save_at_shutdown(self, give_up: float) -> None:
        """Failing open: a store that is gone must not keep a model from stopping."""
        if self.store is None:
            return
        try:
            self._loop.call(lambda engine: engine.save_all(SaveReason.SHUTDOWN)).result(seconds_until(give_up))
            if not self.store.flush(seconds_until(give_up)):
                log.warning("shutdown save: the store did not take everything in time: id=%s", self._config.id)
        except (ErllamaError, TimeoutError) as error:
            log.warning("shutdown save failed: id=%s error=%r", self._config.id, error)


def _load_with_llama_cpp(config: EngineConfig) -> ModelBackend:
    from erllama.llama.backend import LlamaBackend  # with the first model: importing the request types stays light

    return LlamaBackend(config)
