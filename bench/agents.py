"""Real coding agents against our real server, each one task, twice, with a restart of the server in
between: do they understand what it says, and is the second run computed from the store?

    python bench/agents.py --npm /tmp/agents [--only claude,codex] [--no-noise-rules] [--commit]
        [--json FILE]

The agents (Claude Code, Codex, opencode, Qwen Code) come from npm and run as they are, without any
other network. Their model has random weights behind a real vocabulary and the chat template of
Qwen3; a grammar in the server's configuration (`reply_grammar`) makes it think, and then either read
a file with the agent's own tool or finish. Which, hangs on the seed alone, so that both runs ask the
same. Claude Code's first prompt has some 20,000 tokens, that of the others 7,000 to 17,000.

A row per agent: requests, calls executed and prompt tokens of a run, cached tokens of the first and
of the second one, the second's share, and errors: HTTP statuses from 400 on, what the agent's output
tells, its exit status. `--commit` changes what agents tell of git, near the head of their prompts. A
run without any call proves little: another `--seed` gives one.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_clients import AGENTS, FILES, Agent, Outcome, Place, commit, install, make_project, run
from gguf import TokenType
from harness import Figures, make_parser, say
from servers import ROOT, Ours

from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import ModelShape

N_CTX = 65_536
SHAPE = ModelShape("qwen3", 2, 64, 2, 1, 128, N_CTX, rope_base=1e6, head_dim=32)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SESSION_LOGS = Path("/tmp/ray/session_latest/logs/serve")
_LINE = re.compile(
    r"event=request .*path=(?P<path>\S+) status=(?P<status>\d+) ms=\S+"
    r"(?:.* prompt_tokens=(?P<prompt>\d+) cached_tokens=(?P<cached>\d+))?"
)
_SETTLE_S = 3.0  # an agent's last side requests end after it has


@dataclass(slots=True)
class Totals:
    """What the server's log tells of one agent's run."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        return self.cached / self.prompt if self.prompt else 0.0


