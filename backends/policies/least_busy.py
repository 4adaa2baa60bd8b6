"""The replica with the fewest requests under way for its weight."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Demand, Replica


class LeastBusy:
    """Mutable state: `_turn`, so that equally busy replicas are used in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        self._turn += 1
        start = self._turn % len(replicas)
        order = (*replicas[start:], *replicas[:start])
        return min(order, key=lambda replica: (replica.in_flight + 1) / replica.weight)
