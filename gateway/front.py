"""The front door: one lean subclass of uvicorn's httptools protocol.

It adds what uvicorn leaves to a proxy in front: deadlines and caps for the head, the strictness
of RFC 9112 where two readers of one request could differ, our JSON for every refusal, a caller
who leaves noticed in every state, and answers written without a task or an ASGI message for each
piece (`visit.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backends.connection import tune
from gateway.alarms import Alarm
from gateway.asgi import scope_of
from gateway.door import Door
from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
)
from gateway.repeat import Repeat, remembered
from gateway.reply import Lines
from gateway.terms import Head, fields_of
from gateway.visit import Visit, lines_of
from gateway.wire.head import wrong_in

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Front(HttpToolsProtocol):
    """One connection.

    Mutable state, beyond uvicorn's: whether a head is being read (`_in_head`), or its first byte is
    still to come (`_between`); how much of it is here (`_head_bytes`) and its `_deadline`;
    `_fault`, why the request being read is refused; `_declining`, whether the parser is told a
    head again; `_repeat`, a head that may come again, and how much of the body behind such a one is
    still to come (`_left`), which the parser hears nothing of; `_reading`, the visit whose request
    is read, or was last; `_active`, the one being answered, and until it is begun `_fresh`;
    `_waiting`, those whose turn comes, and how much was sent ahead of theirs (`_waiting_bytes`);
    `_closing`, how many bytes an ending connection may still send, None while it lives; and
    `_idle`, the alarm set between requests.
    """

    door: ClassVar[Door] = Door()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._fault: GatewayError | None = None
        self._in_head = True
        self._between = True
        self._declining = False
        self._repeat: Repeat | None = None
        self._left = 0
        self._reading: Visit | None = None
        self._active: Visit | None = None
        self._fresh: Visit | None = None
        self._waiting: deque[Visit] = deque()
        self._waiting_bytes = 0
        self._closing: int | None = None
        self._idle = Alarm(self.loop)

    # Connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            tune(sock)  # a caller may vanish without a word, too
        if len(self.connections) > self.door.connections:
            self.refuse(Overloaded("Too many connections are open."))
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        active = self._active
        for visit in (active, *self._waiting):
            if visit is not None and not visit.response_complete:
                visit.leave()
        self._waiting.clear()
        super().connection_lost(exc)
        self._idle.end()
        if active is not None and active.watcher is not None:
            watcher, active.watcher = active.watcher, None
            watcher.gone()

    def data_received(self, data: bytes) -> None:
        if self._closing is not None:
            self._closing -= len(data)
            if self._closing < 0:
                self.transport.abort()
            return
        if self._fault is not None or (self._waiting and not self._room_for(len(data))):
            return
        if self._between and not data.strip(b"\r\n"):
            return  # empty lines before a request are none (RFC 9112 §2.2)
        if not self.flow.write_paused:
            self._idle.stop()
        if self._left:
            data = self._take(data)
        elif self._between:
            data = self._begin(data)
        if data:
            self._feed(data)
        if self._head_bytes and self._deadline is None:
            self._expect_head()  # a head that came whole never needs a timer
        visit, self._fresh = self._fresh, None
        if visit is not None:
            visit.start(at_once=not visit.more_body and self.door.starts.is_first(self.loop))

    def _begin(self, data: bytes) -> bytes:
        """A request. What of `data` is left when it has been read."""
        repeat = self._repeat
        if repeat is None:
            self._feed(data)
            if self._fresh is not None and not self._waiting:
                self._repeat = remembered(data, self._fresh)
            return b""
        found = repeat.found(data) if self._is_free() else None
        if found is None:
            return data
        digits, at = found
        self._between = False
        self._left = int(digits)
        self.url = repeat.target
        self._reading = self._active = self._fresh = repeat.visit(self, digits)
        return self._take(data[at:])

    def _take(self, data: bytes) -> bytes:
        """A piece of a body. What of `data` is behind it, without empty lines: they are none."""
        piece = data[: self._left]
        self._left -= len(piece)
        if piece:
            self.on_body(piece)
        if not self._left:
            self._whole()
        return data[len(piece) :].lstrip(b"\r\n")

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._fault is None and self._closing is None:
                self._decline_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self._fault = self._fault or InvalidRequest("This is not a well-formed HTTP request.")
        if self._head_bytes > self.door.header_bytes:
            self._fault = self._fault or HeadersTooLarge("The request head is too large.")
        if self._fault is not None:
            self._refuse_in_turn(self._fault)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read on as if nothing had been offered (RFC 9110 §7.8).

        The parser takes an offer for the end of its message, and of all messages where the
        connection is to close: a new one is told the head again without it, and reads what follows
        as that head's body, not as a second request.
        """
        framing = (field for field in self.headers if field[0] in _FRAMING)
        self._declining, self.parser = True, httptools.HttpRequestParser(self)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % lines_of(framing))
        self._declining = False
        if rest:
            self._feed(rest)

    def eof_received(self) -> None:
        """A caller that stops sending has left: no client of these APIs half-closes and waits."""

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._active is not None and self._active.watcher is not None:
            self._active.watcher.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._active is None:
            return
        if self._active.watcher is not None:
            self._active.watcher.resume()
        elif self._active.response_complete and not self._is_ending():
            self._go_on()

    def _idle_too_long(self) -> None:
        # What the caller has not read by now it will not read.
        self.transport.abort() if self.flow.write_paused else self.transport.close()

    def shutdown(self) -> None:
        for visit in (self._active, *self._waiting):
            if visit is not None:
                visit.keep_alive = False
        if self._active is None or self._active.response_complete:
            self._stop_deadline()
            self.transport.close()

    # Heads

    def on_message_begin(self) -> None:
        self._between = False
        if not self._declining:
            self.url = b""
            self.headers = []

    def on_url(self, url: bytes) -> None:
        if not self._declining:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are for nobody here, and there is no end to them
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._declining or self._closing is not None:
            return
        if self._deadline is not None:
            self._stop_deadline()
        self._in_head = False
        door, size, self._head_bytes = self.door, self._head_bytes, 0
        if len(self.headers) > door.header_fields or size > door.header_bytes:
            # One read may have held a part of the body, too.
            self._fault = self._fault or door.too_large(self.url, self.headers)
        if self._fault is not None:
            return
        method, version = self.parser.get_method(), self.parser.get_http_version()
        fields, repeated = fields_of(self.headers)
        self._fault = wrong_in(method, version, self.url, fields, repeated)
        if self._fault is not None:
            return
        path, _, _ = self.url.partition(b"?")
        # The path as it was sent: decoding could only reach more of them.
        head = Head(method.decode("ascii"), path.decode("latin-1"), fields, repeated)
        self._reading = visit = Visit(
            self,
            head,
            version=version,
            target=self.url,
            listed=self.headers,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            expects_100=b"expect" in fields and fields[b"expect"].lower() == b"100-continue",
        )
        if self._is_free():
            self._active = self._fresh = visit
        elif len(self._waiting) < door.pipelined_requests:
            # Reading goes on, within a bound: a paused socket would hide that the caller left.
            self._waiting.append(visit)
        else:
            self._forget_waiting()

    def on_body(self, body: bytes) -> None:
        visit = self._reading
        if self._fault is not None or self._closing is not None or visit is None:
            return
        if visit.response_complete:
            return
        visit.add(body)
        if visit is self._active and visit.held > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # until it is asked for, which is soon

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():  # else of its head only: see `_decline_upgrade`
            self._whole()

    def _whole(self) -> None:
        """All of a request is here."""
        self._in_head = self._between = True
        visit = self._reading
        if self._fault is not None or self._closing is not None or visit is None:
            return
        if not visit.response_complete:
            visit.whole()
        if visit is self._active:
            # Nobody asks for more of it, and a caller who leaves is known by what is read.
            self.flow.resume_reading()

    # A visit's answer

    @property
    def usual(self) -> Lines:
        return self.door.lines(self.server_state.default_headers)

    def answer(self, visit: Visit) -> Awaitable[None]:
        direct = self.door.direct(visit)
        if direct is not None:
            return direct
        application: Any = self.app
        answered = application(scope_of(visit, self), visit.receive, visit.send)
        return cast(Awaitable[None], answered)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._waiting_bytes = 0
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._go_on()

    def _is_ending(self) -> bool:
        return self._closing is not None or self.transport.is_closing()

    def _is_free(self) -> bool:
        """Whether the next request may begin. Not while the caller leaves the answer before it
        unread: the answers would pile up here.
        """
        if self._active is None:
            return True
        return self._active.response_complete and not self.flow.write_paused

    def _go_on(self) -> None:
        """To what comes next on this connection, now that an answer is complete."""
        if self._waiting and self._is_free():
            self._idle.stop()
            self._active = following = self._waiting.popleft()
            following.start()
        elif self._fault is not None and self._closing is None:
            self.refuse(self._fault)
        else:
            self._idle.set(self.loop.time() + self.timeout_keep_alive, self._idle_too_long)

    # Deadlines and refusals

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.door.header_timeout, self._head_is_late)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_is_late(self) -> None:
        self._deadline = None
        if self._active is not None and not self._active.response_complete:
            return  # the rest of a pipelined head may take as long as the answer before it
        if self._head_bytes:
            self.refuse(RequestTimeout("The request head did not arrive in time."))
        else:
            self.transport.close()

    def _room_for(self, size: int) -> bool:
        """Whether requests sent ahead of their turn may grow by `size` bytes."""
        self._waiting_bytes += size
        if self._waiting_bytes > self.door.pipelined_bytes:
            self._forget_waiting()
        return self._closing is None

    def _forget_waiting(self) -> None:
        """Drop what was sent too far ahead, and end the connection with the answer under way.

        A client sends again what was not answered (RFC 9112 §9.3.2).
        """
        self._waiting.clear()
        if self._active is not None:
            self._reading = self._active
            self._active.keep_alive = False
            if self._active.response_complete:  # and unread
                self._idle.set(self.loop.time() + self.door.drain_for, self._idle_too_long)
        self._closing = 1 << 62  # read on, and forget it

    def _refuse_in_turn(self, fault: GatewayError) -> None:
        """Refuse the request being read, after the answers that are due before it."""
        if self._active is None or (self._active.response_complete and not self._waiting):
            self.refuse(fault)
        elif self._active is self._reading and not self._waiting and self._active.more_body:
            # The body under way is broken: its own request is the one at fault.
            self._active.leave()
            self.refuse(fault)

    def refuse(self, exc: GatewayError) -> None:
        """Answer without a request to answer to, and close."""
        self._stop_deadline()
        if self._is_ending():
            return
        self.transport.write(self.door.refusal(exc, self.url, self.usual))
        self.close_after(True)

    def close_after(self, unread: bool) -> None:
        """Close once what was written is out. `unread`: the caller may still be sending."""
        if not unread:
            self.transport.close()
            return
        # Closing with bytes unread resets the connection and can destroy the answer on its way
        # (RFC 9112 §9.6): end our side, then take in a little of what still comes.
        self._closing = self.door.drain_bytes
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(self.door.drain_for, self.transport.abort)
