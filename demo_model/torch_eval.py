"""Fast evaluation in torch: teacher forcing instead of generation.

Greedy decoding yields exactly the expected reply if and only if the most likely token at every
position of that reply is the expected one, so one forward pass per sample replaces generation. A
reply that is right in other words, or JSON with other spacing, counts as wrong here: these figures
are lower bounds of those through llama.cpp.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from demo_model.model import DemoModel, Layer, ModelConfig, attend, rope_table
from demo_model.samples import BUCKETS, Sample, draw_samples
from demo_model.template import IM_END

QUICK_BUCKETS = (
    "recall_64",
    "recall_512",
    "tool_call",
    "tool_answer",
    "json",
    "repeat",
    "arithmetic_seen",
    "small_talk_seen",
)


def is_exact(model: DemoModel, tokenizer: Tokenizer, sample: Sample) -> bool:
    prompt = tokenizer.encode(sample.prompt).ids
    whole = tokenizer.encode(sample.prompt + sample.expected + IM_END).ids
    tokens = torch.tensor(whole)
    cos, sin = rope_table(model.config, len(whole))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        # The class's own methods: compiled ones would be compiled again for every length.
        x = F.embedding(tokens, model.embedding)
        for layer in model.layers:
            query, key, value = Layer.project(layer, x, cos, sin)
            x = Layer.finish(layer, x, attend(query, key, value, 1))
        predicted = model.logits(x[len(prompt) - 1 : -1]).argmax(-1)
    return bool((predicted == tokens[len(prompt) :]).all())


def score(model: DemoModel, tokenizer: Tokenizer, bucket: str, *, seed: int, n_samples: int) -> float:
    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    samples = draw_samples(bucket, seed=seed, n_samples=n_samples, count=count)
    return sum(is_exact(model, tokenizer, sample) for sample in samples) / n_samples


def quick_scores(model: DemoModel, tokenizer: Tokenizer, *, n_samples: int) -> dict[str, float]:
    return {bucket: score(model, tokenizer, bucket, seed=1, n_samples=n_samples) for bucket in QUICK_BUCKETS}


def load_checkpoint(path: Path) -> DemoModel:
    state = torch.load(path, weights_only=True)
    model = DemoModel(ModelConfig(), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state["model"][name])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory of demo_model.train")
    parser.add_argument("--samples", type=int, default=200, help="per bucket")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_checkpoint(arguments.run / "checkpoint.pt")
    tokenizer = Tokenizer.from_file(str(arguments.run / "tokenizer.json"))
    for bucket in BUCKETS:
        share = score(model, tokenizer, bucket, seed=arguments.seed, n_samples=arguments.samples)
        print(f"{bucket} {100 * share:.1f} %", flush=True)


if __name__ == "__main__":
    main()
