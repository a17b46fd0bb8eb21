"""The same benchmark in this checkout and in another one, by turns: what a change costs.

    python bench/against.py --other CHECKOUT [--rounds 2] [--json FILE] -- warm.py --model M.gguf --no-s3

Each round runs the script once per checkout, in changing order, so that a machine whose load drifts
treats both alike; each run has the checkout it belongs to as working directory and import path, and
this interpreter. `CHECKOUT` is a working tree of an earlier commit (`git worktree add`).

this.NAME, other.NAME   the medians over the rounds of every figure that both report
ratio.NAME              this / other; whether more is better is up to the figure
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness import Figures, make_parser, median, say

ROOT = Path(__file__).resolve().parent.parent


def run(checkout: Path, script: Sequence[str]) -> dict[str, tuple[float, str]]:
    """The figures of one run, by name, with their units."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, str(checkout / "bench" / script[0]), *script[1:], "--json", str(path)]
        env = {**os.environ, "PYTHONPATH": str(checkout)}
        status = subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, check=False).returncode
        if not path.exists():
            raise SystemExit(f"{script[0]} ended with status {status} and without figures")
        rows = json.loads(path.read_text())["figures"]
    return {row["name"]: (row["value"], row["unit"]) for row in rows if row["value"] is not None}


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--other", type=Path, required=True, help="the working tree of another commit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("script", nargs="+", help="a script of bench/ and its arguments, behind --")
    args = parser.parse_args()

    checkouts = {"this": ROOT, "other": args.other.resolve()}
    values: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in checkouts}
    units: dict[str, str] = {}
    for turn in range(args.rounds):
        for name in checkouts if turn % 2 == 0 else reversed(checkouts):
            say(f"round {turn + 1} of {args.rounds}: {name}")
            for figure, (value, unit) in run(checkouts[name], args.script).items():
                values[name][figure].append(value)
                units[figure] = unit

    figures = Figures()
    shared = [name for name in values["this"] if name in values["other"]]
    for side in checkouts:
        for name in shared:
            figures.add(f"{side}.{name}", median(values[side][name]), units[name])
    for name in shared:
        figures.add_ratio(f"ratio.{name}", median(values["this"][name]), median(values["other"][name]))
    figures.report(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
