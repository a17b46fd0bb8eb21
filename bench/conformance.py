"""What an OpenAI-compatible server should do, asked case by case of any such server.

    python bench/conformance.py --base-url http://127.0.0.1:8000/v1 --model demo [--api-key KEY]
    [--only WORD] [--list] [--json FILE]

A line on stdout for each case: its name, `pass` or `fail`, and the first line of the reason. Cases
ask for short greedy replies; those of forced calls and of JSON need a model that ends its strings.
Figures: how many cases there were, passed and failed. The exit status is 1 if one failed.

The cases lie in conformance_chat.py (templates, tools), conformance_structure.py (replies of a form),
conformance_wire.py (streams, log probabilities, parameters, HTTP) and conformance_llama.py (the
routes of llama.cpp's server and of vLLM beside OpenAI's; `--only llama_`): each is a function that
is given a `Target` and raises `AssertionError` with what it saw.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import conformance_chat
import conformance_llama
import conformance_structure
import conformance_wire
import httpx
from conformance_kit import Case, Target
from harness import Figures, make_parser

CASES: dict[str, Case] = {
    **conformance_chat.CASES.by_name,
    **conformance_structure.CASES.by_name,
    **conformance_wire.CASES.by_name,
    **conformance_llama.CASES.by_name,
}
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` is "" for a case that passed."""

    name: str
    reason: str

    def line(self, width: int) -> str:
        return f"{self.name:<{width}}  {f'fail  {self.reason}' if self.reason else 'pass'}"


def reason_of_failure(case: Case, target: Target) -> str:
    """The first line of why `case` fails, "" if it passes. A reply of another shape than the case
    reads is a failure, too.
    """
    try:
        case(target)
    except AssertionError as error:
        return first_line(str(error)) or "assertion failed"
    except (httpx.HTTPError, LookupError, TypeError, ValueError, AttributeError) as error:
        return first_line(f"{type(error).__name__}: {error}")
    return ""


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def outcomes(target: Target, cases: Mapping[str, Case]) -> Iterator[Outcome]:
    """Each case's, as it ends."""
    for name, case in cases.items():
        yield Outcome(name, reason_of_failure(case, target))


def figures_of(results: list[Outcome]) -> Figures:
    figures = Figures()
    n_failed = sum(bool(result.reason) for result in results)
    figures.add("cases", len(results), "cases")
    figures.add("passed", len(results) - n_failed, "cases")
    figures.add("failed", n_failed, "cases")
    figures.extra["cases"] = [{"name": result.name, "failure": result.reason or None} for result in results]
    return figures


def case_parser(doc: str | None, *, base_url: str, where: str) -> argparse.ArgumentParser:
    """A parser with which server to ask what. `where` says what the base URL is."""
    parser = make_parser(doc)
    parser.add_argument("--base-url", default=base_url, help=where)
    parser.add_argument("--model", default="demo", help="the model to ask (default demo)")
    parser.add_argument("--only", default="", metavar="WORD", help="only the cases with WORD in their names")
    return parser


def ask(args: argparse.Namespace, cases: Mapping[str, Case], **headers: str) -> int:
    """Asks `cases` of the server that `args` name and reports; the exit status of the script."""
    results = []
    with httpx.Client(base_url=args.base_url, headers=headers, timeout=TIMEOUT_S) as http:
        for outcome in outcomes(Target(http, args.model), cases):
            print(outcome.line(max(map(len, cases))), flush=True)
            results.append(outcome)
    figures_of(results).report(args.json)
    return 1 if any(result.reason for result in results) else 0


def main() -> int:
    parser = case_parser(__doc__, base_url="http://127.0.0.1:8000/v1", where="where the API is, with /v1")
    parser.add_argument("--api-key", default="none", help="sent as a bearer token")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    args = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if args.only in name}
    if args.list:
        print("\n".join(cases))
        return 0
    return ask(args, cases, authorization=f"Bearer {args.api_key}")


if __name__ == "__main__":
    sys.exit(main())
