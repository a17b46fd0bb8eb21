"""What rules did: of one request, and since this process began."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
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
    """Counts of all requests since the process began. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, report: Report) -> None:
        if report:
            with self._lock:
                self._counts.update(report.counts())

    def snapshot(self) -> dict[str, int]:
        """By the names that `Report.counts` has, in their order."""
        with self._lock:
            return dict(sorted(self._counts.items()))
