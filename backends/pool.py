"""The replicas of one model: who may be asked, and what each answer says of the one that gave it.

Nothing here waits: a pool decides and counts, a `Turn` does what it decided.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.base import Demand, Kind, Observer, Policy, Replica
from backends.budget import RetryBudget
from backends.errors import (
    BackendError,
    ConnectFailed,
    DeadlinePassed,
    EngineDied,
    EngineStuck,
    Refused,
    UpstreamTimeout,
)
from backends.pace import Pace
from backends.quarantine import Quarantine
from backends.transport import Transport

logger = logging.getLogger("fairgate")

#: How long a replica that said it has no room is asked last, in seconds.
_BUSY = 1.0
#: An engine that said something to anybody within so many seconds is not the one that stalls.
_ALIVE = 10.0
#: Statuses below 500 that are about the gateway's own credential, which no caller has a part in.
_OURS = (401, 403)
#: Those that a caller of a configured model has no part in, and how long one is told only once.
_MISCONFIGURED = (*_OURS, 404)
_TOLD_AGAIN = 600.0


@dataclass(frozen=True, slots=True)
class Means:
    """What all pools of a process share."""

    transport: Transport
    observer: Observer
    quarantine: Quarantine
    clock: Callable[[], float] = time.monotonic


class Pool:
    """Mutable state: the replicas' own, how many turns are `held`, the budget and the pace;
    `_told`, when it was told last that a URL refuses the gateway itself, by the status.
    """

    def __init__(
        self, name: str, kind: Kind, replicas: Sequence[Replica], policy: Policy, means: Means
    ) -> None:
        self.name = name
        self.kind = kind
        self.replicas = tuple(replicas)
        self.policy = policy
        self.means = means
        self.held = 0
        self.budget = RetryBudget()
        self._pace = Pace()
        self._told: dict[tuple[str, int], float] = {}
        self._clock = means.clock

    def pick(
        self, demand: Demand, tried: Sequence[Replica], failure: BackendError | None = None
    ) -> Replica | None:
        """The replica to try next; None where there is none, or none that is worth the try.

        Where nothing is well it is the least bad: a pool is never empty by judgement alone.
        After a `failure` only another that is well is worth it, unless nothing was sent yet.
        """
        now = self._clock()
        choice = self.well(now, tried)
        if failure is not None and failure.busy:
            choice = [r for r in choice if now >= r.busy]
        if choice:
            return self.policy.pick(choice, demand, now)
        if failure is not None and not isinstance(failure, ConnectFailed):
            return None
        return self.least_bad(tried)

    def well(self, now: float, tried: Sequence[Replica] = ()) -> list[Replica]:
        """Those a policy chooses among."""
        return [r for r in self.replicas if r.choosable(now) and r not in tried]

    def least_bad(self, tried: Sequence[Replica] = ()) -> Replica | None:
        """The one whose ejection ends first: who is chosen where none is well."""
        rest = [r for r in self.replicas if not (r.full or r.drained or r in tried)]
        return min(rest, key=lambda replica: replica.health.ends(), default=None)

    def speaks(self, path: str) -> bool:
        """Whether one of its servers may have a route, as far as that is known."""
        if self.kind.name != "vllm":
            return True
        for replica in self.replicas:  # nearly always the first
            if replica.capability.speaks(path):
                return True
        return not self.replicas

    def unfit(self, path: str) -> list[Replica]:
        """Those known not to have a route. Only vLLM's own schema is known to be whole."""
        if self.kind.name != "vllm":
            return []
        return [replica for replica in self.replicas if not replica.capability.speaks(path)]

    def others(self, tried: Sequence[Replica]) -> bool:
        """Whether one that is well is left."""
        return bool(self.well(self._clock(), tried))

    def may_retry(self, failure: BackendError) -> bool:
        """Whether the failed attempt may be made again elsewhere; one retry is used up by that.

        Those that an engine never had, and those of an engine that is out of service, are free:
        they add nothing to what the others would have had to do without that engine.
        """
        if not failure.elsewhere:
            return False
        if isinstance(failure, ConnectFailed | EngineDied | EngineStuck):
            return True
        return self.budget.take()

    def retried(self, failure: BackendError) -> None:
        self.means.observer.retried(self.name, failure.reason)

    def ended(self) -> None:
        """A request that had been sent is over."""
        self._pace.ended(self._clock())

    def wait(self) -> float:
        """In how many seconds there may be room for one who finds none now."""
        return self._pace.wait(self._clock())

    def judge(self, replica: Replica, failure: BackendError | None) -> None:
        """What an attempt says of its replica."""
        now = self._clock()
        health = replica.health
        if failure is None:
            replica.last_error = None
            if health.served(now):
                logger.warning("%s: %s serves again", self.name, replica.url)
            return
        if failure.counts:
            self.means.observer.attempt_failed(self.name, replica, failure)
        if not failure.blames:
            return
        replica.last_error = str(failure)
        if isinstance(failure, Refused) and failure.status in _MISCONFIGURED:
            self._tell_refused(replica, failure.status, now)
        ejected = False
        if failure.busy:
            replica.busy = now + _BUSY
        elif isinstance(failure, ConnectFailed):
            ejected = health.connect_failed(now)
            self.means.quarantine.died(replica)
        elif isinstance(failure, EngineDied):
            ejected = health.stalled(now, "it died")
        elif isinstance(failure, UpstreamTimeout):
            ejected = self._timed_out(replica, failure, now)
        elif not (isinstance(failure, EngineStuck) or _callers_doing(failure)):
            ejected = health.failed(now, failure.reason)
        if ejected:
            logger.warning("%s: %s is %s", self.name, replica.url, health.why(now))

    def _tell_refused(self, replica: Replica, status: int, now: float) -> None:
        """Once in a while, not for each request: callers are told only to ask the operator."""
        if now - self._told.get((replica.url, status), -_TOLD_AGAIN) < _TOLD_AGAIN:
            return
        self._told[replica.url, status] = now
        why = (
            "no such model or path there" if status == 404 else "our credential is missing or wrong"
        )
        told = "%s: %s answers %d to requests (%s), and callers get 502: run check --probe"
        logger.warning(told, self.name, replica.url, status, why)

    def _timed_out(self, replica: Replica, failure: UpstreamTimeout, now: float) -> bool:
        """One that is silent to all has stopped; one that is silent to one may only be slow."""
        if isinstance(failure, DeadlinePassed):
            return False  # the caller's time, or that of a whole answer: it may be working well
        if any(now - attempt.heard < _ALIVE for attempt in replica.flights.values()):
            return replica.health.failed(now, failure.reason)
        ejected = replica.health.stalled(now, str(failure))
        if ejected:
            evict(replica, str(failure))
        return ejected


def _callers_doing(failure: BackendError) -> bool:
    """Whether a caller alone can bring it about, as with a path that the server has not."""
    return isinstance(failure, Refused) and failure.status < 500 and failure.status not in _OURS


def heard(replica: Replica) -> float | None:
    """When its engine last said something to a request under way, None where there is none."""
    return max((attempt.heard for attempt in replica.flights.values()), default=None)


def evict(replica: Replica, why: str) -> None:
    """Take away what waits for a first event there and can be sent elsewhere at once.

    What has nowhere else to go waits on: the engine may yet go on.
    """
    for flight, attempt in list(replica.flights.items()):
        if attempt.movable():
            flight.fail(EngineStuck(f"{replica.url}: {why}"))
