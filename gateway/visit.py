"""One request and its answer on a connection: the `Caller` that `reply.py` writes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.errors import GatewayError, InternalError
from gateway.reply import Lines, Watcher


class Connection(Protocol):
    """What a visit asks of the connection it happens on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    tasks: set[asyncio.Task[None]]

    def on_response_complete(self) -> None: ...
    def refuse(self, exc: GatewayError) -> None: ...
    def close_after(self, unread: bool) -> None: ...


class Visit(RequestResponseCycle):
    """One request and its answer: uvicorn's cycle, and the `Caller` that `reply.py` writes to."""

    task: asyncio.Task[None]

    def __init__(
        self,
        front: Connection,
        scope: HTTPScope,
        default_headers: Sequence[tuple[bytes, bytes]],
        *,
        keep_alive: bool,
        expects_100: bool = False,
    ) -> None:
        # All that uvicorn's own `__init__` sets and something here or there still reads: made for
        # every request, it takes no dictionary of arguments.
        self.front = front
        self.scope = scope
        self.transport = front.transport
        self.flow = front.flow
        self.logger = front.logger
        self.default_headers = default_headers  # type: ignore[assignment]
        self.message_event = asyncio.Event()
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_100
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.watcher: Watcher | None = None
        #: The head of the answer, until its first piece leaves with it.
        self._head = b""

    @property
    def gone(self) -> bool:
        return self.disconnected

    def take_body(self) -> bytes | None:
        if self.more_body or self.disconnected:
            return None
        body, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        self.flow.resume_reading()
        return body

    def begin(self, status: int, headers: Lines, length: int | None) -> None:
        if self.disconnected:
            return
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.more_body:
            self.keep_alive = False  # where its body ends is not known: no second request
        lines = [STATUS_LINE[status], lines_of(self.default_headers), headers]
        if length is None and self.scope["http_version"] == "1.0":
            self.chunked_encoding = False  # the close is the end
            self.keep_alive = False
        elif length is None:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.chunked_encoding = False
            lines.append(b"content-length: %d\r\n" % length)
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(lines)

    def write(self, piece: bytes) -> None:
        if self.disconnected or not piece:
            return
        if self.chunked_encoding and not self._head:  # each event of a stream but the first
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        else:
            self._send(piece, b"")

    def finish(self, last: bytes = b"") -> None:
        if self.disconnected or self.response_complete:
            return
        # Whether the caller reads this is nobody's concern any more: the engine has said it all.
        self.watcher = None
        self._send(last, b"0\r\n\r\n" if self.chunked_encoding else b"")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.front.close_after(self.more_body)
        self.front.on_response_complete()

    def _send(self, piece: bytes, end: bytes) -> None:
        """One write for all there is to say: the head, if still here, the piece and the end."""
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            piece, end = b"", b""
        elif piece and self.chunked_encoding:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if head or end:
            piece = head + piece + end
        if piece:
            self.transport.write(piece)

    def cut(self) -> None:
        self.response_complete = True
        self.watcher = None
        self.transport.abort()

    async def send(self, message: Any) -> None:
        """ASGI's way in, for what Starlette answers."""
        if message["type"] == "http.response.start":
            fields = lines_of(f for f in message["headers"] if f[0] != b"content-length")
            length = next((int(v) for n, v in message["headers"] if n == b"content-length"), None)
            self.begin(message["status"], fields, length)
            return
        if message.get("more_body", False):
            self.write(message.get("body", b""))
        else:
            self.finish(message.get("body", b""))

    def start(self, app: Any) -> None:
        """Have the application answer, in a task that whoever answers can be cancelled by."""
        self.task = self.front.loop.create_task(self.run_asgi(app))
        # Until it is over, as `run_asgi` tells: nobody cancels it before its first step.
        self.front.tasks.add(self.task)

    async def run_asgi(self, app: Any) -> None:
        """As uvicorn's, without callbacks for each request: an answer that is not whole when the
        application is done is a fault of ours, whatever there is of it.
        """
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application ended without a whole answer")
        except BaseException as exc:
            self.logger.error("Exception in ASGI application", exc_info=exc)
            self._break_off()
        finally:
            self.front.tasks.discard(self.task)

    def _break_off(self) -> None:
        try:
            if self.response_started:
                self.transport.close()
            else:
                self.front.refuse(InternalError())
        except BaseException:  # not even that can be said
            self.transport.abort()
            raise


def lines_of(fields: Iterable[tuple[bytes, bytes]]) -> Lines:
    """Header fields as they travel."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])
