"""The replicas of one model: pick one, send, fail over while nothing was promised."""

from __future__ import annotations

import time
from collections.abc import Sequence

from backends.base import Call, Demand, Kind, Observer, Policy, Replica, Sink
from backends.errors import BackendError, NoReplica
from backends.transport import Transport

#: A first try and one on another replica: more would turn one fault into many.
_ATTEMPTS = 2


class Pool:
    """Mutable state: the replicas' own counts, and how many turns are `held`."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        replicas: Sequence[Replica],
        policy: Policy,
        transport: Transport,
        observer: Observer,
    ) -> None:
        self.name = name
        self.kind = kind
        self.replicas = tuple(replicas)
        self.held = 0
        self._policy = policy
        self._transport = transport
        self._observer = observer

    def turn(self, demand: Demand) -> Turn:
        """A place among the pool's requests, for a `with`."""
        return Turn(self, demand)

    def pick(self, demand: Demand, tried: Sequence[Replica]) -> Replica | None:
        """The replica to try next, or None where each was tried or is full."""
        choice = [r for r in self.replicas if not r.full and r not in tried]
        return self._policy.pick(choice, demand, time.monotonic()) if choice else None

    async def attempt(self, replica: Replica, call: Call, sink: Sink) -> BackendError | None:
        """Send `call` to `replica` and wait until `sink` has all of it; its failure, if any."""
        replica.in_flight += 1
        try:
            exchange = self._transport.send(replica, self.kind.prepare(call, replica), sink)
            try:
                await exchange.done
            finally:
                exchange.close()  # the caller may have left: this frees the engine
        finally:
            replica.in_flight -= 1
        failure = sink.failure
        replica.last_error = str(failure) if failure is not None and failure.blames else None
        if failure is not None and failure.blames:
            self._observer.attempt_failed(self.name, replica, failure)
        return failure

    def retry(self, failure: BackendError) -> None:
        self._observer.retried(self.name, failure.reason)


class Turn:
    """One request's turn at a pool. `attempts` counts how many replicas it went to."""

    def __init__(self, pool: Pool, demand: Demand) -> None:
        self._pool = pool
        self._demand = demand
        self.attempts = 0
        self.replica: Replica | None = None

    def __enter__(self) -> Turn:
        """Raises NoReplica when every replica is at its own concurrency."""
        pool = self._pool
        if all(replica.full for replica in pool.replicas):
            raise NoReplica(f"{pool.name}: every replica is at its concurrency")
        pool.held += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.held -= 1

    async def send(self, call: Call, sink: Sink) -> None:
        """Deliver the answer of one replica to `sink`.

        A failed attempt is made again on another replica, once, while nothing was promised.
        Raises the BackendError of the last attempt.
        """
        tried: list[Replica] = []
        failure: BackendError = NoReplica(f"{self._pool.name}: no replica")
        while self.attempts < _ATTEMPTS:
            replica = self._pool.pick(self._demand, tried)
            if replica is None:
                break
            if tried:
                self._pool.retry(failure)
            tried.append(replica)
            self.replica = replica
            self.attempts += 1
            outcome = await self._pool.attempt(replica, call, sink)
            if outcome is None:
                return
            failure = outcome
            if sink.promised or not failure.elsewhere:
                break
        raise failure
