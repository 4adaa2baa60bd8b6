"""Model servers in virtual time, behind a gateway that chooses among them by a policy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from backends.base import Demand, Origin, Policy, Replica

#: A prompt token that is not cached is read so many times as fast as one of an answer is written.
READING = 20


@dataclass(eq=False)
class Job:
    """A request: `demand` is what the gateway believes of it, and it gets `output` tokens.

    Mutable state: the `replica` that had it, and when it `ended`.
    """

    demand: Demand
    output: int
    sent: float
    then: Callable[[Job], None]
    replica: Replica | None = None
    ended: float = math.nan


@dataclass(eq=False)
class Engine:
    """Writes at most `speed` tokens of answers a second for its whole batch, shared evenly, and
    `speed / knee` for one of them. What is more than `slots` waits.

    Mutable state: `batch`, by the `served` at which each job ends; `served`, the tokens that each
    of a batch was given until `at`; `queue`; `cached`, the tokens it has of each conversation.
    """

    replica: Replica
    speed: float
    slots: int
    knee: int
    at: float = 0.0
    served: float = 0.0
    batch: list[tuple[float, int, Job]] = field(default_factory=list)
    queue: deque[Job] = field(default_factory=deque)
    cached: dict[bytes, int] = field(default_factory=dict)

    @property
    def pace(self) -> float:
        return self.speed / max(len(self.batch), self.knee)

    def ends(self) -> float:
        """When the next of its batch is done."""
        if not self.batch:
            return math.inf
        return self.at + max(0.0, self.batch[0][0] - self.served) / self.pace

    def move(self, now: float) -> None:
        self.served += (now - self.at) * self.pace
        self.at = now

    def take(self, job: Job, number: int) -> None:
        if len(self.batch) >= self.slots:
            self.queue.append(job)
            return
        demand = job.demand
        known = self.cached.get(demand.affinity, 0)
        if demand.affinity:
            self.cached[demand.affinity] = demand.prompt_tokens + job.output
        work = job.output + max(0, demand.prompt_tokens - known) / READING
        heappush(self.batch, (self.served + work, number, job))


class World:
    """Mutable state: the time `now`, what is to happen and when, and the engines'."""

    def __init__(
        self,
        policy: Policy,
        speeds: Sequence[float],
        *,
        slots: int,
        knee: int,
    ) -> None:
        self.now = 0.0
        self.policy = policy
        self.replicas = [
            Replica(f"http://gpu{n}:8000", Origin(f"gpu{n}", 8000))
            for n in range(1, len(speeds) + 1)
        ]
        self.engines = {
            replica: Engine(replica, speed, slots, knee)
            for replica, speed in zip(self.replicas, speeds, strict=True)
        }
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, event: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._numbers), event))

    def every(self, seconds: float, event: Callable[[], None], until: float) -> None:
        for tick in range(1, int(until / seconds)):
            self.at(tick * seconds, event)

    def send(self, demand: Demand, output: int, then: Callable[[Job], None]) -> Job:
        job = Job(demand, output, self.now, then)
        job.replica = self.policy.pick(self.replicas, demand, self.now)
        job.replica.in_flight += 1
        job.replica.outstanding += demand.tokens
        engine = self.engines[job.replica]
        engine.move(self.now)
        engine.take(job, next(self._numbers))
        return job

    def run(self) -> None:
        """Until nothing is left to happen."""
        while True:
            engine = min(self.engines.values(), key=Engine.ends)
            ends = engine.ends()
            if self._events and self._events[0][0] <= ends:
                self.now, _, event = heappop(self._events)
                event()
            elif ends < math.inf:
                self.now = ends
                self._end(engine)
            else:
                return

    def _end(self, engine: Engine) -> None:
        engine.move(self.now)
        job = heappop(engine.batch)[2]
        engine.replica.in_flight -= 1
        engine.replica.outstanding -= job.demand.tokens
        job.ended = self.now
        if engine.queue:
            engine.take(engine.queue.popleft(), next(self._numbers))
        job.then(job)
