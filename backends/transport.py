"""The only HTTP client: HTTP/1.1 on `asyncio.Protocol` and httptools, calling a `Sink`.

Nothing is awaited between the socket and the sink: what one read of the socket brought is parsed
and handed over once, where an answer begins inside the read callback, and in the turns that
`Precedence` gives for what follows. A task exists only while a connection is made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from backends.base import Headers, Origin, Replica, Sink
from backends.collected import Collected
from backends.connection import Connection, Held, Limits, tune
from backends.errors import (
    BackendError,
    BadAnswer,
    ConnectFailed,
    ConnectionBroken,
    UpstreamTimeout,
)
from backends.precedence import Precedence

#: How long it may take to find out whether a server that broke off is still there, in seconds.
_MOMENT = 0.5
#: A connection that is still there after so many seconds was taken by a server that lives.
_LASTS = 0.1
#: Up to this size a body leaves in one piece with its head: to copy it costs less than a list.
_COPIED = 64 * 1024
#: How many addresses of one name are tried: with more, none would have the time to answer.
_MOST_ADDRESSES = 4

P = TypeVar("P", bound=asyncio.BaseProtocol)


def _left_to_the_system(host: str) -> Sequence[str]:
    return (host,)


class Transport:
    """Sends requests and keeps connections for the next ones.

    `addresses` says at once where a host is; without it the system is asked at each connection.

    Mutable state: `_idle`, the connections waiting for a request, newest last; `_all`, every
    connection; `_connecting`, the tasks that make one; `_sweep`, the timer that ends old idleness;
    `_worked`, by name and port the one of several addresses that was connected to last; `_loop`,
    in which it lives from its first request on.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        addresses: Callable[[str], Sequence[str]] = _left_to_the_system,
    ) -> None:
        # asyncio asks the system each time it is asked for it.
        self._loop: asyncio.AbstractEventLoop | None = None
        self.limits = limits or Limits()
        self.precedence = Precedence()
        self._addresses = addresses
        # Not by origin: an origin keeps its TLS context, and a reload may make another of each.
        self._worked: dict[tuple[str, int], str] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._connecting: dict[asyncio.Task[None], Transfer] = {}

    def send(self, replica: Replica, head: bytes, sink: Sink, body: bytes = b"") -> Transfer:
        """Start one request; everything that follows is told to `sink`.

        `head` and `body` are a whole HTTP request, which may be all in `head`. Its transfer's
        `done` is set after the sink's last call.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        request = (head + body,) if len(body) <= _COPIED else (head, body)
        transfer = Transfer(self, loop, replica.origin, request, sink)
        sink.begin(transfer, replica)
        transfer.launch()
        return transfer

    async def fetch(
        self, replica: Replica, request: bytes, *, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        """One small request outside the path of callers: the status and body of its answer.

        Raises BackendError, UpstreamTimeout after `timeout` seconds among them.
        """
        answer = Collected(limit)
        transfer = self.send(replica, request, answer)
        try:
            async with asyncio.timeout(timeout):
                await transfer.done
        except TimeoutError:
            raise UpstreamTimeout(f"no answer within {timeout:g} s") from None
        finally:
            transfer.close()
        if answer.failure is not None:
            raise answer.failure
        return answer.status, b"".join(answer.pieces)

    async def reaches(self, origin: Origin) -> bool:
        """Whether a new connection can be made there now, and lasts for a moment.

        A process that dies takes connections until its last socket is closed.
        """
        loop = asyncio.get_running_loop()
        within = min(_MOMENT, self.limits.connect)
        try:
            transport, held = await self._dial(origin, lambda: Held(loop), within)
        except (ConnectFailed, OSError, UnicodeError):
            return False
        try:
            await asyncio.wait({held.lost}, timeout=_LASTS)
            return not held.lost.done()
        finally:
            transport.abort()

    async def close(self) -> None:
        """Close every connection; transfers still under way are broken off."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        connecting = dict(self._connecting)
        for transfer in connecting.values():
            transfer.fail(ConnectFailed(f"{transfer.origin}: given up"))
        for connection in list(self._all):
            connection.break_off()
        if connecting:
            await asyncio.wait(connecting)

    @property
    def open_connections(self) -> int:
        return len(self._all)

    def take(self, origin: Origin, now: float) -> Connection | None:
        """The idle connection used last: it is the least likely to be closed by the server."""
        idle = self._idle.get(origin)
        oldest = now - self.limits.idle
        while idle:
            connection = idle.pop()
            if not idle:
                del self._idle[origin]
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def keep(self, connection: Connection) -> None:
        self._idle.setdefault(connection.origin, deque()).append(connection)
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self.limits.idle, self._close_expired, loop)

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for all: a timer for each idle connection costs every request its making.
        oldest = loop.time() - self.limits.idle
        waiting = [connection for idle in self._idle.values() for connection in idle]
        for connection in waiting:
            if connection.idle_since <= oldest:
                connection.abort()
        self._sweep = None
        if self._idle:
            soonest = min(idle[0].idle_since for idle in self._idle.values()) - oldest
            self._sweep = loop.call_later(soonest, self._close_expired, loop)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def connect(self, transfer: Transfer) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._connect(transfer))
        self._connecting[task] = transfer
        task.add_done_callback(self._connecting.pop)
        return task

    async def _connect(self, transfer: Transfer) -> None:
        origin = transfer.origin
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        try:
            transport, connection = await self._dial(
                origin, lambda: Connection(self, origin, loop), self.limits.connect
            )
            self._all.add(connection)
            tune(transport.get_extra_info("socket"))
            if origin.tls is not None:
                async with asyncio.timeout(self.limits.tls):
                    secured = await loop.start_tls(
                        transport, connection, origin.tls, server_hostname=origin.host
                    )
                assert secured is not None
                connection.transport = secured
        except asyncio.CancelledError:
            _give_up(connection)
            raise
        except ConnectFailed as exc:
            transfer.broken(exc)
        except TimeoutError:
            _give_up(connection)
            transfer.broken(ConnectFailed(f"{origin}: no connection in time"))
        except (OSError, UnicodeError) as exc:
            # Refused, unreachable, no such name, one that cannot be a name, not trusted.
            _give_up(connection)
            why = getattr(exc, "verify_message", "")  # of a certificate
            how = f"{exc.__class__.__name__}: {why}" if why else exc.__class__.__name__
            transfer.broken(ConnectFailed(f"{origin}: {how}"))
        else:
            connection.carry(transfer)

    async def _dial(
        self, origin: Origin, protocol: Callable[[], P], within: float
    ) -> tuple[asyncio.Transport, P]:
        """Connect to one address after the other; each has an equal share of the time left.

        Raises OSError, TimeoutError among them, and UnicodeError of the last one; ConnectFailed
        where no address is known.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        addresses = self._in_order(origin)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout((until - loop.time()) / left):
                    made = await loop.create_connection(protocol, address, origin.port)
            except (OSError, UnicodeError):
                if left == 1:
                    raise
            else:
                if len(addresses) > 1:
                    self._worked[origin.host, origin.port] = address
                return made
        raise ConnectFailed(f"{origin}: no address is known of {origin.host}")

    def _in_order(self, origin: Origin) -> Sequence[str]:
        """The addresses to try, that which worked last first."""
        if origin.address:
            return (origin.address,)
        known = self._addresses(origin.host)
        worked = self._worked.get((origin.host, origin.port))
        if worked is not None and worked in known:
            known = (worked, *(address for address in known if address != worked))
        return known[:_MOST_ADDRESSES]


def _give_up(connection: Connection | None) -> None:
    if connection is not None:
        connection.abort()


class Transfer:
    """One request and its answer. The `Flight` that a sink is given.

    Mutable state: the connection that carries it now, whether it was reused, whether it is paused,
    and `done`, set once.
    """

    __slots__ = (
        "_connection",
        "_loop",
        "_paused",
        "_request",
        "_reused",
        "_sent_at",
        "_sink",
        "_task",
        "_transport",
        "data",
        "done",
        "origin",
        "sent",
    )

    def __init__(
        self,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        origin: Origin,
        request: tuple[bytes, ...],
        sink: Sink,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._request = request
        self._sink = sink
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._reused = False
        self._paused = False
        self._sent_at = 0.0
        self.origin = origin
        #: The sink's own: nothing is to be done here for each piece.
        self.data = sink.data
        self.sent = sink.sent
        self.done: asyncio.Future[None] = self._loop.create_future()

    def launch(self) -> None:
        connection = self._transport.take(self.origin, self._loop.time())
        if connection is None:
            self._task = self._transport.connect(self)
        else:
            self._reused = True
            connection.carry(self)

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def fail(self, exc: BackendError) -> None:
        if not self.done.done():
            self._let_go()
            self._finish(exc)

    def close(self) -> None:
        """End it without a word to the sink. Nothing happens where it had ended."""
        self._let_go()  # whatever `done` says: who is cancelled while awaiting it cancels it too
        if not self.done.done():
            self.done.set_result(None)

    # What the connection tells.

    def carried(self, connection: Connection) -> tuple[bytes, ...]:
        self._connection = connection
        self._task = None
        self._sent_at = self._loop.time()
        if self._paused:
            connection.transport.pause_reading()
        return self._request

    def head(self, status: int, headers: Headers) -> None:
        self._request = ()  # answered: from here on nothing can be sent again
        self._sink.head(status, headers)

    def end(self) -> None:
        connection, self._connection = self._connection, None
        if self._paused and connection is not None and connection.usable:
            connection.transport.resume_reading()  # for the next one it carries
        if not self.done.done():
            try:
                self._sink.end()
            except BaseException:  # the event loop tells of it; whoever waits must not wait on
                self._finish(BadAnswer(f"{self.origin}: its answer could not be passed on"))
                raise
            self.done.set_result(None)

    def lost(self, exc: BackendError, received: bool) -> None:
        """The connection died. One that had been idle and said nothing is worth a fresh one."""
        self._connection = None
        stale = self._reused and not received
        if stale and self._loop.time() - self._sent_at < self._transport.limits.stale_within:
            self._reused = False
            self._task = self._transport.connect(self)
        else:
            self.broken(exc)

    def broken(self, exc: BackendError) -> None:
        self._connection = None
        if self._sent_at and isinstance(exc, ConnectFailed):
            # It was on a connection before: the server may have had it, and died of it.
            exc = ConnectionBroken(str(exc))
        if not self.done.done():
            self._finish(exc)

    def _finish(self, exc: BackendError) -> None:
        self._sink.broken(exc)
        self.done.set_result(None)

    def _let_go(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
