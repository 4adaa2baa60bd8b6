"""A request's turn at a pool: sent to one replica, and to another while nothing was promised."""

from __future__ import annotations

from backends.base import Call, Demand, Replica, Sink
from backends.errors import BackendError, ConnectFailed, ConnectionBroken, EngineDied, NoReplica
from backends.pool import Pool

#: A first try and one on another replica: more would turn one fault into many.
_ATTEMPTS = 2


class Turn:
    """For a `with`. `attempts` counts the replicas it went to; `replica` is the last of them."""

    def __init__(self, pool: Pool, demand: Demand) -> None:
        self._pool = pool
        self._demand = demand
        self.attempts = 0
        self.replica: Replica | None = None

    def __enter__(self) -> Turn:
        """Raises NoReplica when every replica is drained, or at its own concurrency."""
        pool = self._pool
        if all(replica.full or replica.drained for replica in pool.replicas):
            raise self._no_room(NoReplica(f"{pool.name}: every replica is full or drained"))
        pool.held += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.held -= 1
        if self.attempts:
            self._pool.ended()

    async def send(self, call: Call, sink: Sink) -> None:
        """Deliver the answer of one replica to `sink`.

        A failed attempt is made again on another replica, once, while nothing was promised and the
        pool may afford it. Raises the BackendError of the last attempt, and KillsEngines.
        """
        pool = self._pool
        pool.means.quarantine.check(call.body)
        pool.budget.request(call.again)
        tried: list[Replica] = []
        unfit = pool.unfit(call.path)
        failure: BackendError | None = None
        while len(tried) < _ATTEMPTS:
            replica = pool.pick(self._demand, [*unfit, *tried], failure)
            if replica is None or (failure is not None and not pool.may_retry(failure)):
                break
            if failure is not None:
                pool.retried(failure)
            tried.append(replica)
            failure = await self._attempt(replica, call, sink)
            if failure is None:
                return
            if sink.promised or not failure.elsewhere:
                break
            pool.means.quarantine.check(call.body)
        raise self._no_room(failure or NoReplica(f"{pool.name}: no replica has room"))

    async def _attempt(self, replica: Replica, call: Call, sink: Sink) -> BackendError | None:
        """Send `call` to `replica` and wait until `sink` has all of it; its failure, if any."""
        pool, tokens = self._pool, self._demand.tokens
        self.replica = replica
        self.attempts += 1
        replica.in_flight += 1
        replica.outstanding += tokens
        try:
            request = pool.kind.prepare(call, replica)
            transfer = pool.means.transport.send(replica, request, sink)
            replica.flights[transfer] = sink
            try:
                await transfer.done
            finally:
                del replica.flights[transfer]
                transfer.close()  # the caller may have left: this frees the engine
        finally:
            replica.in_flight -= 1
            replica.outstanding -= tokens
        failure = sink.failure
        if failure is not None and failure.blames:
            failure = await self._post_mortem(replica, call, failure)
        pool.judge(replica, failure)
        return failure

    async def _post_mortem(
        self, replica: Replica, call: Call, failure: BackendError
    ) -> BackendError:
        """The failure, told apart from the engine's death, which this request may have caused."""
        if failure.busy or isinstance(failure, ConnectFailed):
            return failure  # that engine never had it
        means = self._pool.means
        means.quarantine.suspect(replica, call.body)
        if not isinstance(failure, ConnectionBroken):
            return failure
        if await means.transport.reaches(replica.origin):
            return failure
        means.quarantine.died(replica)
        return EngineDied(str(failure))

    def _no_room(self, failure: BackendError) -> BackendError:
        """With the time after which there may be room, where that is all that is missing."""
        if failure.busy:
            failure.retry_after = self._pool.wait()
        return failure
