"""What every script in bench/ shares: figures (a `name value unit` line each, and JSON),
percentiles, and prompts of random token ids.

Progress goes to stderr; stdout holds figures alone, ratios last.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `name` has no spaces, so that a line splits into three columns."""

    name: str
    value: float
    unit: str

    def line(self) -> str:
        return f"{self.name} {format_value(self.value)} {self.unit}"


@dataclass(slots=True)
class Figures:
    """The figures of one run. Ratios are kept apart and come last. `extra` is raw material that
    only the JSON shows.
    """

    figures: list[Figure] = field(default_factory=list)
    ratios: list[Figure] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def add(self, name: str, value: float, unit: str) -> None:
        self.figures.append(Figure(name, value, unit))

    def add_ratio(self, name: str, numerator: float | None, denominator: float | None) -> None:
        """Skipped where either side was not measured."""
        if numerator is not None and denominator and math.isfinite(numerator) and math.isfinite(denominator):
            self.ratios.append(Figure(name, numerator / denominator, "x"))

    def get(self, name: str) -> float | None:
        return next((figure.value for figure in self.figures if figure.name == name), None)

    def document(self) -> dict[str, Any]:
        """What `--json` writes; values that are not finite become null."""
        return {
            "command": shown_command(sys.argv),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "load_before": self.load_before,
            "load_after": os.getloadavg(),
            "python": platform.python_version(),
            "figures": [_finite(asdict(figure)) for figure in [*self.figures, *self.ratios]],
            **self.extra,
        }

    def report(self, json_path: Path | None) -> None:
        """Print every line; write the JSON where it is wanted."""
        for figure in [*self.figures, *self.ratios]:
            print(figure.line())
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(self.document(), indent=1) + "\n")

    def conclude(self, json_path: Path | None, failures: Sequence[str]) -> int:
        """Report, failures last; the exit status of the script."""
        self.extra["failures"] = list(failures)
        self.report(json_path)
        for failure in failures:
            say("FAILED:", failure)
        return 1 if failures else 0


def shown_command(argv: Sequence[str]) -> str:
    """A command line as results keep it: where files lay on the machine that measured is nobody's
    business, their names are.
    """
    parts = [(head + separator, tail) for head, separator, tail in (arg.rpartition("=") for arg in argv[1:])]
    return shlex.join(
        [Path(argv[0]).name, *(head + (Path(tail).name if tail.startswith("/") else tail) for head, tail in parts)]
    )


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def format_value(value: float) -> str:
    """Four significant digits, never an exponent."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    value = float(f"{value:.3e}")  # 9.9999 has the digits of 10.00
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def percentile(values: Iterable[float], percent: float) -> float:
    """The value at `percent` (0 to 100), linear between neighbours; nan without values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Iterable[float]) -> float:
    """The median of what was measured; nan when nothing was."""
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else math.nan


def cpu_model() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class PromptMaker:
    """Prompts of random ids, no two alike, so that nothing can be reused. Control tokens are in the
    outer tenths of a vocabulary.
    """

    def __init__(self, n_vocab: int, seed: int = 0) -> None:
        self._low, self._high = n_vocab // 10, max(n_vocab - n_vocab // 10, n_vocab // 10 + 1)
        self._random = random.Random(seed)

    def make(self, n_tokens: int) -> list[int]:
        return [self._random.randrange(self._low, self._high) for _ in range(n_tokens)]


def int_list(text: str) -> list[int]:
    """An argparse type: `1,4,8`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers separated by commas, got {text!r}") from None
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError("expected no negative numbers")
    return values


def setting(text: str) -> tuple[str, Any]:
    """An argparse type: `key=value`, the value as JSON where it parses, else as a string."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the module's docstring as help and the `--json` that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser


def add_place_options(parser: argparse.ArgumentParser, *, ram: bool = False) -> None:
    """Where the tiers of a benchmark lie."""
    if ram:
        parser.add_argument("--ram-dir", default="/dev/shm", help="a RAM file system (default /dev/shm)")
    parser.add_argument(
        "--disk-dir", default=tempfile.gettempdir(), help="a directory on a disk (default: where temporary files go)"
    )


def with_server_threads() -> None:
    """For benchmarks in process: start again with the OpenMP switch that the launcher sets, which
    libgomp reads when it is loaded.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GOMP_SPINCOUNT": "3000"})


def say(*words: object) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}]", *words, file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> float:
    """(max - min) / median: how far the rounds lie apart; nan without values."""
    known = [value for value in values if math.isfinite(value)]
    middle = median(known)
    return (max(known) - min(known)) / middle if known and middle else math.nan