class AccessLog:
    """The lines of the ingress, as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.totals()

    def totals(self) -> Totals:
        """Of the requests since the last call."""
        totals = Totals()
        for path in sorted(self._folder.glob("*ingress*.log")):
            text = path.read_text(errors="replace")
            for found in _LINE.finditer(text, self._read.get(path, 0)):
                if found["path"].startswith("/health"):
                    continue
                totals.requests += 1
                totals.prompt += int(found["prompt"] or 0)
                totals.cached += int(found["cached"] or 0)
                totals.refused += int(found["status"]) >= 400
            self._read[path] = len(text)
        return totals


def write_model(path: Path, vocab: Path, template: Path) -> None:
    write_random_model(
        path,
        SHAPE,
        vocab=vocab,
        added=dict.fromkeys(MARKERS, TokenType.USER_DEFINED),
        chat_template=template.read_text(),
        file_type="F16",
        seed=1,
    )


def reply_grammar(agent: Agent, project: Path) -> str:
    """Thinking, then a call that reads one of the files, or an answer."""
    calls = []
    for name in FILES:
        tool, arguments = agent.call(project / name)
        call = json.dumps({"name": tool, "arguments": arguments})
        calls.append(json.dumps(f"<tool_call>\n{call}\n</tool_call>"))
    return "\n".join(
        (
            "root ::= think (intro call | answer)",
            r'think ::= "<think>\nThe user wants to know what is here.\n</think>\n\n"',
            'intro ::= "" | "Let me look. " | "I read on. " | "Now this one. "',
            f"call ::= {' | '.join(calls)}",
            'answer ::= "They print tide tables."',
        )
    )


def app_args(model: Path, work: Path, agents: list[Agent], seed: int, *, noise_rules: bool) -> dict[str, Any]:
    sampling = {"seed": seed, "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    models = [
        {
            "id": agent.name,
            "aliases": [f"{agent.name}-*"],
            "path": str(model),
            "n_ctx": N_CTX,
            "n_parallel": 3,
            "n_threads": 2,
            "num_cpus": 0.1,
            "type_k": "q8_0",  # with both, a restored prompt is answered token for token as a computed one
            "type_v": "q8_0",
            "sampling": sampling,
            "reply_grammar": reply_grammar(agent, work / "project"),
        }
        for agent in agents
    ]
    return {
        "models": models,
        "store": {"tiers": [{"url": str(work / "kv")}]},
        "policy": {
            "restore_always": True,
            "cold_max_tokens": N_CTX,
        },  # computing is faster than reading for such a model
        **({} if noise_rules else {"http": {"noise": {"enabled": False}}}),
    }


def measure(args: Any, work: Path) -> dict[str, list[tuple[Totals, Outcome]]]:
    """Both runs of each agent."""
    agents = [agent for agent in AGENTS if not args.only or agent.name in args.only.split(",")]
    write_model(work / "model.gguf", args.vocab, args.template)
    make_project(work / "project")
    config = app_args(work / "model.gguf", work, agents, args.seed, noise_rules=not args.no_noise_rules)
    runs: dict[str, list[tuple[Totals, Outcome]]] = {agent.name: [] for agent in agents}
    for number in (1, 2):
        if number == 2 and args.commit:
            commit(work / "project", "Another day", {"news.txt": "The tide was late.\n"})
        with Ours(config, port=args.port) as server:
            log = AccessLog(SESSION_LOGS)
            for agent in agents:
                say(f"run {number}: {agent.name}")
                place = Place(work / "homes" / agent.name, work / "project", f"http://127.0.0.1:{server.port}")
                place.home.mkdir(parents=True, exist_ok=True)
                outcome = run(agent, place, args.npm / "node_modules" / ".bin", work / f"{agent.name}-{number}.log")
                time.sleep(_SETTLE_S)
                totals = log.totals()
                outcome.errors.extend([f"{totals.refused} refused requests"] if totals.refused else [])
                runs[agent.name].append((totals, outcome))
                for error in outcome.errors:
                    say(f"{agent.name}: {error}")
    return runs


def table(runs: dict[str, list[tuple[Totals, Outcome]]]) -> str:
    rows = [
        "| agent | requests | calls | prompt tokens | cached, first run | cached, second run | share | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, ((first, _), (second, outcome)) in runs.items():
        n_errors = sum(len(outcome.errors) for _, outcome in runs[name])
        rows.append(
            f"| {name} | {second.requests} | {outcome.calls} | {second.prompt} | {first.cached} | {second.cached} "
            f"| {second.share:.1%} | {n_errors} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = make_parser(__doc__)
    models = ROOT / "build" / "llama.cpp" / "models"
    parser.add_argument("--npm", type=Path, required=True, help="a folder where the agents are, or get installed")
    parser.add_argument("--only", help="names of agents, with commas: " + ", ".join(agent.name for agent in AGENTS))
    parser.add_argument("--no-noise-rules", action="store_true", help="prompts as clients send them")
    parser.add_argument("--commit", action="store_true", help="a commit in the project between the runs")
    parser.add_argument("--seed", type=int, default=1, help="of what the model says (default 1)")
    parser.add_argument("--vocab", type=Path, default=models / "ggml-vocab-qwen2.gguf")
    parser.add_argument("--template", type=Path, default=models / "templates" / "Qwen-Qwen3-0.6B.jinja")
    parser.add_argument("--port", type=int, default=8240)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here, and leave logs and files behind")
    args = parser.parse_args()
    args.npm = args.npm.resolve()
    install(args.npm)

    work = (args.keep or Path(tempfile.mkdtemp(prefix="bench-agents-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        runs = measure(args, work)
    finally:
        if not args.keep:
            shutil.rmtree(work)
    figures = Figures()
    for name, pairs in runs.items():
        for number, (totals, outcome) in enumerate(pairs, 1):
            figures.add(f"{name}.run{number}.requests", totals.requests, "1")
            figures.add(f"{name}.run{number}.calls", outcome.calls, "1")
            figures.add(f"{name}.run{number}.prompt", totals.prompt, "tok")
            figures.add(f"{name}.run{number}.cached", totals.cached, "tok")
            figures.add(f"{name}.run{number}.errors", len(outcome.errors), "1")
        figures.add_ratio(f"{name}.share", pairs[1][0].cached, pairs[1][0].prompt)
    figures.report(args.json)
    print(table(runs))


if __name__ == "__main__":
    main()
