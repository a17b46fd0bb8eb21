"""`python -m deployments.doctor [CONFIG] [--json]`: exits with 1 when a check fails. Without a config it
takes the one that `erllama serve` would.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rich.console import Console

from deployments.doctor.examine import examine
from deployments.doctor.report import as_json, has_failed, show
from deployments.launch import usual_config


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="erllama doctor", description="What usually goes wrong, and what to do.")
    parser.add_argument(
        "config", nargs="?", type=Path, help="a Serve config file; by default serve_config.yaml here, if any"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args(argv)
    with Console(stderr=True).status("looking ..."):
        findings = list(examine(args.config or usual_config()))
    if args.json:
        print(as_json(findings))
    else:
        show(findings, Console())
    return int(has_failed(findings))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what goes wrong here is told as findings
    sys.exit(main(sys.argv[1:]))
