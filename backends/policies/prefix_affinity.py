"""The replica that has a conversation's prefix in its cache, while it has room for more.

Each conversation has a favourite by rendezvous hashing, the same in every process without a word
between them. Work is bounded as in "Consistent Hashing with Bounded Loads" (Mirrokni et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from backends.base import Demand, Replica
from backends.policies.base import Scales, pressed

#: A favourite is left where it would have so many times its share of all work. The mean goes on
#: moving after a choice: bounded by this, nobody stays above 1.25 times it.
_BOUND = 1.2
#: With fewer requests it is never left: a batch of a few is served about as fast as one request,
#: and a mean of a few is chance. Bounded there too, half of all turns would find no prefix.
_FEW = 8


class PrefixAffinity:
    """Mutable state: that of its scales."""

    by_affinity = True

    def __init__(self) -> None:
        self._scales = Scales()

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        if demand.affinity:
            favourite = max(replicas, key=lambda replica: _drawn(demand.affinity, replica))
            if self._has_room(favourite, replicas, demand, now):
                return favourite
        return self._scales.lightest(replicas, demand, now)

    def _has_room(
        self, favourite: Replica, replicas: Sequence[Replica], demand: Demand, now: float
    ) -> bool:
        if pressed(favourite, now):
            return False
        if favourite.in_flight + favourite.elsewhere[0] < _FEW:
            return True
        burdens = self._scales.burdens(replicas, demand, now)
        own = burdens[replicas.index(favourite)]
        part = favourite.share(now) / sum(replica.share(now) for replica in replicas)
        return own + demand.tokens <= _BOUND * part * (sum(burdens) + demand.tokens)


def _drawn(affinity: bytes, replica: Replica) -> float:
    """The highest of these is the favourite: each is that as often as its weight says
    (Schindelhauer and Schomaker 2005), and one that comes or goes moves only what is its own.
    """
    digest = blake2b(replica.url.encode(), key=affinity[:64], digest_size=8).digest()
    drawn = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # uniform, and never 0 or 1
    return -replica.weight / math.log(drawn)
