"""One connection to a server, and the parsing of what it says: HTTP/1.1 by httptools (llhttp)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import httptools

from backends.base import Headers, Origin
from backends.errors import BackendError, BadAnswer, ConnectFailed, ConnectionBroken
from backends.precedence import Precedence

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

#: How many reads of a body are passed on at once: a model server opens a stream with a word on who
#: speaks (in the Anthropic dialect with two), and the first token comes behind it.
_BEGINNING = 3

#: The most that one read takes in, in bytes. What a caller does not read is held up to here, in
#: pieces of this size, before its engine is paused: uvloop's own reads of 250 KB would be held too.
LARGEST_READ = 64 * 1024


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


class Keeper(Protocol):
    """Who keeps connections for the next request."""

    @property
    def limits(self) -> Limits: ...
    @property
    def precedence(self) -> Precedence: ...

    def keep(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


class Carried(Protocol):
    """What a connection carries: one request, and who takes its answer."""

    @property
    def done(self) -> asyncio.Future[None]: ...
    @property
    def data(self) -> Callable[[bytes], None]:
        """Takes a piece of the answer's body."""

    @property
    def sent(self) -> Callable[[], None]:
        """Told when the request was written."""

    def carried(self, connection: Connection) -> tuple[bytes, ...]:
        """It is on this connection now; what to send."""

    def head(self, status: int, headers: Headers) -> None: ...
    def end(self) -> None: ...
    def lost(self, exc: BackendError, received: bool) -> None:
        """The connection died; `received` says whether a byte had come back."""

    def broken(self, exc: BackendError) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """One connection to a server: connecting, then carrying a transfer or idle, then closed.

    Mutable state: the `transport`; `idle_since`; `_transfer`, what is carried, its `_parser`, and
    how far its answer is; `_room`, where reads go; `_passed`, how many pieces of the answer's body
    were passed on, and `_held`, what was read since and has to wait.
    """

    #: Shared by all connections of the process: nothing stays in it beyond the callback of its
    #: read, since the parser hands out copies.
    _room: ClassVar[memoryview] = memoryview(bytearray(LARGEST_READ))

    def __init__(self, owner: Keeper, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set when connected
        # For the whole connection
        self._owner = owner
        self._loop = loop
        self._parser: Any = None
        self.idle_since = 0.0
        # For one answer
        self._transfer: Carried | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._head_size = 0
        self._in_head = True
        self._complete = False
        self._received = False
        self._framed = True
        self._reusable = False
        self._passed = 0
        self._held = b""

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def carry(self, transfer: Carried) -> None:
        if transfer.done.done() or not self.usable:  # left, or closed, while connecting
            self.abort()
            transfer.broken(ConnectFailed(f"{self.origin}: closed at once"))
            return
        self._transfer = transfer
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._fields = []
        self._head_size = 0
        self._in_head = True
        self._complete = False
        self._received = False
        self._passed = 0
        pieces = transfer.carried(self)
        if len(pieces) == 1:
            self.transport.write(pieces[0])
        else:
            self.transport.writelines(pieces)
        transfer.sent()

    def break_off(self) -> None:
        """Close at once, and tell the transfer that is carried."""
        transfer = self._transfer
        self.abort()
        if transfer is not None:
            transfer.broken(ConnectionBroken(f"{self.origin}: broken off"))

    def abort(self) -> None:
        """Close at once; the transfer that was carried hears nothing of it."""
        self._transfer = None
        self._owner.forget(self)
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        transfer = self._transfer
        if transfer is None:
            self.abort()  # an idle server has nothing to say
        elif self._passed < _BEGINNING:
            self._received = True
            self._take(transfer, self._room[:nbytes])
        else:
            if not self._held:
                self._owner.precedence.defer(self, self._loop)
            self._held += self._room[:nbytes]
            if len(self._held) >= LARGEST_READ:
                self.pass_on()

    def pass_on(self) -> None:
        """What is held, if anybody waits for it still."""
        held, self._held = self._held, b""
        transfer = self._transfer
        if not held or transfer is None:
            return
        try:
            self._take(transfer, held)
        except Exception as exc:
            # As the event loop does where a read raises.
            message = "Fatal error: what was read could not be passed on"
            self._loop.call_exception_handler({"message": message, "exception": exc})
            self._drop(transfer, ConnectionBroken(f"{self.origin}: {exc.__class__.__name__}"))

    def _take(self, transfer: Carried, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self._complete:
                self._drop(transfer, BadAnswer(f"not a well-formed answer: {exc}"))
                return
            self._reusable = False  # what follows a whole answer is nobody's
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > self._owner.limits.header:
                self._drop(transfer, BadAnswer("a response head over its cap"))
            return
        if self._pieces and self._transfer is transfer:  # its head may have made the sink end it
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._passed += 1
            transfer.data(piece)
        if self._complete and self._transfer is transfer:
            self._release()
            transfer.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pass_on()
        self._owner.forget(self)
        self._parser = None  # it refers to this connection
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            return
        if exc is None and self._ends_with_connection():
            transfer.end()
            return
        how = exc.__class__.__name__ if exc else "end of stream"
        transfer.lost(ConnectionBroken(f"{self.origin}: {how}"), self._received)

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("bytes after the answer")  # stops the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))
        if not self._in_head:  # a trailer, and there is no end to them
            self._count_fields()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._count_fields()
        fields, self._fields = self._fields, []
        if status < 200:
            return  # an interim answer; the real one follows
        self._in_head = False
        self._reusable = self._parser.should_keep_alive()
        self._framed = False
        for name, _ in fields:
            if name in _FRAMING:
                self._framed = True
                break
        if self._transfer is not None:
            self._transfer.head(status, fields)

    def _count_fields(self) -> None:
        if len(self._fields) > self._owner.limits.header_fields:
            raise ValueError("more header fields than allowed")  # stops the parser

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = not self._in_head

    def _ends_with_connection(self) -> bool:
        """RFC 9112 §6.3, rule 8: with neither length nor chunks, the close is the end."""
        return not (self._in_head or self._complete or self._framed)

    def _release(self) -> None:
        self._transfer = None
        # Who answers before it has read the whole request may never read the rest: the next request
        # would wait behind it, and the rest be held in memory.
        if self._reusable and self.usable and not self.transport.get_write_buffer_size():
            self.idle_since = self._loop.time()
            self._owner.keep(self)
        else:
            self.abort()

    def _drop(self, transfer: Carried, exc: BackendError) -> None:
        self.abort()
        transfer.broken(exc)


class Held(asyncio.Protocol):
    """A connection that says nothing. `lost` is done when the other side closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


def tune(sock: socket.socket) -> None:
    """Send at once, and notice within a minute a peer that vanished without a word."""
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
