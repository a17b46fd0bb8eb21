"""What `Cluster` says where there is no cluster, and what it adds up. Against a running
application: tests/serve/test_on_cluster.py.
"""

from __future__ import annotations

import pytest

from deployments.jobs.cluster import Cluster, ClusterUnavailable, ModelState
from erllama.stats import Counters, EngineStats


def test_an_address_where_nobody_listens_is_named_at_once():
    with pytest.raises(ClusterUnavailable, match=r"no Ray cluster at address '127\.0\.0\.1:1'"):
        Cluster.connect(address="127.0.0.1:1")


def test_ray_client_is_refused_with_what_to_do_instead():
    with pytest.raises(ClusterUnavailable, match="ray job submit"):
        Cluster.connect(address="ray://127.0.0.1:10001")


def engine(prompt: int, cached: int) -> EngineStats:
    counts = Counters(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=7)
    return EngineStats(n_parallel=4, n_free_seq_ids=1, n_prefilling=1, n_generating=2, n_queued=5, counts=counts)


def test_a_model_adds_up_its_replicas():
    state = ModelState("m", (), "HEALTHY", "", 2, (engine(100, 90), engine(300, 0)))
    assert (state.running, state.queued) == (6, 10)
    assert (state.prompt_tokens, state.cached_tokens, state.completion_tokens) == (400, 90, 14)
    assert state.hit_ratio == 90 / 400


def test_a_model_without_replicas_has_hit_nothing():
    assert ModelState("m", (), "HEALTHY", "", 0, ()).hit_ratio == 0.0
