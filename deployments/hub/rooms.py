"""How much memory of each node the hub's models may still reserve. Pure.

With `memory_bytes` in the configuration that is simple arithmetic. Else it is what the node has free
below the scheduler's `high` mark: what others use is in the reading, and so is what our own models
use, as soon as they have loaded; a model that still loads is not, and its whole need is set aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deployments.hub.policy import HubModel, Residence, Room


@dataclass(frozen=True, slots=True)
class NodeReading:
    """The memory of one node at one moment (monotonic ns). Bytes."""

    node_id: str
    used_bytes: int
    total_bytes: int
    read_ns: int


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that has a process. `settled_ns`: when it was first seen in memory as it is now, None
    while it still loads.
    """

    model: HubModel
    settled_ns: int | None

    @property
    def booked_bytes(self) -> int:
        asleep = self.model.residence is Residence.ASLEEP
        return self.model.process_bytes if asleep else self.model.need_bytes


def rooms_of(
    readings: Sequence[NodeReading], residents: Iterable[Resident], *, high: float, memory_bytes: int | None
) -> list[Room]:
    """A room for each node that was read."""
    by_node: dict[str, list[Resident]] = {}
    for resident in residents:
        by_node.setdefault(resident.model.node_id, []).append(resident)
    return [_room(reading, by_node.get(reading.node_id, []), high, memory_bytes) for reading in readings]


def _room(reading: NodeReading, residents: Sequence[Resident], high: float, memory_bytes: int | None) -> Room:
    booked = sum(resident.booked_bytes for resident in residents)
    if memory_bytes is not None:
        total = min(memory_bytes, reading.total_bytes)
        return Room(reading.node_id, max(0, total - booked), total)
    unseen = sum(
        resident.booked_bytes
        for resident in residents
        if resident.settled_ns is None or resident.settled_ns >= reading.read_ns
    )
    free = int(high * reading.total_bytes) - reading.used_bytes - unseen
    return Room(reading.node_id, max(0, free), max(0, free + booked))
