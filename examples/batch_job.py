"""Replies to every question of a JSONL file: Ray Data, as a job beside the running application.

    make serve    # the application, in a terminal of its own
    .venv/bin/ray job submit -- $PWD/.venv/bin/python $PWD/examples/batch_job.py --out /tmp/replies.jsonl

All rows begin with the same system prompt, which is computed once, however many rows there are; the
last line tells. Nothing here asks Ray for a CPU (`num_cpus=0`), because the replicas may own all of
them and these processes only wait.
"""

import argparse
import json
from pathlib import Path

import ray

from deployments.jobs.batch import complete_batch

HERE = Path(__file__).resolve().parent
RULES = " ".join(f"Rule {i}: answer question number {i} in short and simple words." for i in range(1, 41))
SYSTEM = f"You are a helpful assistant. {RULES}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--questions", default=str(HERE / "questions.jsonl"))
    parser.add_argument("--out", default="replies.jsonl")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()

    ray.init(address="auto")
    ask = complete_batch(
        options.model,
        "question",
        "reply",
        system=SYSTEM,
        response_tokens=options.tokens,
        temperature=0.7,
        seed=1,
        index_column="id",  # row i is drawn with seed 1 + i: the same replies whenever the job runs
        on_error="null",
    )
    rows = ray.data.read_json(options.questions, num_cpus=0)
    rows = rows.map_batches(ask, batch_size=64, num_cpus=0, compute=ray.data.ActorPoolStrategy(size=1))
    n_rows = failed = prompt_tokens = cached_tokens = 0
    with Path(options.out).open("w") as out:
        for row in rows.iter_rows():  # streams: a batch is written as soon as it is answered
            out.write(json.dumps(row) + "\n")
            n_rows += 1
            failed += row["error"] is not None
            prompt_tokens += row["prompt_tokens"]
            cached_tokens += row["cached_tokens"]
    share = cached_tokens / max(1, prompt_tokens)
    print(
        f"{n_rows} rows, {failed} failed; {cached_tokens} of {prompt_tokens} prompt tokens were not computed: "
        f"{share:.0%}"
    )


if __name__ == "__main__":
    main()
