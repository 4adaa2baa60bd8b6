"""One request and its answer on a connection: the `Caller` that `reply.py` writes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.eager import Eager
from gateway.errors import GatewayError, InternalError
from gateway.reply import Lines, Watcher
from gateway.terms import Head

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Protocol):
    """What a visit asks of the connection it happens on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    tasks: set[asyncio.Task[None]]

    @property
    def usual(self) -> Lines:
        """Header fields of every answer."""

    def answer(self, visit: Visit) -> Awaitable[None]:
        """To be awaited, and the visit's request is answered."""

    def on_response_complete(self) -> None: ...
    def refuse(self, exc: GatewayError) -> None: ...
    def close_after(self, unread: bool) -> None: ...


class Visit:
    """One request and its answer: the `Caller` that `reply.py` writes to, and for what Starlette
    answers the `receive` and `send` of ASGI.

    `version` as `1.1`, `target` as sent; `listed` has the head's fields in their order.

    Mutable state: the body's `_pieces` that nobody took yet, their size as `held`, and whether
    there is `more_body` to come; `_news`, whether `receive` has something to tell, and who is
    `_waiting` for it; how far the answer is, and `_head`, that of the answer until its first piece
    leaves with it; `keep_alive`, whether the connection goes on after it; `task`, which answers,
    and whether it began `at_once`.
    """

    task: asyncio.Task[None]

    __slots__ = (
        *("_chunked", "_expects_100", "_head", "_news", "_pieces", "_waiting"),
        *("disconnected", "flow", "front", "head", "held", "keep_alive", "listed", "more_body"),
        *("at_once", "response_complete", "response_started", "target", "task", "transport"),
        *("version", "watcher"),
    )

    def __init__(
        self,
        front: Connection,
        head: Head,
        *,
        version: str = "1.1",
        target: bytes = b"",
        listed: Sequence[tuple[bytes, bytes]] = (),
        keep_alive: bool,
        expects_100: bool = False,
    ) -> None:
        self.front = front
        self.head = head
        self.version = version
        self.target = target
        self.listed = listed
        self.transport = front.transport
        self.flow = front.flow
        self.watcher: Watcher | None = None
        self.disconnected = False
        self.keep_alive = keep_alive
        self.held = 0
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self._expects_100 = expects_100
        self._pieces: list[bytes] = []
        self._news = False
        self._waiting: asyncio.Future[None] | None = None
        self._chunked = False
        self._head = b""

    # The request

    def add(self, piece: bytes) -> None:
        """A piece of the body came."""
        self._pieces.append(piece)
        self.held += len(piece)
        self._tell()

    def whole(self) -> None:
        """All of the body came."""
        self.more_body = False
        self._tell()

    def leave(self) -> None:
        """Nobody is there to be answered any more."""
        self.disconnected = True
        self._tell()

    def _tell(self) -> None:
        """There is something for `receive`."""
        self._news = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def take_body(self) -> bytes | None:
        if self.more_body or self.disconnected:
            return None
        self._news = False
        self.flow.resume_reading()
        return self._taken()

    def _taken(self) -> bytes:
        pieces, self._pieces, self.held = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive(self) -> dict[str, Any]:
        """ASGI's way in: what came of the body since the last time, once something did."""
        if self._expects_100 and not self.transport.is_closing():
            self._expects_100 = False
            self.transport.write(_CONTINUE)
        if not (self.disconnected or self.response_complete):
            self.flow.resume_reading()
            if not self._news:
                self._waiting = self.front.loop.create_future()
                await self._waiting
            self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._taken(), "more_body": self.more_body}

    # The answer

    @property
    def gone(self) -> bool:
        return self.disconnected

    def begin(self, status: int, headers: Lines, length: int | None) -> None:
        if self.disconnected:
            return
        self.response_started = True
        self._expects_100 = False
        if self.more_body:
            self.keep_alive = False  # where its body ends is not known: no second request
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self.version == "1.0":
            framing = b""
            self.keep_alive = False  # the close is the end
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._head = b"".join((STATUS_LINE[status], self.front.usual, headers, framing, end))

    def write(self, piece: bytes) -> None:
        if self.disconnected or not piece:
            return
        if self._chunked and not self._head:  # each event of a stream but the first
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        else:
            self._send(piece, b"")

    def finish(self, last: bytes = b"") -> None:
        if self.disconnected or self.response_complete:
            return
        # Whether the caller reads this is nobody's concern any more: the engine has said it all.
        self.watcher = None
        self._send(last, b"0\r\n\r\n" if self._chunked else b"")
        self.response_complete = True
        self._tell()
        if not self.keep_alive:
            self.front.close_after(self.more_body)
        self.front.on_response_complete()

    def _send(self, piece: bytes, end: bytes) -> None:
        """One write for all there is to say: the head, if still here, the piece and the end."""
        head, self._head = self._head, b""
        if self.head.method == "HEAD":
            piece, end = b"", b""
        elif piece and self._chunked:
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
        """ASGI's way out."""
        if message["type"] == "http.response.start":
            fields = lines_of(f for f in message["headers"] if f[0] != b"content-length")
            length = next((int(v) for n, v in message["headers"] if n == b"content-length"), None)
            self.begin(message["status"], fields, length)
            return
        if message.get("more_body", False):
            self.write(message.get("body", b""))
        else:
            self.finish(message.get("body", b""))

    # Who answers

    def start(self, *, at_once: bool = False) -> None:
        """Have it answered, in a task that whoever answers can be cancelled by."""
        loop = self.front.loop
        self.at_once = at_once
        answered = Eager(self.run()) if at_once else self.run()
        self.task = loop.create_task(answered)
        # Until it is over, as `run` tells: nobody cancels it before its first step.
        self.front.tasks.add(self.task)
        if isinstance(answered, Eager):
            answered.begin(self.task, loop)

    async def run(self) -> None:
        """An answer that is not whole when who answers is done is a fault of ours, whatever there
        is of it.
        """
        try:
            await self.front.answer(self)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application ended without a whole answer")
        except BaseException as exc:
            self.front.logger.error("Exception in ASGI application", exc_info=exc)
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
