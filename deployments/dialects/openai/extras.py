"""What llama.cpp's server adds to replies of OpenAI's shape: `timings`, and the progress of a prompt.

The last chunk of a choice always has its timings, and so has a whole body: once per reply they cost
nothing, and clients pass over names that they do not know. Of a single choice that is the chunk with
the usage, if there is one. Other chunks have them when asked to (`timings_per_token`); chunks that
tell progress come when asked to (`return_progress`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.generation.timings import RunningTimings, prompt_progress, timings
from deployments.http.body import encode
from erllama.events import Completion, Event, Progress, RequestStats

_END = "}]}\n\n"


@dataclass(frozen=True, slots=True)
class Extras:
    """What a streamed reply was asked for: timings in each chunk, the progress of its prompt."""

    timings: bool = False
    progress: bool = False

    @property
    def report_progress(self) -> bool:
        """Whether the engine has to tell it: timings of the prompt are known from there, too."""
        return self.timings or self.progress


NO_EXTRAS = Extras()


class ChunkEnd:
    """How the chunks of one choice end, behind the members of the choice; now as `text` says. Only one
    that is `timed` must be told of events, with `push`.
    """

    def __init__(self, extras: Extras) -> None:
        self.timed = extras.timings
        self._running = RunningTimings() if extras.timings else None
        self._tells_progress = extras.progress
        self.text = _END

    def push(self, event: Event) -> None:
        """Before the event is written."""
        if self._running is not None:
            self._running.push(event)
            self.text = _end(timings=self._running.now())

    def progress(self, event: Progress) -> str:
        """The end of a chunk that tells `event`, "" if none shall."""
        timed = {} if self._running is None else {"timings": self._running.now()}
        return _end(**timed, prompt_progress=prompt_progress(event)) if self._tells_progress else ""

    def last(self, stats: RequestStats, *, usage_follows: bool) -> str:
        """The end of the last chunk; `usage_follows`: a chunk with the usage has the timings."""
        return _END if usage_follows else _end(timings=timings(stats))


def _end(**members: Any) -> str:
    return f"}}],{encode(members)[1:]}\n\n"


def with_timings(body: dict[str, Any], replies: Sequence[Completion]) -> dict[str, Any]:
    """A whole body, whose choices are `replies`. Several have timings of their own, each."""
    if len(replies) == 1:
        return body | {"timings": timings(replies[0].stats)}
    choices = [
        choice | {"timings": timings(reply.stats)} for choice, reply in zip(body["choices"], replies, strict=True)
    ]
    return body | {"choices": choices}
