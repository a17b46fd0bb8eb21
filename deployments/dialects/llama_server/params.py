"""From bodies of llama.cpp's server to `GenerationRequest`s."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from deployments.dialects.llama_server.knobs import NEUTRAL, check_knobs
from deployments.dialects.llama_server.wire import SAMPLERS, CompletionBody, Parts
from deployments.generation.reply import check_fits, with_ends
from deployments.http.ports import PromptPort
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, Constraint, ConstraintKind
from erllama.request import MAX_TOP_LOGPROBS, SEED_BITS, GenerationRequest, Prompt, SamplingParams

_RANDOM = 2**32 - 1  # how a seed that is drawn is told

_NAMES = {"repeat_penalty": "repetition_penalty"}  # theirs and ours
_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip
_OFF: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "temperature": {"temperature": 1.0},
}


@dataclass(frozen=True, slots=True)
class ReadyCompletion:
    """What runs: one request per prompt and choice, with the texts of the prompts."""

    requests: tuple[GenerationRequest, ...]
    texts: tuple[str, ...]
    settings: dict[str, Any]


def prompt_ids(
    parts: Parts, prompts: PromptPort, param: str, *, add_special: bool = True, parse_special: bool = True
) -> list[int]:
    """Only a text that begins a prompt gets a BOS. Raises `InvalidParameter` for ids that the
    vocabulary lacks.
    """
    prompts.check_tokens([part for part in parts if isinstance(part, int)], param)
    ids: list[int] = []
    for number, part in enumerate(parts):
        begins = add_special and number == 0
        ids += [part] if isinstance(part, int) else prompts.tokenize(part, begins, parse_special)
    return ids


def text_of(ids: list[int] | tuple[int, ...], prompts: PromptPort) -> str:
    """The text of tokens, control tokens by their names."""
    return b"".join(prompts.token_text(token) for token in ids).decode(errors="replace")


def ready_completion(body: CompletionBody, prompts: PromptPort, engine_id: str) -> ReadyCompletion:
    """May take long: see `PromptPort`. Raises `InvalidParameter`, `NotSupported`, `ContextOverflow`."""
    check_knobs(body.model_extra or {})
    constraint = _constraint(body)
    if constraint is not None:
        prompts.check_constraint(constraint)
    sampling = _sampling(body, prompts)
    requests: list[GenerationRequest] = []
    texts: list[str] = []
    for number, parts in enumerate(body.prompt):
        ids = prompt_ids(parts, prompts, "prompt")
        if not ids:
            raise InvalidParameter("prompt is empty", param="prompt")
        prompt = Prompt.of(ids)
        check_fits(prompt, prompts.n_ctx, "prompt")
        one = GenerationRequest(
            request_id=engine_id if len(body.prompt) == 1 else f"{engine_id}.p{number}",
            prompt=prompt,
            sampling=sampling,
            max_tokens=body.max_tokens,
            stop=body.stop,
            grammar=constraint,
            logprobs=_n_probs(body),
            post_sampling=bool(body.post_sampling_probs) and body.n_top is not None,
            ignore_eos=bool(body.ignore_eos),
            priority=body.priority,
            line_time_ms=body.line_time_ms,
            report_progress=bool(body.stream and (body.return_progress or body.timings_per_token)),
        )
        choices = _choices(with_ends(one, prompts.defaults), body.n_cmpl or 1)
        requests += choices
        texts += [text_of(ids, prompts)] * len(choices)
    return ReadyCompletion(tuple(requests), tuple(texts), settings(body, sampling))


def _n_probs(body: CompletionBody) -> int | None:
    n_top = body.n_top
    if n_top is not None and not 0 < n_top <= MAX_TOP_LOGPROBS:
        raise InvalidParameter(f"n_probs must be between 0 and {MAX_TOP_LOGPROBS}, got {n_top}", param="n_probs")
    return n_top


def _choices(base: GenerationRequest, n: int) -> list[GenerationRequest]:
    """Choices differ, and each can be asked for alone by its own seed."""
    if n == 1:
        return [base]
    seed = base.sampling.seed
    seeds = [None if seed is None else (seed + i) % 2 ** (SEED_BITS - 1) for i in range(n)]
    return [
        replace(base, request_id=f"{base.request_id}.{i}", sampling=replace(base.sampling, seed=seeds[i]))
        for i in range(n)
    ]


def _constraint(body: CompletionBody) -> Constraint | None:
    if body.grammar is not None and body.json_schema is not None:
        raise InvalidParameter("grammar and json_schema exclude each other", param="grammar")
    if body.grammar is not None:
        return Constraint(ConstraintKind.GBNF, body.grammar, "grammar")
    if body.json_schema is not None:
        return Constraint.of_schema(body.json_schema or JSON_OBJECT, "json_schema")
    return None


def _sampling(body: CompletionBody, prompts: PromptPort) -> SamplingParams:
    given = {_NAMES.get(name, name): getattr(body, name) for name in _SAMPLING if getattr(body, name) is not None}
    if body.samplers is not None:
        for name, off in _OFF.items():
            given |= off if name not in body.samplers else {}
    try:
        biases = _biases(body, prompts)
        if biases:
            given["logit_bias"] = biases
        return replace(prompts.defaults.sampling, **given)
    except InvalidParameter as error:
        if error.param != "repetition_penalty":
            raise
        raise InvalidParameter(error.message.replace(error.param, "repeat_penalty"), param="repeat_penalty") from None


def _biases(body: CompletionBody, prompts: PromptPort) -> tuple[tuple[int, float], ...]:
    """A text biases each of its tokens. What is said twice adds up."""
    prompts.check_tokens([token for token, _ in body.logit_bias if isinstance(token, int)], "logit_bias")
    sums: Counter[int] = Counter()
    for token, bias in body.logit_bias:
        for one in [token] if isinstance(token, int) else prompts.tokenize(token, add_special=False):
            sums[one] = max(-1000.0, min(1000.0, sums[one] + bias))  # type: ignore[assignment]
    return tuple((token, float(bias)) for token, bias in sums.items())


def settings(body: CompletionBody, sampling: SamplingParams) -> dict[str, Any]:
    """`generation_settings`: what holds, under llama.cpp's names."""
    n_predict = -1 if body.max_tokens is None else body.max_tokens
    return {
        "seed": _RANDOM if sampling.seed is None else sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_last_n": sampling.repeat_last_n,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        **NEUTRAL,
        "stop": list(body.stop),
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": bool(body.ignore_eos),
        "t_max_predict_ms": body.line_time_ms or 0,
        "stream": bool(body.stream),
        "logit_bias": [{"token": token, "bias": bias} for token, bias in sampling.logit_bias],
        "n_probs": body.n_probs or 0,
        "post_sampling_probs": bool(body.post_sampling_probs),
        "grammar": body.grammar or "",
        "samplers": list(SAMPLERS),
        "timings_per_token": bool(body.timings_per_token),
    }
