"""What goes into the engine: a request, checked when it is made. `events` has what comes out.

Everything here is frozen, picklable and free of any HTTP dialect. Positions count tokens from 0;
times are milliseconds in fields that end in `_ms`; probabilities are natural logarithms.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

from erllama.errors import InvalidParameter, check_int, check_number, check_type
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.reasoning_budget import ReasoningBudget
from erllama.session_name import check_salt, check_session_id, session_name

MAX_STOP_STRINGS = 64  # OpenAI allows 4, llama-server any number; a bound keeps the scan per token cheap
MAX_STOP_BYTES = 1024
MAX_TOP_LOGPROBS = 20  # OpenAI's bound
MAX_LOGIT_BIAS = 2048
MAX_KEEP_S = 3600.0
MAX_PRIORITY = 1000
SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The chain runs in this order: grammar, penalties, top_k, top_p,
    min_p, temperature, draw.

    Defaults of temperature, top_k, top_p, min_p and repeat_last_n are those of llama.cpp's own
    tools (`common_params_sampling`), so that a model behaves as its users know it. `temperature` 0
    is greedy; 0, 1 and 0 turn `top_k`, `top_p` and `min_p` off. The draw for a position depends on
    (seed, position) only.

    temperature: divides the logits; 0 takes the most probable token.
    top_k: so many of the most probable tokens are left; 0: all.
    top_p: of the most probable tokens as many as have this probability together; 1: all.
    min_p: tokens less probable than this share of the most probable one are left out; 0: none.
    repetition_penalty: what logits of tokens in the last `repeat_last_n` are divided by, or
        multiplied with where they are negative.
    frequency_penalty: is taken off a logit for each time that its token stands there.
    presence_penalty: is taken off once.
    repeat_last_n: tokens, of prompt and reply, that penalties look at; -1: all, 0: none.
    seed: of the draws; None: a new one for each request.
    logit_bias: pairs of a token id and what is added to its logit; -100 or less bans the token, as
        OpenAI documents.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 100)
        check_int("top_k", self.top_k, 0, 1_000_000)
        check_number("top_p", self.top_p, 0, 1)
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        check_number("presence_penalty", self.presence_penalty, -2, 2)
        check_int("repeat_last_n", self.repeat_last_n, -1, 1_000_000)
        if self.seed is not None:
            check_int("seed", self.seed, -(2 ** (SEED_BITS - 1)), 2**SEED_BITS - 1)
        _check_logit_bias(self.logit_bias)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def penalised(self) -> bool:
        return self.repeat_last_n != 0 and (
            self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )


def _check_logit_bias(pairs: tuple[tuple[int, float], ...]) -> None:
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidParameter(
            f"logit_bias must be pairs of a token id and a bias, got {pairs!r:.80}", param="logit_bias"
        )
    if len(pairs) > MAX_LOGIT_BIAS:
        raise InvalidParameter(f"logit_bias has {len(pairs)} entries, at most {MAX_LOGIT_BIAS}", param="logit_bias")
    for token, bias in pairs:
        check_int("logit_bias", token, 0, 2**31 - 1)
        check_number("logit_bias", bias, -1000, 1000)


@dataclass(frozen=True, slots=True)
class TokenPart:
    """Text of a prompt, as token ids of the model's own vocabulary."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ids("prompt", "the prompt", self.ids)


PromptPart = TokenPart
"""What a prompt consists of. Text is the only kind so far."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: parts in their order. `tokens` are the ids of all of them, joined once. Its
    length counts positions.
    """

    parts: tuple[PromptPart, ...]
    tokens: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = self.parts
        object.__setattr__(
            self, "tokens", parts[0].ids if len(parts) == 1 else tuple(chain.from_iterable(part.ids for part in parts))
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Prompt, (self.parts,))

    @classmethod
    def of(cls, ids: Iterable[int]) -> Prompt:
        """A prompt of text alone. Raises `InvalidParameter` unless `ids` are integers."""
        return cls((TokenPart(tuple(ids)),))


