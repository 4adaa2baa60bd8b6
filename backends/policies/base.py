"""How much each replica has to do: what several policies judge by."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Demand, Load, Replica

#: An engine with so many requests waiting, or so much of its KV cache in use, takes no more for
#: now (llm-d's defaults). Each alone fails: a queue is seen late, a cache fills before it queues.
_WAITING = 5
_KV = 0.8


def pressed(replica: Replica, now: float) -> int:
    """0 where it can take more, 1 where its engine is saturated, 2 where it said it has no room."""
    if now < replica.busy:
        return 2
    load = replica.fresh(now)
    return int(load is not None and (load.waiting >= _WAITING or load.kv >= _KV))


class Scales:
    """Weighs replicas by the prompt and output tokens they have still to read and write.

    Ours and those of the other processes of the machine are known. What anybody else sent to the
    same engine (another gateway, a person with curl) is seen in the engine's own figures only: the
    requests it has more than we know of. How large they are nobody says, so each counts as much as
    ours do on average: the right guess where those who share an engine ask alike, and one that
    needs no tuning where they do not.

    The engine's figures are about a second old and our counts are not. Compared at each pick, what
    has ended since would look like somebody else's work and keep new requests away from exactly
    those that are quickest. So the two are compared once, when new figures are first seen.

    Mutable state: `_turn`, so that equals are used in turn; `_others`, by replica the figures seen
    last and how many requests of others were among them.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._others: dict[Replica, tuple[Load, int]] = {}

    def lightest(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        """The one with the fewest tokens for its share, this request's among them.

        One that is saturated comes after every one that is not, and one without room last.
        """
        count = len(replicas)
        if count == 1:
            return replicas[0]
        burdens = self.burdens(replicas, demand, now)
        tokens = demand.tokens or 1
        self._turn = turn = (self._turn + 1) % count
        best, calmest, least = replicas[turn], 3, 0.0
        for at in range(turn - count, turn):  # from `turn` on, round to the one before it
            replica = replicas[at]
            pressure = pressed(replica, now) if replica.load or replica.busy else 0
            score = (burdens[at] + tokens) / replica.share(now)
            if pressure < calmest or (pressure == calmest and score < least):
                best, calmest, least = replica, pressure, score
        return best

    def burdens(self, replicas: Sequence[Replica], demand: Demand, now: float) -> list[float]:
        """The tokens each has to do, for all who sent to it."""
        burdens: list[float] = [replica.work for replica in replicas]
        others = [self._sent_by_others(r, now) if r.load else 0 for r in replicas]
        if any(others):
            known = sum(replica.in_flight + replica.elsewhere[0] for replica in replicas)
            usual = sum(burdens) / known if known else max(demand.tokens, 1)
            burdens = [own + more * usual for own, more in zip(burdens, others, strict=True)]
        return burdens

    def _sent_by_others(self, replica: Replica, now: float) -> int:
        load = replica.fresh(now)
        if load is None:
            return 0
        seen = self._others.get(replica)
        if seen is None or seen[0] is not load:
            known = replica.in_flight + replica.elsewhere[0]
            seen = self._others[replica] = load, max(0, load.running + load.waiting - known)
        return seen[1]
