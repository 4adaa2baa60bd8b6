"""Each replica in its turn, as often as its weight says (smooth weighted round robin, nginx)."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Demand, Replica


class RoundRobin:
    """Mutable state: `_credit`, by replica URL: what it is owed."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        for replica in replicas:
            self._credit[replica.url] = self._credit.get(replica.url, 0.0) + replica.weight
        chosen = max(replicas, key=lambda replica: self._credit[replica.url])
        self._credit[chosen.url] -= sum(replica.weight for replica in replicas)
        return chosen
