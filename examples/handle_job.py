"""Stream a reply inside a Ray job, by handle: no HTTP, the engine's own events.

    make serve    # the application, in a terminal of its own
    .venv/bin/ray job submit -- $PWD/.venv/bin/python $PWD/examples/handle_job.py "Tell me a short story."

The job needs no CPU of the cluster: its driver only waits for the replicas.
"""

import sys

from deployments.jobs.cluster import Cluster
from erllama.events import Done, Failed, Tokens


def main(question: str) -> None:
    with Cluster.connect() as cluster:
        model = cluster.model(cluster.models()[0])
        prompt = model.apply_chat_template([{"role": "user", "content": question}])
        for event in model.infer(prompt, response_tokens=64, temperature=0.7, seed=1):
            match event:
                case Tokens():
                    print(event.text, end="", flush=True)
                case Done():
                    print(
                        f"\n{event.stats.completion_tokens} tokens, {event.stats.cached_tokens} of the prompt "
                        "were not computed"
                    )
                case Failed():
                    raise event.error
        for state in cluster.status():
            print(
                f"{state.id}: {state.state}, {state.replicas} replicas, {state.hit_ratio:.0%} of all prompt "
                "tokens not computed"
            )


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Tell me a short story.")
