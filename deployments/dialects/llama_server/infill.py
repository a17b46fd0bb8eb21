"""`/infill`: what stands around a gap becomes the prompt of a completion."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from deployments.dialects.llama_server.params import ReadyCompletion, ready_completion
from deployments.dialects.llama_server.wire import CompletionBody, Wire
from deployments.http.body import parse_json, parse_value
from deployments.http.ports import PromptPort
from erllama.errors import RequestError
from erllama.prompts.infill import Gap, Room

MAX_FILES = 1024


class NoInfill(RequestError):
    """The vocabulary has no tokens to fill in the middle with. llama.cpp's server answers 501, by which
    editors know that they have the wrong model.
    """

    http_status = 501
    code = "not_supported"


class OtherFile(BaseModel):
    """A file of the project, or a part of one."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    text: str
    filename: str | None = None


class InfillBody(Wire):
    """`prompt` is what is written of the gap already. The knobs are those of `/completion`."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[OtherFile], Field(max_length=MAX_FILES)] | None = None
    prompt: str | None = None

    def gap(self) -> Gap:
        files = [(file.filename or "tmp", file.text) for file in self.input_extra or ()]
        return Gap(self.input_prefix, self.input_suffix, self.prompt or "", files)


def parse_infill(raw: bytes) -> tuple[InfillBody, CompletionBody]:
    """What stands around the gap, and the rest of the body as a completion without a prompt. A reply that
    goes on behind a line with less than `n_indent` does no harm: editors cut it by themselves. Raises
    `InvalidParameter`.
    """
    body = parse_json(InfillBody, raw)
    knobs = {name: value for name, value in (body.model_extra or {}).items() if name != "n_indent"}
    return body, parse_value(CompletionBody, {**knobs, "model": body.model, "prompt": ""}, "")


def ready_infill(
    body: InfillBody, completion: CompletionBody, prompts: PromptPort, n_ctx: int, engine_id: str
) -> tuple[CompletionBody, ReadyCompletion]:
    """The completion that fills the gap, in a context of `n_ctx` tokens. Raises `NoInfill`, and what
    `ready_completion` raises.
    """
    if not prompts.fills_gaps:
        raise NoInfill("Infill is not supported by this model: prefix, suffix or middle token is missing.")
    prompt = prompts.infill_prompt(body.gap(), Room.of(n_ctx, completion.max_tokens))
    asked = completion.model_copy(update={"prompt": (prompt.tokens,)})
    return asked, ready_completion(asked, prompts, engine_id)
