"""Each replica in its turn, as often as its share says (smooth weighted round robin, nginx)."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Demand, Replica


class RoundRobin:
    """Mutable state: `_credit`, by replica URL: what it is owed."""

    by_affinity = False

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        whole = 0.0
        for replica in replicas:
            share = replica.share(now)
            self._credit[replica.url] = self._credit.get(replica.url, 0.0) + share
            whole += share
        chosen = max(replicas, key=lambda replica: self._credit[replica.url])
        self._credit[chosen.url] -= whole
        return chosen
