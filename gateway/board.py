"""The replicas of one process by URL: what is told of them, and what they do.

Whoever knows something of an engine tells it by the engine's URL: the probes, which run once for
all processes of a machine, and the other processes, of what they sent there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from backends.base import Replica
from backends.pool import evict, heard
from backends.probes import Verdict, apply
from backends.quarantine import Quarantine

logger = logging.getLogger("fairgate")

#: Requests under way and tokens outstanding, by URL.
Work = dict[str, tuple[int, int]]


class Board:
    """Mutable state: the replicas' own."""

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        quarantine: Quarantine,
        clock: Callable[[], float],
    ) -> None:
        self._replicas = replicas
        self._quarantine = quarantine
        self._clock = clock

    def judge(self, verdicts: Sequence[Verdict]) -> None:
        """Take in what probes saw; what waits at an engine judged dead moves at once."""
        now = self._clock()
        by_url = {verdict.url: verdict for verdict in verdicts}
        told: dict[str, None] = {}  # models may have one URL on different terms
        for replica in self._replicas():
            verdict = by_url.get(replica.url)
            if verdict is None:
                continue
            was_down = replica.health.down
            ejected = apply(verdict, replica, now, heard(replica))
            if ejected:
                told[f"{replica.url} is taken out: {replica.health.down}"] = None
                evict(replica, replica.health.down)
            elif was_down and not replica.health.down:
                told[f"{replica.url} answers again"] = None
            if ejected and not verdict.reachable:
                self._quarantine.died(replica)
        for line in told:
            logger.warning("%s", line)

    def work(self) -> Work:
        """What this process has under way, of the replicas that have something."""
        work: Work = {}
        for replica in self._replicas():
            if replica.in_flight:
                flights, tokens = work.get(replica.url, (0, 0))
                work[replica.url] = flights + replica.in_flight, tokens + replica.outstanding
        return work

    def elsewhere(self, work: Mapping[str, Sequence[int]]) -> None:
        """Take in what the other processes have under way."""
        for replica in self._replicas():
            flights, tokens = work.get(replica.url, (0, 0))
            replica.elsewhere = (flights, tokens)
