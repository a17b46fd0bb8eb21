"""One request on its way through the engine: its state, its tokens and the algebra of their
lengths. Pure.

    0 <= n_cached <= n_kv <= n_tokens <= n_ctx          and n_prompt <= n_given <= n_tokens

`tokens` is the prompt followed by the reply. The first `n_given` of them, the prompt and what an
earlier run of the request delivered (`resumed`), are `given`: the context must hold them before a
token is sampled. `n_cached` of them were restored, `n_kv` of all tokens have their KV in the
context; the rest, `tokens[n_kv:]`, is pending: the missing part of what is given while prefilling,
the newest token while generating. `n_prompt`, `n_generated` and `n_max_generated` are the client's
view and know nothing of a resume. The engine thread owns every sequence; nobody else reads or
writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cache_store import ChainKey, TokenChain
from erllama.events import CacheHitKind, FinishReason, Progress, RequestStats
from erllama.request import GenerationRequest
from erllama.sequence.machine import State, Step, apply
from erllama.sequence.sampling import Logits, TokenSampler
from erllama.sequence.text_stream import TextStream
from erllama.stats import AdapterSet, SequenceInfo

_NS_PER_MS = 1e6


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request. `seq_id` is its id in the llama context, None before admission and after
    release; times are `monotonic_ns`.

    `given` is the chain of what it was given, under the root of its KV (model, settings, adapters,
    tenant). `n_missing` of it were held by no other id when it was queued, later: were not restored.
    `n_saved` of its tokens have been handed to the store, or need not be. `n_computed` of the given
    ones were computed here. `hit_tier` says where `n_cached` came from. `prompt_logits`
    are those at the end of what was given, for whoever sends the same; `stores_logits`: the store
    wants them, too. `pinned`: its pin has been seen to. `n_ahead` rows of a draft are in the
    context behind the first `n_kv`; of all `n_drafted` tokens that were drafted `n_accepted` were
    sampled. `reply` gathers the text of the whole reply, if it will come back as chat history.
    `shown` are the control tokens that belong to its text.
    """

    request: GenerationRequest
    given: TokenChain
    n_ctx: int
    adapters: AdapterSet
    sampler: TokenSampler
    text: TextStream
    tokens: list[int]
    submitted_ns: int
    state: State = State.QUEUED
    seq_id: int | None = None
    n_cached: int = 0
    n_kv: int = 0
    n_missing: int = 0
    admitted_ns: int | None = None
    restored_ns: int | None = None
    first_token_ns: int | None = None
    n_saved: int = 0
    n_computed: int = 0
    hit_tier: str = ""
    prompt_logits: Logits | None = None
    stores_logits: bool = False
    pinned: bool = False
    n_ahead: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    reply: list[str] = field(default_factory=list)
    shown: dict[int, bytes] = field(default_factory=dict)
    story: list[Step] = field(default_factory=list)

    @property
    def id(self) -> int:
        """`seq_id` of a sequence that runs."""
        assert self.seq_id is not None, repr(self)
        return self.seq_id

    @property
    def readable(self) -> bool:
        """Whether the context holds its first `n_kv` tokens."""
        return self.state in (State.RESTORING, State.PREFILLING, State.GENERATING)

    @property
    def priority(self) -> int:
        return self.request.priority or 0

    @property
    def restoring(self) -> bool:
        return self.state is State.RESTORING

    def chain(self, n: int) -> TokenChain:
        """The chain of its first `n` tokens."""
        return self.given.prefix(n) if n <= self.n_given else self.given.extended(self.tokens[self.n_given : n])

    @property
    def kv(self) -> TokenChain:
        """The tokens whose KV is in the context, n_kv of them."""
        return self.chain(self.n_kv)

    @property
    def root(self) -> ChainKey:
        return self.given.root

    def piece(self, token: int, piece: Callable[[int], bytes]) -> bytes:
        """The bytes of `token` as they appear in this reply; `piece` has those of the vocabulary."""
        shown = self.shown.get(token)
        return piece(token) if shown is None else shown

    @property
    def forced_token(self) -> int | None:
        """What comes next whatever the model says, None where it may choose."""
        budget = self.request.reasoning
        return None if budget is None else budget.forced(self.tokens, self.n_prompt)

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt_tokens)

    @property
    def n_given(self) -> int:
        return len(self.given)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_generated(self) -> int:
        """Tokens of the reply, resumed ones included."""
        return len(self.tokens) - self.n_prompt

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_kv

    @property
    def n_max_generated(self) -> int:
        """Tokens this request may generate: its own budget, cut to what the context leaves."""
        room = self.n_ctx - self.n_prompt
        return room if self.request.max_tokens is None else min(room, self.request.max_tokens)

    def ends_a_late_line(self, new_text: str, clock: Callable[[], int]) -> bool:
        """Whether what came last ends a line after the time that the request has for lines."""
        budget_ms = self.request.line_time_ms
        if budget_ms is None or self.first_token_ns is None or "\n" not in new_text:
            return False
        return clock() - self.first_token_ns > budget_ms * _NS_PER_MS

    @property
    def cache_hit_kind(self) -> CacheHitKind:
        """How much of what is given was taken over instead of computed; its last token may be
        computed for its logits.
        """
        if self.n_cached == 0:
            return CacheHitKind.COLD
        return CacheHitKind.EXACT if self.n_cached >= self.n_given - 1 else CacheHitKind.PARTIAL

    @property
    def live(self) -> bool:
        return self.state is not State.FINISHED

    def apply(self, step: Step) -> None:
        """Move to the next state. An illegal step raises with the story and changes nothing."""
        try:
            self.state = apply(self.state, step)
        except AssertionError as error:
            error.add_note(f"{self!r} after {' '.join(self.story)}")
            raise
        if not self.story or self.story[-1] is not step:  # a thousand TOKENs say no more than one
            self.story.append(step)

    def check(self) -> None:
        """Assert the length algebra."""
        assert 0 <= self.n_cached <= self.n_kv <= self.n_tokens <= self.n_ctx, repr(self)
        assert self.n_prompt <= self.n_given <= self.n_tokens, repr(self)
        assert (self.seq_id is None) == (self.state in (State.QUEUED, State.FINISHED)), repr(self)

    def progress(self, now_ns: int) -> Progress:
        """How far what is given is."""
        admitted = self.admitted_ns if self.admitted_ns is not None else now_ns
        return Progress(
            total=self.n_given,
            cached=self.n_cached,
            processed=min(self.n_kv, self.n_given),
            tier=self.hit_tier or None,
            elapsed_ms=(now_ns - admitted) / _NS_PER_MS,
        )

    def stats(self, reason: FinishReason, now_ns: int) -> RequestStats:
        """What the request cost, at its end."""
        admitted = self.admitted_ns if self.admitted_ns is not None else now_ns
        first = self.first_token_ns if self.first_token_ns is not None else now_ns
        return RequestStats(
            prompt_tokens=self.n_prompt,
            completion_tokens=self.n_generated,
            cached_tokens=min(self.n_cached, self.n_prompt),
            queue_ms=(admitted - self.submitted_ns) / _NS_PER_MS,
            prefill_ms=(first - admitted) / _NS_PER_MS,
            generation_ms=(now_ns - first) / _NS_PER_MS,
            cache_hit_kind=self.cache_hit_kind,
            cache_tier=self.hit_tier or None,
            finish_reason=reason,
            stop_sequence=self.text.stop_sequence,
            resumed_tokens=len(self.request.resumed),
            computed_tokens=self.n_computed,
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
            restore_ms=0.0 if self.restored_ns is None else (self.restored_ns - admitted) / _NS_PER_MS,
        )

    def info(self) -> SequenceInfo:
        """Where it is, for people. It runs."""
        return SequenceInfo(
            self.request.request_id, self.state, self.n_given, self.n_cached, self.n_kv, len(self.tokens)
        )

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.request.request_id} {self.state} seq_id={self.seq_id} "
            f"kv={self.n_kv}/{self.n_tokens} prompt={self.n_prompt} given={self.n_given} "
            f"cached={self.n_cached} ctx={self.n_ctx}>"
        )
