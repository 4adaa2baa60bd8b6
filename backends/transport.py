"""The only HTTP client: HTTP/1.1 on `asyncio.Protocol` and httptools, calling a `Sink`.

Nothing is awaited between the socket and the sink: what one read of the socket brought is parsed
and handed over inside the read callback, once. A task exists only while a connection is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import httptools

from backends.base import Headers, Origin, Replica, Sink
from backends.errors import (
    BackendError,
    BadAnswer,
    ConnectFailed,
    ConnectionBroken,
    UpstreamTimeout,
)

_FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class Limits:
    """Timers in seconds and caps in bytes."""

    connect: float = 1.0
    tls: float = 5.0
    #: vLLM closes an idle connection after 5 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`): be earlier.
    idle: float = 4.0
    #: A reused connection that dies before a byte came back was closed by the server while it was
    #: idle, unless the request had been there for so long that the server may have begun it.
    stale_within: float = 1.0
    header: int = 64 * 1024
    header_fields: int = 200


class Transport:
    """Sends requests and keeps connections for the next ones.

    Mutable state: `_idle`, the connections waiting for a request, newest last; `_all`, every
    connection; `_connecting`, the tasks that make one; `_sweep`, the timer that ends old idleness.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._connecting: dict[asyncio.Task[None], Exchange] = {}

    def send(self, replica: Replica, request: bytes, sink: Sink) -> Exchange:
        """Start one request; everything that follows is told to `sink`.

        `request` is a whole HTTP request. Its exchange's `done` is set after the sink's last call.
        """
        exchange = Exchange(self, replica.origin, request, sink)
        sink.begin(exchange, replica)
        exchange.launch()
        return exchange

    async def fetch(
        self, replica: Replica, request: bytes, *, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        """One small request outside the path of callers: the status and body of its answer.

        Raises BackendError, UpstreamTimeout after `timeout` seconds among them.
        """
        answer = Collected(limit)
        exchange = self.send(replica, request, answer)
        try:
            async with asyncio.timeout(timeout):
                await exchange.done
        except TimeoutError:
            raise UpstreamTimeout(f"no answer within {timeout:g} s") from None
        finally:
            exchange.close()
        if answer.failure is not None:
            raise answer.failure
        return answer.status, b"".join(answer.pieces)

    async def close(self) -> None:
        """Close every connection; exchanges still under way are broken off."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        connecting = dict(self._connecting)
        for exchange in connecting.values():
            exchange.fail(ConnectFailed(f"{exchange.origin}: given up"))
        for connection in list(self._all):
            connection.break_off()
        if connecting:
            await asyncio.wait(connecting)

    @property
    def open_connections(self) -> int:
        return len(self._all)

    def take(self, origin: Origin) -> Connection | None:
        """The idle connection used last: it is the least likely to be closed by the server."""
        idle = self._idle.get(origin)
        oldest = asyncio.get_running_loop().time() - self.limits.idle
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

    def connect(self, exchange: Exchange) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._connect(exchange))
        self._connecting[task] = exchange
        task.add_done_callback(self._connecting.pop)
        return task

    async def _connect(self, exchange: Exchange) -> None:
        origin = exchange.origin
        loop = asyncio.get_running_loop()
        connection = Connection(self, origin, loop)
        self._all.add(connection)
        try:
            async with asyncio.timeout(self.limits.connect):
                transport, _ = await loop.create_connection(
                    lambda: connection, origin.host, origin.port
                )
            _tune(transport.get_extra_info("socket"))
            if origin.tls is not None:
                async with asyncio.timeout(self.limits.tls):
                    secured = await loop.start_tls(
                        transport, connection, origin.tls, server_hostname=origin.host
                    )
                assert secured is not None
                connection.transport = secured
        except asyncio.CancelledError:
            connection.abort()
            raise
        except TimeoutError:
            connection.abort()
            exchange.broken(ConnectFailed(f"{origin}: no connection in time"))
        except (OSError, UnicodeError) as exc:
            # Refused, unreachable, no such name, one that cannot be a name, not trusted.
            connection.abort()
            exchange.broken(ConnectFailed(f"{origin}: {exc.__class__.__name__}"))
        else:
            connection.carry(exchange)


class Exchange:
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
        "done",
        "origin",
    )

    def __init__(self, transport: Transport, origin: Origin, request: bytes, sink: Sink) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._request = request
        self._sink = sink
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._reused = False
        self._paused = False
        self._sent_at = 0.0
        self.origin = origin
        self.done: asyncio.Future[None] = self._loop.create_future()

    def launch(self) -> None:
        connection = self._transport.take(self.origin)
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

    def carried(self, connection: Connection) -> bytes:
        self._connection = connection
        self._task = None
        self._sent_at = self._loop.time()
        if self._paused:
            connection.transport.pause_reading()
        return self._request

    def head(self, status: int, headers: Headers) -> None:
        self._request = b""  # answered: from here on nothing can be sent again
        self._sink.head(status, headers)

    def data(self, piece: bytes) -> None:
        self._sink.data(piece)

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


class Connection(asyncio.Protocol):
    """One connection to a server: connecting, then carrying an exchange or idle, then closed."""

    def __init__(self, owner: Transport, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set when connected
        # For the whole connection
        self._owner = owner
        self._loop = loop
        self._parser: Any = None
        self.idle_since = 0.0
        # For one answer
        self._exchange: Exchange | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._head_size = 0
        self._in_head = True
        self._complete = False
        self._received = False
        self._framed = True
        self._reusable = False

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def carry(self, exchange: Exchange) -> None:
        if exchange.done.done() or not self.usable:  # left, or closed, while connecting
            self.abort()
            exchange.broken(ConnectFailed(f"{self.origin}: closed at once"))
            return
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._fields = []
        self._head_size = 0
        self._in_head = True
        self._complete = False
        self._received = False
        self.transport.write(exchange.carried(self))

    def break_off(self) -> None:
        """Close at once, and tell the exchange that is carried."""
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.broken(ConnectionBroken(f"{self.origin}: broken off"))

    def abort(self) -> None:
        """Close at once; the exchange that was carried hears nothing of it."""
        self._exchange = None
        self._owner.forget(self)
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # an idle server has nothing to say
            return
        self._received = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self._complete:
                self._drop(exchange, BadAnswer(f"not a well-formed answer: {exc}"))
                return
            self._reusable = False  # what follows a whole answer is nobody's
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > self._owner.limits.header:
                self._drop(exchange, BadAnswer("a response head over its cap"))
            return
        if self._pieces and self._exchange is exchange:  # its head may have made the sink end it
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            exchange.data(piece)
        if self._complete and self._exchange is exchange:
            self._release()
            exchange.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if exc is None and self._ends_with_connection():
            exchange.end()
            return
        how = exc.__class__.__name__ if exc else "end of stream"
        exchange.lost(ConnectionBroken(f"{self.origin}: {how}"), self._received)

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("bytes after the answer")  # stops the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))
        if len(self._fields) > self._owner.limits.header_fields:
            raise ValueError("more header fields than allowed")  # stops the parser

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 200:
            return  # an interim answer; the real one follows
        self._in_head = False
        self._reusable = self._parser.should_keep_alive()
        self._framed = any(name in _FRAMING for name, _ in fields)
        if self._exchange is not None:
            self._exchange.head(status, fields)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = not self._in_head

    def _ends_with_connection(self) -> bool:
        """RFC 9112 §6.3, rule 8: with neither length nor chunks, the close is the end."""
        return not (self._in_head or self._complete or self._framed)

    def _release(self) -> None:
        self._exchange = None
        self._parser = None
        if self._reusable and self.usable:
            self.idle_since = self._loop.time()
            self._owner.keep(self)
        else:
            self.abort()

    def _drop(self, exchange: Exchange, exc: BackendError) -> None:
        self.abort()
        exchange.broken(exc)


class Collected:
    """A sink that keeps a small answer."""

    def __init__(self, limit: int) -> None:
        self.failure: BackendError | None = None
        self.promised = False
        self.status = 0
        self.pieces: list[bytes] = []
        self._room = limit
        self._flight: Any = None

    def begin(self, flight: Any, replica: Replica) -> None:
        self._flight = flight

    def head(self, status: int, headers: Headers) -> None:
        self.status = status

    def data(self, piece: bytes) -> None:
        self._room -= len(piece)
        if self._room < 0:
            self._flight.fail(BadAnswer("an answer over its cap"))
        else:
            self.pieces.append(piece)

    def end(self) -> None:
        pass

    def broken(self, exc: BackendError) -> None:
        self.failure = exc


def _tune(sock: socket.socket) -> None:
    """Send at once, and notice within a minute a server that vanished without a word."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
