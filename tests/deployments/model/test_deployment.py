"""What Serve calls when it stops a replica. No Ray runs."""

from __future__ import annotations

from deployments.model.deployment import Replica


class FakeModel:
    def __init__(self) -> None:
        self.n_shutdowns = 0

    def shutdown(self) -> None:
        self.n_shutdowns += 1


def test_serve_stops_a_replica_by_closing_it():
    replica, model = Replica.__new__(Replica), FakeModel()
    replica._model = model  # type: ignore[assignment]
    replica.__del__()
    assert model.n_shutdowns == 1


def test_a_replica_whose_load_failed_has_nothing_to_close():
    Replica.__new__(Replica).__del__()
