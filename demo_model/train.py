"""Trains the demo model: `python -m demo_model.train --out DIR`.

The run directory holds tokenizer.json, log.csv (one line per `--log-every` steps) and
checkpoint.pt. A run continues from its checkpoint and, schedule unchanged, repeats the
uninterrupted run step by step: batches depend on (seed, step) only and the checkpoint holds both
optimizers (sums in floating point still depend on the number of threads, which follows the spare
cores when the machine is shared). The learning rate warms up, stays, and decays linearly between
`--decay-at-tokens` and `--total-tokens`; a continued run may be given other values of those two,
which is how a decay is started at any time. SIGTERM saves and stops.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer

from demo_model.batches import TOKENS_PER_MICRO, BatchMaker, MicroBatch
from demo_model.model import DemoModel, ModelConfig, rope_table
from demo_model.spare_cores import SpareCores
from demo_model.tokenizer import train_tokenizer
from demo_model.torch_eval import quick_scores

logger = logging.getLogger(__name__)

MICRO_PER_STEP = 2
MUON_RATE = 0.01
# Embedding and norms. Rates twice as high showed no recall at all in early trials.
ADAMW_RATE = 5e-4
WARM_UP_STEPS = 200
FINAL_RATE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Schedule:
    decay_at_tokens: int
    total_tokens: int

    def rate_share(self, step: int, n_tokens: int) -> float:
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        if n_tokens <= self.decay_at_tokens:
            return warm
        done = (n_tokens - self.decay_at_tokens) / max(1, self.total_tokens - self.decay_at_tokens)
        return warm * max(FINAL_RATE_SHARE, 1.0 - done)


class Trainer:
    def __init__(self, out: Path, *, seed: int, schedule: Schedule, curriculum_tokens: int, compiled: bool) -> None:
        self.out, self.schedule, self.seed = out, schedule, seed
        self.tokenizer = _tokenizer(out, seed)
        self.batches = BatchMaker(self.tokenizer, seed=seed, curriculum_tokens=curriculum_tokens)
        self.model = DemoModel(ModelConfig(), seed=seed)
        matrices = [p for layer in self.model.layers for p in layer.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if not any(p is matrix for matrix in matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
            torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = (MUON_RATE, ADAMW_RATE)
        self.step = self.n_tokens = 0
        self.seconds = 0.0
        self._tables: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._load()
        if compiled:
            # Flattened pieces have one shape for all row lengths; attention is left out, see
            # model.py.
            for layer in self.model.layers:
                layer.project = torch.compile(layer.project, dynamic=False)
                layer.finish = torch.compile(layer.finish, dynamic=False)
            self.model.loss = torch.compile(self.model.loss, dynamic=False)  # type: ignore[method-assign]

    def train_step(self) -> float:
        """One optimizer step over MICRO_PER_STEP micro-batches; returns the loss on assistant
        tokens.
        """
        share = self.schedule.rate_share(self.step, self.n_tokens)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        spoken = 0.0
        for micro in range(MICRO_PER_STEP):
            loss, spoken_loss = self._losses(self.batches.micro_batch(self.step, micro, self.n_tokens))
            (loss / MICRO_PER_STEP).backward()
            spoken += float(spoken_loss) / MICRO_PER_STEP
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.n_tokens += MICRO_PER_STEP * TOKENS_PER_MICRO
        return spoken

    def _losses(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.row_length not in self._tables:
            cos, sin = rope_table(self.model.config, batch.row_length)
            self._tables[batch.row_length] = (cos.repeat(batch.n_rows, 1), sin.repeat(batch.n_rows, 1))
        cos, sin = self._tables[batch.row_length]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.hidden(torch.tensor(batch.tokens), cos, sin, batch.n_rows)
            losses: tuple[torch.Tensor, torch.Tensor] = self.model.loss(
                hidden, torch.tensor(batch.targets), torch.tensor(batch.weights)
            )
        return losses

    def save(self) -> None:
        state: dict[str, Any] = {
            "model": {name: parameter.detach() for name, parameter in self.model.named_parameters()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
            "seed": self.seed,
            "schedule": asdict(self.schedule),
        }
        partial = self.out / "checkpoint.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.out / "checkpoint.pt")

    def _load(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(f"{path} was trained with seed {state['seed']}, not {self.seed}")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state["model"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.n_tokens, self.seconds = state["step"], state["n_tokens"], state["seconds"]

    def run(self, cores: SpareCores, *, log_every: int, evaluate_every: int, save_every_s: float) -> None:
        stop = _StopOnTerm()
        started = marked = saved = time.monotonic()
        before, losses = self.seconds, [0.0][:0]
        while self.n_tokens < self.schedule.total_tokens and not stop.wanted:
            if (n_threads := cores.count()) != torch.get_num_threads():
                torch.set_num_threads(n_threads)
            losses.append(self.train_step())
            now = time.monotonic()
            self.seconds = before + now - started
            if self.step % log_every == 0:
                speed = len(losses) * MICRO_PER_STEP * TOKENS_PER_MICRO / (now - marked)
                rate = self.schedule.rate_share(self.step, self.n_tokens) * MUON_RATE
                loss = sum(losses) / len(losses)
                self._log(f"{self.step},{self.n_tokens},{loss:.4f},{rate:.5f},{speed:.0f},{self.seconds:.0f}")
                marked, losses = now, []
            if self.step % evaluate_every == 0:
                scores = quick_scores(self.model, self.tokenizer, n_samples=40)
                self._log(f"# {self.step} " + " ".join(f"{name}={value:.2f}" for name, value in scores.items()))
            if now - saved > save_every_s:
                self.save()
                saved = now
        self.save()
        self._log(f"# stopped at step {self.step}, {self.n_tokens} tokens, {self.seconds:.0f} s")

    def _log(self, line: str) -> None:
        with (self.out / "log.csv").open("a") as log:
            log.write(line + "\n")
        logger.info(line)


class _StopOnTerm:
    def __init__(self) -> None:
        self.wanted = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True


def _tokenizer(out: Path, seed: int) -> Tokenizer:
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(seed=seed).save(str(path))
    return Tokenizer.from_file(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run directory; a checkpoint there is continued")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-tokens", type=int, default=20_000_000)
    parser.add_argument("--decay-at-tokens", type=int, default=7_000_000)
    parser.add_argument("--curriculum-tokens", type=int, default=10_000_000, help="what the shares refer to")
    parser.add_argument("--threads", type=int, default=2, help="at most; fewer while other processes are busy")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--save-every-s", type=float, default=180.0)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        arguments.out,
        seed=arguments.seed,
        schedule=Schedule(arguments.decay_at_tokens, arguments.total_tokens),
        curriculum_tokens=arguments.curriculum_tokens,
        compiled=not arguments.no_compile,
    )
    trainer.run(
        SpareCores(arguments.threads),
        log_every=arguments.log_every,
        evaluate_every=arguments.evaluate_every,
        save_every_s=arguments.save_every_s,
    )


if __name__ == "__main__":
    main()
