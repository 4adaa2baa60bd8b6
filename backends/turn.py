"""A request's turn at a pool: sent to one replica, and to another while nothing was promised."""

from __future__ import annotations

from backends.base import Call, Demand, Replica, Sink
from backends.errors import BackendError, ConnectFailed, ConnectionBroken, EngineDied, NoReplica
from backends.pool import Pool

#: A first try and one on another replica: more would turn one fault into many.
_ATTEMPTS = 2
#: Those that no engine had, because none could be connected to, harm nobody; they cost time.
_CONNECTIONS = 4


class Turn:
    """For a `with`. `attempts` counts the replicas it went to; `replica` is the last of them.

    Mutable state: these; `_tried`, who is not asked again, and `_sent`, how many of them may have
    had the request; `_sink`, who takes the answer.
    """

    def __init__(self, pool: Pool, demand: Demand) -> None:
        self._pool = pool
        self._demand = demand
        self._tried: list[Replica] = []
        self._sent = 0
        self._sink: Sink | None = None
        self.attempts = 0
        self.replica: Replica | None = None

    def __enter__(self) -> Turn:
        """Raises NoReplica when every replica is drained, or at its own concurrency."""
        pool = self._pool
        for replica in pool.replicas:
            if not (replica.drained or replica.full):
                break  # nearly always the first
        else:
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
        pool may afford it; one that no engine had does not count. Raises the BackendError of the
        last attempt, and KillsEngines.
        """
        pool = self._pool
        pool.means.quarantine.check(call.body)
        pool.budget.request(call.again)
        self._sink = sink
        self._tried += pool.unfit(call.path)
        failure: BackendError | None = None
        while (replica := self._next(failure)) is not None:
            if failure is not None:
                pool.retried(failure)
            failure = await self._attempt(replica, call, sink)
            if failure is None:
                return
            if sink.promised or not failure.elsewhere:
                break
            pool.means.quarantine.check(call.body)
        raise self._no_room(failure or NoReplica(f"{pool.name}: no replica has room"))

    # An `Attempt`, as the replica has it while the call is on its way there

    @property
    def heard(self) -> float:
        return self._sink.heard if self._sink is not None else 0.0

    def movable(self) -> bool:
        sink = self._sink
        if sink is None or sink.promised or self._sent >= _ATTEMPTS:
            return False
        return self._pool.others(self._tried)

    def _next(self, failure: BackendError | None) -> Replica | None:
        """The replica to try now; None where it is over."""
        if self._sent >= _ATTEMPTS or self.attempts >= _CONNECTIONS:
            return None
        replica = self._pool.pick(self._demand, self._tried, failure)
        if replica is None or (failure is not None and not self._pool.may_retry(failure)):
            return None
        return replica

    async def _attempt(self, replica: Replica, call: Call, sink: Sink) -> BackendError | None:
        """Send `call` to `replica` and wait until `sink` has all of it; its failure, if any."""
        pool, tokens = self._pool, self._demand.tokens
        self.replica = replica
        self._tried.append(replica)
        self.attempts += 1
        self._sent += 1
        trial = not replica.health.sound
        replica.in_flight += 1
        replica.outstanding += tokens
        replica.trials += trial
        try:
            head, body = pool.kind.prepare(call, replica)
            transfer = pool.means.transport.send(replica, head, sink, body)
            replica.flights[transfer] = self
            try:
                await transfer.done
            finally:
                del replica.flights[transfer]
                transfer.close()  # the caller may have left: this frees the engine
        finally:
            replica.in_flight -= 1
            replica.outstanding -= tokens
            replica.trials -= trial
        failure = sink.failure
        if failure is not None and failure.blames:
            failure = await self._post_mortem(replica, call, failure)
        pool.judge(replica, failure)
        return failure

    async def _post_mortem(
        self, replica: Replica, call: Call, failure: BackendError
    ) -> BackendError:
        """The failure, told apart from the engine's death, which this request may have caused."""
        if isinstance(failure, ConnectFailed):
            self._sent -= 1  # that engine never had it
            return failure
        if failure.busy:
            return failure
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
