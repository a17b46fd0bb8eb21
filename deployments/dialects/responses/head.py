"""A response as each snapshot of it shows it: what was asked for, then how far it has come.

Strict clients want every field in every snapshot, so the first part is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.dialects.responses.params import sampling_params
from deployments.dialects.responses.wire import ResponseBody
from deployments.dialects.responses.wire_tools import ToolChoice
from deployments.generation.identity import ReplyIdentity
from deployments.http.body import encode, encode_given
from erllama.errors import ContextOverflow, ErllamaError, QueueFull
from erllama.events import RequestStats
from erllama.request import SamplingParams


def usage(stats: RequestStats, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
    }


def failure(error: ErllamaError, request_id: str) -> dict[str, Any]:
    """The `error` of a response that failed. Clients compact on the first code, and read from the
    text of the second how long to wait.
    """
    if isinstance(error, ContextOverflow):
        return {"code": "context_length_exceeded", "message": error.message}
    if isinstance(error, QueueFull):
        wait_s = error.retry_after_s or 1
        return {"code": "rate_limit_exceeded", "message": f"{error.message} Please try again in {wait_s}s."}
    code = "server_error" if error.http_status >= 500 else "invalid_prompt"
    return {"code": code, "message": f"{error.message} (request id {request_id})"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`id` is that of the response; `static` the JSON of what never changes, without its closing
    brace.
    """

    id: str
    static: str
    identity: ReplyIdentity

    @classmethod
    def of(cls, body: ResponseBody, model: str, defaults: SamplingParams, identity: ReplyIdentity) -> ResponseHead:
        sampling, wanted = sampling_params(body, defaults), body.format
        form = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
        choice = body.tool_choice
        id = f"resp_{identity.nonce}"
        fields = {
            "id": id,
            "object": "response",
            "created_at": identity.created,
            "model": model,
            "background": bool(body.background),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "prompt_cache_retention": body.prompt_cache_retention,
            "reasoning": {"effort": body.effort, "summary": body.summary},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": sampling.temperature,
            "text": {"format": form, "verbosity": (body.text and body.text.verbosity) or "medium"},
            "tool_choice": dict(choice.given) if isinstance(choice, ToolChoice) else choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "user": body.user,
        }
        return cls(id, encode_given(fields).removesuffix("}"), identity)

    def snapshot(
        self,
        status: str,
        output: Sequence[dict[str, Any]] = (),
        *,
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        incomplete: str | None = None,
        seconds: float = 0.0,
    ) -> str:
        """The JSON of the response. `incomplete` is the reason why it was cut off; `seconds` is how
        long it took.
        """
        fields = {
            "status": status,
            "completed_at": int(self.identity.created + seconds) if status == "completed" else None,
            "error": error,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "output": list(output),
            "usage": usage,
        }
        return f"{self.static},{encode(fields).removeprefix('{')}"