@dataclass(frozen=True, slots=True)
class Pin:
    """The KV of the first `n_tokens` of a prompt shall stay in the store for `ttl_s`, within the quota
    of `owner` and what the policy allows.
    """

    n_tokens: int
    ttl_s: float
    owner: str = ""

    def __post_init__(self) -> None:
        check_int("pin.n_tokens", self.n_tokens, 0)
        check_number("pin.ttl_s", self.ttl_s, 0)
        check_type("pin.owner", self.owner, str, "a string")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue; everything in it has been rendered and tokenised.

    `prompt` may be given as a tuple of token ids, which is short for a prompt of text alone.
    `max_tokens` None generates until EOS or the end of the context; 0 only prefills. `stop` strings
    end the text before them and never appear in it. `ignore_eos` generates past the model's EOS.
    `grammar` is what the text must follow, a string being GBNF with a `root` rule. `logprobs` None
    is off, n >= 0 reports the chosen token and the n likeliest ones; with `post_sampling` among those
    that it was drawn from, behind grammar, penalties, truncation and temperature. `parent_key` names a saved
    state to resume from (a hint: an unknown key is a miss, not an error); the request waits a
    moment for a save of that state that is in flight. `session_id` keeps the sequence in the
    context after its end for the next request of the session. `record_transcript` says that the
    reply will come back as chat history: the ids it was sampled as are stored, under its text as
    `tool_format` reads it. `shown` are control tokens that belong to the text of the reply (the
    markers of calls and reasoning), with their texts. `in_reasoning`: the prompt has opened the
    model's reasoning. `reasoning` bounds what the model thinks.
    `resumed` are the ids of the reply that an earlier run of this request has delivered, with the text
    that became certain with them: generation goes on after them, and only what is new is delivered.
    `max_tokens` counts them. The seed must then be that of the earlier run, for the reply to be the
    one it would have been. `restore_only` (with `max_tokens` 0) computes nothing: what is stored of
    the prompt is put into the context, for whoever comes next, if a sequence id is left that holds
    nothing. `waits_for_others` False computes at once what another replica says that it is
    computing. Requests of one `affinity` would rather run on one replica. `report_progress` asks for
    `Progress` events while the prompt is computed. With `line_time_ms` the first line that ends so
    many milliseconds after the first token is the last one. `prediction` is what the reply may be: where
    it is, several tokens are computed in one decode. `salt` names whose KV this is:
    requests share prefixes, sessions and recorded replies with those of the same salt alone. `tenant`
    names whose request it is where several wait: tenants get equal shares. A lower `priority` goes
    first, as in vLLM; None is 0. `pin`: what the store should keep of the prompt, a hint.
    Requests of one `join_key` may have one reply: one that `joins` reads that of another which runs
    already, from its beginning. Who serves it keeps the reply for `keep_s` seconds after its last
    reader has left, with `head`, which means something to the caller alone.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Constraint | str | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    parent_key: str | None = None
    session_id: str | None = None
    record_transcript: bool = False
    tool_format: str = "hermes"
    shown: tuple[tuple[int, str], ...] = ()
    in_reasoning: bool = False
    reasoning: ReasoningBudget | None = None
    resumed: tuple[int, ...] = ()
    restore_only: bool = False
    waits_for_others: bool = True
    affinity: str | None = None
    salt: str = ""
    tenant: str = ""
    priority: int | None = None
    pin: Pin | None = None
    report_progress: bool = False
    post_sampling: bool = False
    line_time_ms: int | None = None
    prediction: tuple[int, ...] = ()
    join_key: str | None = None
    joins: bool = False
    keep_s: float = 0.0
    head: str = ""

    def __post_init__(self) -> None:
        check_type("request_id", self.request_id, str, "a string")
        object.__setattr__(self, "prompt", _as_prompt(self.prompt))
        if not self.prompt_tokens:
            raise InvalidParameter("the prompt has no tokens", param="prompt")
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.line_time_ms is not None:
            check_int("line_time_ms", self.line_time_ms, 1, 2**31 - 1)
        _check_stop(self.stop)
        if not isinstance(self.grammar, Constraint | None):
            check_type("grammar", self.grammar, str, "a GBNF string or a constraint")
            Constraint(ConstraintKind.GBNF, self.grammar)
        for name in (
            *("ignore_eos", "record_transcript", "in_reasoning", "restore_only"),
            *("report_progress", "post_sampling", "joins"),
        ):
            check_type(name, getattr(self, name), bool, "true or false")
        check_type("tool_format", self.tool_format, str, "a name")
        check_type("shown", self.shown, tuple, "pairs of a token id and a text")
        check_type("parent_key", self.parent_key, str | None, "a string")
        check_type("pin", self.pin, Pin | None, "a pin")
        check_type("affinity", self.affinity, str | None, "a string")
        check_type("join_key", self.join_key, str | None, "a string")
        check_type("head", self.head, str, "a string")
        check_number("keep_s", self.keep_s, 0, MAX_KEEP_S)
        check_salt(self.salt)
        check_salt(self.tenant, "tenant")
        if self.priority is not None:
            check_int("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.session_id is not None:
            check_session_id("session_id", self.session_id)
        _check_ids("resumed", "resumed", self.resumed)
        _check_ids("prediction", "prediction", self.prediction)
        if self.max_tokens is not None and len(self.resumed) > self.max_tokens:
            raise InvalidParameter(
                f"resumed has {len(self.resumed)} tokens and max_tokens, which counts them, is {self.max_tokens}",
                param="resumed",
            )
        if self.post_sampling and self.logprobs is None:
            raise InvalidParameter("post_sampling is about logprobs, which must be given", param="post_sampling")
        if self.restore_only and self.max_tokens != 0:
            raise InvalidParameter(
                f"restore_only generates nothing: max_tokens must be 0, got {self.max_tokens}", param="restore_only"
            )

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The ids of the whole prompt."""
        return self.prompt.tokens

    @property
    def session_name(self) -> str | None:
        """The session among those of all salts."""
        return None if self.session_id is None else session_name(self.session_id, self.salt)

    @property
    def constraint(self) -> Constraint | None:
        """What the text must follow."""
        return Constraint(ConstraintKind.GBNF, self.grammar) if isinstance(self.grammar, str) else self.grammar


def _as_prompt(given: Any) -> Prompt:
    return given if isinstance(given, Prompt) else Prompt((TokenPart(given),))


def _check_ids(name: str, what: str, ids: tuple[int, ...]) -> None:
    if not isinstance(ids, tuple) or set(map(type, ids)) - {int}:  # one pass in C: prompts are long
        raise InvalidParameter(f"{what} must be token ids, all of them integers", param=name)


def _check_stop(stop: tuple[str, ...]) -> None:
    if not isinstance(stop, tuple):
        raise InvalidParameter(f"stop must be a string or a list of strings, got {stop!r:.80}", param="stop")
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidParameter(f"stop has {len(stop)} strings, at most {MAX_STOP_STRINGS}", param="stop")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise InvalidParameter(f"stop must hold non-empty strings, got {text!r}", param="stop")
        n_bytes = len(text.encode(errors="replace"))
        if n_bytes > MAX_STOP_BYTES:
            raise InvalidParameter(f"a stop string has {n_bytes} bytes, at most {MAX_STOP_BYTES}", param="stop")


_SAMPLING_NAMES = tuple(f.name for f in fields(SamplingParams))
_REQUEST_NAMES = (
    "response_tokens", "stop", "grammar", "logprobs", "ignore_eos", "parent_key", "session_id", "report_progress",
    "post_sampling", "salt", "tenant", "priority", "prediction",
)  # fmt: skip
PARAM_NAMES = _REQUEST_NAMES + _SAMPLING_NAMES


def build_request(request_id: str, prompt_tokens: Iterable[int], params: Mapping[str, Any]) -> GenerationRequest:
    """A validated request from keyword parameters (`PARAM_NAMES`).

    Raises `InvalidParameter` that names the parameter for an unknown name, a wrong type or a value
    out of range.
    """
    _check_names(params, PARAM_NAMES)
    given = {name: value for name, value in params.items() if value is not None}
    sampling = sampling_of({name: given.pop(name) for name in _SAMPLING_NAMES if name in given})
    given["max_tokens"] = given.pop("response_tokens", None)
    stop = given.pop("stop", ())
    if isinstance(stop, str):
        stop = (stop,) if stop else ()
    given["stop"] = tuple(stop) if isinstance(stop, list) else stop
    return GenerationRequest(request_id, Prompt.of(_token_ids(prompt_tokens)), sampling, **given)


def sampling_of(given: Mapping[str, Any]) -> SamplingParams:
    """Parameters by their names; `logit_bias` may be a mapping. Raises `InvalidParameter` that names the
    parameter for an unknown name or a wrong value.
    """
    _check_names(given, _SAMPLING_NAMES)
    bias = {"logit_bias": _bias_pairs(given["logit_bias"])} if "logit_bias" in given else {}
    return SamplingParams(**{**given, **bias})


def _check_names(given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(map(str, set(given).difference(known)))
    if unknown:
        raise InvalidParameter(
            f"unknown parameter {unknown[0]!r}; known are {', '.join(sorted(known))}", param=unknown[0]
        )


def _token_ids(tokens: Iterable[int]) -> tuple[int, ...]:
    try:
        ids = tuple(tokens)
        # numpy's integers, too; bools are refused later
        return ids if bool in set(map(type, ids)) else tuple(map(operator.index, ids))
    except TypeError as error:
        raise InvalidParameter("the prompt must be token ids, all of them integers", param="prompt") from error


def _bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """A mapping (JSON made strings of its keys) or pairs, as `SamplingParams` takes them."""
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        return tuple((int(token) if isinstance(token, str) else operator.index(token), value) for token, value in pairs)
    except (TypeError, ValueError) as error:
        raise InvalidParameter(
            f"logit_bias must map token ids to biases, got {bias!r:.80}", param="logit_bias"
        ) from error
