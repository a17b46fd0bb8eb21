"""What rules did: of one request, and since this process began."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Report:
    """Of one request: how often each rule did what it says, by its name, and how often it would have
    moved a text for which there is no place.
    """

    done: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.done or self.left)

    def counts(self) -> dict[str, int]:
        """One mapping; texts that were left count under the rule's name and `.left`."""
        return {**self.done, **{f"{name}.left": n for name, n in self.left.items()}}

    def header(self) -> str:
        """`billing-header=1,date.left=1`"""
        return ",".join(f"{name}={n}" for name, n in self.counts().items())


class NoiseCounters:
    """Counts of all requests since the process began. Thread-safe. `watch` is told each of them, too,
    by any thread: the name of a rule and how often it did what it says.
    """

    def __init__(self, watch: Callable[[str, int], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._watch = watch

    def add(self, report: Report) -> None:
        if report:
            counts = report.counts()
            with self._lock:
                self._counts.update(counts)
            if self._watch is not None:
                for name, n in counts.items():
                    self._watch(name, n)

    def snapshot(self) -> dict[str, int]:
        """By the names that `Report.counts` has, in their order."""
        with self._lock:
            return dict(sorted(self._counts.items()))
