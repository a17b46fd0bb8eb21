"""What people ask about the requests of a model: which were served last, and why their prompts had to
be computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from cache_store import ChainKey
from erllama.diagnosis.prompt_log import PromptLog
from erllama.diagnosis.record import PromptRecord
from erllama.errors import RequestNotFound
from erllama.model_part import ModelPart
from erllama.prompts.next_turn import NextTurn


class RequestMethods(ModelPart):
    """A part of `Model`. Every method may be called from any thread and never disturbs inference. `salt`
    says whose requests are meant; None: everybody's.
    """

    _prompt_log: PromptLog

    def requests(self, limit: int = 100, *, salt: str | None = "") -> list[PromptRecord]:
        """The requests that were served last, newest first, as far as they are remembered (512)."""
        return self._prompt_log.records(limit, salt)

    def why(self, request_id: str, *, salt: str | None = "") -> PromptRecord:
        """Why the prompt of a request was computed, as far as it was. Raises `RequestNotFound`."""
        found = self._prompt_log.record(request_id, salt)
        if found is None:
            raise RequestNotFound(
                f"no request {request_id[:160]!r} is remembered; it has no prompt, is too long ago, or is not yours",
                param="request_id",
            )
        return found

    def expect(self, turn: NextTurn) -> None:
        """Compute `turn` while no request runs or waits, as far as the context still has the request
        that it follows on. Returns at once; whatever keeps it from being computed is no error.
        """
        self._loop.expect(turn)

    def n_seen(self, keys: Iterable[ChainKey], first_at: int, before_s: float) -> int:
        """How many tokens of a prompt this model had seen before a time (unix seconds), by the chain keys
        of its blocks from the length `first_at` on. 0 for none of them.
        """
        return self._prompt_log.n_seen(keys, first_at, before_s)
