"""What is known of one HTTP request at its end: who asked for what, what it cost, where its time went.

Filled on the path of the request; one event loop. Times are milliseconds in fields that end in `_ms`,
moments are `monotonic_ns`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from erllama.errors import ErllamaError
from erllama.events import Event, RequestStats, Tokens

_NS_PER_MS = 1e6
NO_DIALECT = "none"  # of probes, scrapes and paths that nobody knows


@dataclass(slots=True)
class RequestFacts:
    """`prompt`, `cached` and `completion` are the tokens of all choices that have ended; of prompts,
    each choice's own counts. Times are those of the choice that had to wait longest for its first
    token. `model` is "" where none was asked; `traceparent` and `tracestate` are the client's headers.
    """

    request_id: str = ""
    dialect: str = ""
    method: str = ""
    path: str = ""
    tenant: str = ""
    started_ns: int = 0
    route: str = ""
    status: int = 0
    error: str = ""
    error_status: int = 0
    traceparent: str = ""
    tracestate: str = ""
    model: str = ""
    streamed: bool = False
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    n_choices: int = 0
    asked_ns: int | None = None
    first_ns: int | None = None
    ended_ns: int | None = None
    queue_ms: float = 0.0
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    generation_ms: float = 0.0
    tier: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    clock: Callable[[], int] = time.monotonic_ns

    def ask(self, model_id: str, *, streamed: bool = False) -> None:
        """The request is ready and goes to this model."""
        self.model, self.streamed = model_id, streamed
        self.asked_ns = self.clock()

    def saw(self, events: Iterable[Event]) -> None:
        """Events came, before which there was no token."""
        if any(isinstance(event, Tokens) for event in events):
            self.first_ns = self.clock()

    def add(self, stats: RequestStats) -> None:
        """A choice has ended."""
        self.n_choices += 1
        self.prompt += stats.prompt_tokens
        self.cached += stats.cached_tokens
        self.completion += stats.completion_tokens
        self.finish_reasons.append(str(stats.finish_reason))
        if self.n_choices == 1 or stats.queue_ms + stats.prefill_ms > self.queue_ms + self.prefill_ms:
            self.queue_ms, self.restore_ms, self.prefill_ms = stats.queue_ms, stats.restore_ms, stats.prefill_ms
            self.tier = stats.cache_tier or ""
        self.generation_ms = max(self.generation_ms, stats.generation_ms)

    def fail(self, error: ErllamaError) -> None:
        """It ended with `error`: as its answer, or in a stream whose status had left."""
        self.error, self.error_status = error.code, error.http_status

    def end(self, status: int) -> None:
        """The answer has left, or will not."""
        self.status, self.ended_ns = status, self.clock()

    @property
    def outcome(self) -> int:
        """The status, or for a stream that ended with an error the one that it would have had."""
        return self.error_status if self.error_status and self.status < 400 else self.status

    @property
    def computed(self) -> bool:
        """Whether a model has computed something whose end was seen."""
        return self.n_choices > 0

    @property
    def duration_ms(self) -> float:
        """So far, or as a whole."""
        return ((self.clock() if self.ended_ns is None else self.ended_ns) - self.started_ns) / _NS_PER_MS

    @property
    def prepare_ms(self) -> float:
        """Until the model was asked: the body came, was rendered and tokenised."""
        return 0.0 if self.asked_ns is None else (self.asked_ns - self.started_ns) / _NS_PER_MS

    @property
    def ttft_ms(self) -> float | None:
        """From the request's head to its first token, as the ingress has it; None without a token."""
        return None if self.first_ns is None else (self.first_ns - self.started_ns) / _NS_PER_MS

    @property
    def dispatch_ms(self) -> float:
        """Until the first token, beyond what the engine tells: the way there and back, a model that
        had to be loaded, an attempt that failed.
        """
        if self.ttft_ms is None or not self.computed:
            return 0.0
        return max(0.0, self.ttft_ms - self.prepare_ms - self.queue_ms - self.prefill_ms)

    @property
    def token_ms(self) -> float | None:
        """Mean time between the tokens of a choice; None below two."""
        n = self.completion / self.n_choices - 1 if self.n_choices else 0
        return self.generation_ms / n if n >= 1 else None

    @property
    def unread_ms(self) -> float:
        """How much later the answer ended than its last token was there."""
        if self.ttft_ms is None or not self.computed:
            return 0.0
        return max(0.0, self.duration_ms - self.ttft_ms - self.generation_ms)
