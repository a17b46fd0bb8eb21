"""`python -m tests.support.two_nodes FOLDER`: two Ray nodes with a replica each; the one that
serves a stream dies with all its processes.

Prints one JSON object. Under Serve's defaults, in a process of its own: a process can be the driver
of one cluster only.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from deployments.app import build_app
from deployments.model.blocking import RemoteModel
from erllama.events import Done, Tokens
from erllama.request import GenerationRequest, SamplingParams
from tests.support.serve_process import free_port
from tests.support.streams import busiest, replica_pids

N_TOKENS = 5000


def main(folder: str) -> None:
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    try:
        nodes = [cluster.add_node(num_cpus=1, resources={"model": 1}, **memory) for _ in range(2)]
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()}, proxy_location="HeadOnly")
        serve.run(build_app(args(folder)), name="erllama", route_prefix="/")
        print(json.dumps(kill_a_node(cluster, nodes)), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def args(folder: str) -> dict[str, Any]:
    model = {
        "id": "demo", "path": "demo", "n_ctx": 8192, "n_threads": 1, "num_cpus": 0.5, "num_replicas": 2, "resources": {"model": 1},
        "type_k": "q8_0", "type_v": "q8_0",
    }  # fmt: skip
    policy = {
        "min_tokens": 32,
        "cold_min_tokens": 32,
        "continued_interval": 64,
        "boundary_trim_tokens": 0,
        "restore_always": True,
    }
    return {"models": [model], "store": {"tiers": [{"url": folder}]}, "policy": policy}


def kill_a_node(cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    request = GenerationRequest(
        "r", tuple(range(300, 700)), SamplingParams(temperature=0.9, seed=4), max_tokens=N_TOKENS, ignore_eos=True
    )
    ids: list[int] = []
    killed_at, pause_s, done = 0, 0.0, None
    last = time.monotonic()
    model = RemoteModel.connect("demo")
    for events in model.generate(request):
        pause_s, last = max(pause_s, time.monotonic() - last), time.monotonic()
        ids += [token for event in events if isinstance(event, Tokens) for token in event.ids]
        done = events[-1]
        if len(ids) > 2000 and not killed_at:
            killed_at = len(ids)
            cluster.remove_node(node_of(nodes, busiest(replica_pids("model-demo"))), allow_graceful=False)
    assert isinstance(done, Done), done
    whole = [event for events in model.generate(request) for event in events]
    same = ids == [token for event in whole if isinstance(event, Tokens) for token in event.ids]
    stats = done.stats
    return {
        "same": same,
        "killed_at": killed_at,
        "resumed": stats.resumed_tokens,
        "computed": stats.computed_tokens,
        "pause_s": pause_s,
    }


def node_of(nodes: list[Any], pid: int) -> Any:
    deployments = _get_global_client().get_serve_details()["applications"]["erllama"]["deployments"]
    (node_id,) = [replica["node_id"] for replica in deployments["model-demo"]["replicas"] if replica["pid"] == pid]
    (node,) = [node for node in nodes if node.node_id == node_id]
    return node


if __name__ == "__main__":
    main(sys.argv[1])
