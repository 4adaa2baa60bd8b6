"""The replica with the fewest outstanding prompt and output tokens for its share."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Demand, Replica
from backends.policies.base import Scales


class LeastBusy:
    """Needs no word on how fast a replica is: a slow one keeps its work longer, so it gets less.

    Mutable state: that of its scales.
    """

    by_affinity = False

    def __init__(self) -> None:
        self._scales = Scales()

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        return self._scales.lightest(replicas, demand, now)
