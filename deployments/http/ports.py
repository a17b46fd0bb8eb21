"""What the HTTP half needs from the rest: a model that generates and a vocabulary that renders.
Tests plug fakes in here.

`ModelClient` (a Serve handle) is the real `ModelPort`, `PromptSource` the real `PromptPort`.
Nothing here imports ray or llama_cpp.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from cache_store import StoreStats
from erllama.chat.template import Ending
from erllama.chat.tool_formats.base import ToolFormat
from erllama.errors import ErllamaError
from erllama.events import Completion, Event
from erllama.grammar.constraint import Constraint
from erllama.grammar.reasoning_budget import ReasoningBudget
from erllama.prompts.infill import Gap, Room
from erllama.prompts.next_turn import NextTurn
from erllama.prompts.pair import RankQuery
from erllama.request import GenerationRequest, Prompt, SamplingParams
from erllama.stats import EngineStats, ModelInfo, ModelMemory, ModelStatus


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation. `in_reasoning`: it has opened the model's reasoning, so that the
    reply begins inside.
    """

    prompt: Prompt
    in_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class RecordedReply:
    """What the replica `replica_id` keeps of a request. `head` is the request's own; `seed` the one
    that it was sampled with, `salt` its tenant's.
    """

    replica_id: str
    request_id: str
    attempt: int
    head: str
    seed: int | None
    salt: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What one replica does, holds and has counted. `store` is None without one."""

    status: ModelStatus
    stats: EngineStats
    store: StoreStats | None
    replica_id: str
    node_id: str
    n_ctx: int
    memory: ModelMemory


@dataclass(frozen=True, slots=True)
class ReplyDefaults:
    """What a model's configuration says of replies where a request does not: how they are drawn, what
    those of chats follow, and where they end (`max_tokens` None: with the context).
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    grammar: Constraint | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class VocabFacts:
    """What a model's file says of its prompts. `path` is that of the file; texts are "" where it has
    none. `n_parallel`: sequences that a replica computes at once.
    """

    path: str
    chat_template: str
    bos_text: str
    eos_text: str
    n_parallel: int


Record = Callable[[Completion], None]
"""Remembers a reply. Thread-safe."""


class ModelPort(Protocol):
    """One served model, wherever its replicas are. Every method may raise an `ErllamaError`;
    anything else is a bug.
    """

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Events in lists of one or more, in order; the last event of the last list is a `Done` or
        a `Failed`.

        Closing the generator, or cancelling the task that awaits it, cancels the request in the
        engine. Does not start before the first item is asked for.
        """

    async def find(self, request_id: str) -> RecordedReply | None:
        """What some replica keeps of a request, which may still run. Takes no longer than a few
        seconds, whatever hangs.
        """

    def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `generate`, for a request that is recorded: its events from the first on. `request` is
        the one that the recording is of.
        """

    async def cancel(self, ref: str) -> object:
        """End a request wherever it runs; what is recorded of it does not go on. Unknown ids are
        fine.
        """

    async def expect(self, turn: NextTurn) -> None:
        """The replica that served the request of `turn` may compute it while it has nothing else to do. A
        hint: wakes no model, and is lost where that replica cannot be found.
        """

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """One vector per input, all of the model's native size."""

    async def rank(self, inputs: list[list[int]]) -> list[float]:
        """The score of each input, which is the tokens of a pair: see `PromptPort.rank_query`."""

    async def ready(self) -> bool | None:
        """Whether a replica answers; None when that cannot be told without waking a model that is
        scaled to zero.
        """

    async def stats(self) -> list[EngineStats]:
        """What every replica that runs is doing. Wakes none. Raises `EngineStopped` if none runs."""

    async def model_info(self) -> ModelInfo:
        """What a replica tells of its model. Wakes a model that is scaled to zero."""

    def end_all(self, error: ErllamaError) -> None:
        """End what runs with `error` and refuse what comes: this process is going away. Any thread;
        returns at once.
        """


