"""Bodies of llama.cpp's server, validated. Every fault is an `InvalidParameter` (HTTP 400) that names
the field. Names that it does not know pass, as there; null means absent, and whole numbers may be
written as 40.0.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from deployments.http.body import Priority, StopField, TopK, Whole

MAX_PROMPTS = 64
MAX_CHOICES = 16
MAX_EMBEDDING_INPUTS = 2048

SAMPLERS = ("penalties", "top_k", "top_p", "min_p", "temperature")
"""The samplers that there are here, in their order."""

_RANDOM_SEEDS = (-1, 2**32 - 1)

Parts = tuple[str | int, ...]
"""A prompt as a client sends it: texts and token ids in any order."""


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_prompt(value: Any, place: str) -> Parts:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise ValueError(f"{place}multimodal_data is not supported: this server reads text alone")
        if isinstance(value.get("prompt_string"), str):
            return (value["prompt_string"],)
    elif isinstance(value, list) and value and all(isinstance(part, str) or _is_id(part) for part in value):
        return tuple(value)
    raise ValueError(f"{place}must be a text, or a list of texts and token ids that is not empty")


def prompts_of(value: Any) -> tuple[Parts, ...]:
    """One prompt, or several: a list of texts alone, or one that holds lists."""
    several = isinstance(value, list) and (
        all(isinstance(one, str) for one in value) or any(isinstance(one, list | dict) for one in value)
    )
    if not several:
        return (_one_prompt(value, ""),)
    if not value:
        raise ValueError("is empty")
    return tuple(_one_prompt(one, f"entry {number}: " if len(value) > 1 else "") for number, one in enumerate(value))


def _at_most(limit: int) -> PlainValidator:
    def check(value: Any) -> tuple[Parts, ...]:
        prompts = prompts_of(value)
        if len(prompts) > limit:
            raise ValueError(f"has {len(prompts)} entries, at most {limit}")
        return prompts

    return PlainValidator(check)


def _biases(value: Any) -> Any:
    """Pairs of a token id or a text and a bias, as a list or as an object; false bans."""
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("must be pairs of a token and a bias")
    return tuple(_bias(*pair) for pair in pairs)


def _bias(token: Any, bias: Any) -> tuple[str | int, float]:
    if bias is False:
        bias = -1000
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        raise ValueError(f"a bias must be a number or false, got {bias!r:.40}")
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10:
        token = int(token)
    if not (isinstance(token, str) or _is_id(token)):
        raise ValueError(f"a token must be its id or a text, got {token!r:.40}")
    return token, max(-1000.0, min(1000.0, float(bias)))


def _samplers(value: Any) -> Any:
    """Names of samplers in the order in which they run."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list of names")
    ours = [name for name in value if name in SAMPLERS]
    if ours != [name for name in SAMPLERS if name in ours]:
        raise ValueError(f"run in the order {', '.join(SAMPLERS)} here, leave them out or send them in this order")
    return tuple(ours)


def _no_less_than_zero(value: Any) -> Any:
    return max(value, 0.0) if isinstance(value, float) or _is_id(value) else value


def _seed(value: Any) -> Any:
    return None if value in _RANDOM_SEEDS and not isinstance(value, bool) else value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


class Wire(BaseModel):
    """Base of a body."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    model: str | None = None


class CompletionBody(Wire):
    """`/completion`. Ranges are checked by `SamplingParams` and `GenerationRequest`. A line that ends
    `t_max_predict_ms` after the first token is the last one, 0 and less set no limit.
    """

    prompt: Annotated[tuple[Parts, ...], _at_most(MAX_PROMPTS)]
    stream: bool | None = None
    n_predict: Annotated[Whole, Field(ge=-1, le=2**31 - 1)] | None = Field(
        default=None, validation_alias=AliasChoices("n_predict", "max_tokens", "max_completion_tokens")
    )
    n_cmpl: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=None, validation_alias=AliasChoices("n_cmpl", "n")
    )
    temperature: Annotated[float | None, BeforeValidator(_no_less_than_zero)] = None
    top_k: TopK | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Annotated[Whole | None, BeforeValidator(_seed)] = None
    samplers: Annotated[tuple[str, ...] | None, BeforeValidator(_samplers)] = None
    stop: StopField = ()
    ignore_eos: bool | None = None
    priority: Priority = None  # not llama-server's: it says who goes first here
    t_max_predict_ms: Annotated[Whole, Field(le=2**31 - 1)] | None = None
    logit_bias: Annotated[tuple[tuple[str | int, float], ...], BeforeValidator(_biases)] = ()
    grammar: Annotated[str | None, BeforeValidator(_empty_is_none)] = None
    json_schema: dict[str, Any] | None = None
    n_probs: Whole | None = Field(default=None, validation_alias=AliasChoices("n_probs", "logprobs"))
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None

    @property
    def max_tokens(self) -> int | None:
        """None runs to the end of the context."""
        return None if self.n_predict in (None, -1) else self.n_predict

    @property
    def line_time_ms(self) -> int | None:
        return self.t_max_predict_ms if (self.t_max_predict_ms or 0) > 0 else None

    @property
    def n_top(self) -> int | None:
        """How many of the likeliest tokens are told, None for no probabilities at all."""
        return self.n_probs or None


class EmbeddingBody(Wire):
    """`/embedding`: the text is `content`, or `input` as OpenAI calls it."""

    content: Annotated[tuple[Parts, ...], _at_most(MAX_EMBEDDING_INPUTS)] = Field(
        validation_alias=AliasChoices("content", "input")
    )
    embd_normalize: Whole | None = None


class TokenizeBody(Wire):
    """`/tokenize`. With `prompt` it is vLLM's form; its chats are read elsewhere."""

    content: Annotated[tuple[Parts, ...], PlainValidator(lambda value: (_one_prompt(value, ""),))] | None = None
    prompt: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Wire):
    tokens: list[Whole]