class PromptPort(Protocol):
    """Vocabulary and chat template of one model. Methods are thread-safe and may take milliseconds
    per 10 kB: see `loaded`.
    """

    def of_tenant(self, salt: str) -> Self:
        """The same, with the recorded replies of the requests that have this salt."""

    @property
    def defaults(self) -> ReplyDefaults:
        """What a request need not say."""

    @property
    def loaded(self) -> bool:
        """False while the next call would first read the file (a second or so), so callers go
        through a thread.
        """

    def load(self) -> object:
        """Read the file now, unless it is loaded. Raises `ModelLoadError`."""

    @property
    def n_ctx(self) -> int | None:
        """Context of one sequence in tokens; None when only the engine knows."""

    @property
    def tool_format(self) -> ToolFormat:
        """How this model writes tool calls and reasoning. Known once `loaded`."""

    @property
    def constrains_calls(self) -> bool:
        """Whether a call that a model makes of its own accord is held to the tools' schemas."""

    @property
    def marker_ids(self) -> Mapping[str, int]:
        """The markers of the tool format that are control tokens of the vocabulary. Known once
        `loaded`.
        """

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
        ending: Ending = "opened",
    ) -> ChatPrompt:
        """A conversation up to where the assistant speaks, or as `ending` says. Raises
        `NotSupported` without a template or for an ending that it cannot make, `InvalidParameter`
        when the template refuses the messages.
        """

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
        ending: Ending = "opened",
    ) -> str:
        """The text of a conversation as the template writes it, without a BOS that `tokenize` adds.
        Raises what `render_chat` raises.
        """

    def facts(self) -> VocabFacts:
        """What the file says of prompts."""

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of raw text; special tokens in the text are recognised, unless `parse_special` is
        False. May be empty.
        """

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of tokens. Raises `InvalidParameter` for an id outside of the vocabulary."""

    def rank_query(self, query: str) -> RankQuery:
        """What pairs a query with documents. It may take as long as `tokenize`, and so do its own
        methods.
        """

    @property
    def fills_gaps(self) -> bool:
        """Whether the vocabulary has the tokens of `infill_prompt`. Known once `loaded`."""

    def infill_prompt(self, gap: Gap, room: Room | None = None) -> Prompt:
        """A text with a gap, cut to fit into `room`. Raises `NotSupported` unless it `fills_gaps`."""

    def token_text(self, token: int) -> bytes:
        """The bytes of a token of the vocabulary; those of a control token are its name."""

    def reply_piece(self, token: int) -> bytes:
        """The bytes of a token as it appears in a chat's reply; b"" for one that it hides."""

    def check_tokens(self, ids: Sequence[int], param: str = "prompt") -> None:
        """Raises `InvalidParameter`, which names `param`, for an id outside of the vocabulary."""

    @property
    def pins_from(self) -> int | None:
        """The shortest prefix, in tokens, that is worth pinning where a client marks it; None where
        requests pin nothing.
        """

    def reasoning_budget(self, n_tokens: int, *, in_reasoning: bool) -> ReasoningBudget:
        """A bound of this model's reasoning. Raises `NotSupported` for a model that has none."""

    def check_constraint(self, constraint: Constraint) -> None:
        """Raises `InvalidParameter`, which names its field, for a constraint that no model could
        follow. May take many milliseconds.
        """

    def shows_late_system(self, *, tools: bool) -> bool:
        """Whether a system message behind the result of a call is shown in its place, in a chat with
        or without `tools`.
        """

    @property
    def may_wait(self) -> bool:
        """True when `render_chat` may wait for a store, so callers go through a thread."""

    @property
    def expects_turns(self) -> bool:
        """Whether the model computes what it is told to expect: see `ModelPort.expect`."""

    def recorder(self, chat: ChatPrompt) -> Record:
        """What is told of each whole reply to this chat, so that `render_chat` can put its ids
        where it comes back as history; ids that its text does not show are not kept. Some 10 ms per
        100,000 tokens.
        """


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of the ingress. `created` is unix seconds; `aliases` are accepted in requests but
    not listed. `on_demand`: it is one of the hub, and its client loads it, with a context of
    `planned_ctx` tokens or, where that does not fit into memory, fewer.
    """

    id: str
    client: ModelPort
    prompts: PromptPort
    created: int
    aliases: tuple[str, ...] = ()
    on_demand: bool = False
    planned_ctx: int | None = None

    @property
    def context(self) -> int | None:
        """Tokens of one sequence, for lists: what is known before it runs."""
        return self.prompts.n_ctx or self.planned_ctx
