"""The answer to one caller, as a state: none → status sent → content → ended.

Everything a caller ever reads passes here. `refuse` does the right thing in every state: a whole
error answer while nothing was sent, the last words of the dialect inside a stream, and a cut
connection where a plain answer had begun, since no byte could mend it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

import orjson

from gateway.errors import GatewayError
from gateway.terms import UNLIMITED, Standings

#: Header fields in the form they travel in, each with its line end: made once, sent often.
Lines = bytes


class Watcher(Protocol):
    """Who is told what happens on the caller's connection."""

    def gone(self) -> None:
        """The caller left; nothing can be sent any more."""

    def pause(self) -> None:
        """The caller reads more slowly than it is written to."""

    def resume(self) -> None: ...


class Caller(Protocol):
    """The caller's connection for the length of one request, as the front door gives it.

    Writing never waits: what the caller has not read yet is reported by `Watcher.pause`.
    """

    watcher: Watcher | None
    #: What answers this caller, to be cancelled when there is nobody to answer.
    task: asyncio.Task[None]
    #: Whether that began within the read which brought the request, as the first of its turn.
    at_once: bool

    @property
    def gone(self) -> bool: ...

    def take_body(self) -> bytes | None:
        """All of the request's body, once; None where some of it is still to come."""

    def begin(self, status: int, headers: Lines, length: int | None) -> None:
        """Status and headers; `length` of the body in bytes, or None for one in chunks.

        They leave with the first piece, or with `finish`.
        """

    def write(self, piece: bytes) -> None: ...
    def finish(self, last: bytes = b"") -> None:
        """The end, and the last piece with it."""

    def cut(self) -> None:
        """Break the connection, so that what was sent is not taken for an answer."""


class Speech(Protocol):
    """How a dialect says what the gateway itself has to say."""

    heartbeat: bytes

    def status(self, exc: GatewayError) -> int: ...
    def error_object(self, exc: GatewayError, request_id: str) -> dict[str, Any]: ...
    def error_frame(self, exc: GatewayError, request_id: str) -> bytes: ...
    def limit_lines(self, standings: Standings) -> Lines:
        """Header fields of how the caller stands with its limits."""


class State(IntEnum):
    NONE = 0
    STATUS = 1
    CONTENT = 2
    ENDED = 3


_STREAM_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache, no-transform\r\n"
    b"x-accel-buffering: no\r\n"
)
_JSON_HEADERS = b"content-type: application/json\r\ncache-control: no-store\r\n"


class Reply:
    """Mutable state: `state`, `status`, whether it is a `stream`, and `bytes_out`."""

    __slots__ = (
        "_caller",
        "_known",
        "_request_id",
        "_speech",
        "bytes_out",
        "more_headers",
        "standings",
        "state",
        "status",
        "stream",
    )

    def __init__(self, caller: Caller, speech: Speech, request_id: str) -> None:
        self._caller = caller
        self._speech = speech
        self._request_id = request_id
        self._known: Lines = b""
        self.state = State.NONE
        self.status = 0
        self.stream = False
        self.bytes_out = 0
        #: For every answer to this caller, whatever it says.
        self.more_headers: Lines = b""
        #: How the caller stands with its limits; asked for when there is time for it.
        self.standings: Callable[[], Standings] | None = None

    def prepare(self) -> None:
        """Write down what any answer's head will say: the engine's work is a good time for it."""
        ids = f"x-request-id: {self._request_id}\r\nrequest-id: {self._request_id}\r\n".encode()
        standings = self.standings() if self.standings is not None else UNLIMITED
        self._known = ids + self.more_headers + self._speech.limit_lines(standings)

    def start_stream(self, extra: Lines = b"") -> None:
        """Commit to a 200 and a stream; what fails from here on is told inside it."""
        self.stream = True
        self._start(200, _STREAM_HEADERS + extra, None)

    def start_plain(self, extra: Lines = b"", length: int | None = None) -> None:
        self._start(200, _JSON_HEADERS + extra, length)

    def data(self, piece: bytes) -> None:
        self.state = State.CONTENT
        self.bytes_out += len(piece)
        self._caller.write(piece)

    def heartbeat(self) -> None:
        """Only between whole events, and only once the status is out."""
        self._caller.write(self._speech.heartbeat)

    def end(self, last: bytes = b"") -> None:
        """The answer is whole with `last`."""
        self.state = State.ENDED
        self.bytes_out += len(last)
        self._caller.finish(last)

    def whole(self, body: bytes, extra: Lines = b"") -> None:
        """A complete plain answer."""
        self.start_plain(extra, len(body))
        self.end(body)

    def empty(self, status: int) -> None:
        self._start(status, b"", 0)
        self.end()

    def refuse(self, exc: GatewayError) -> None:
        """Tell the caller, in whatever way is left."""
        if self.state is State.ENDED or self._caller.gone:
            self.state = State.ENDED
        elif self.state is State.NONE:
            self._refuse_whole(exc)
        elif self.stream:
            self.end(self._speech.error_frame(exc, self._request_id))
        else:
            self.state = State.ENDED
            self._caller.cut()

    def _refuse_whole(self, exc: GatewayError) -> None:
        body = orjson.dumps(self._speech.error_object(exc, self._request_id))
        headers = _JSON_HEADERS + b"".join(b"%b: %b\r\n" % field for field in exc.headers)
        if exc.retry_after is not None:
            # Rounded up: who comes back too early is refused again.
            headers += b"retry-after: %d\r\n" % max(1, math.ceil(exc.retry_after))
            headers += b"retry-after-ms: %d\r\n" % math.ceil(exc.retry_after * 1000)
        headers += self._speech.limit_lines(exc.standings)
        if exc.should_retry is not None:
            headers += b"x-should-retry: %b\r\n" % (b"true" if exc.should_retry else b"false")
        self._start(self._speech.status(exc), headers, len(body))
        self.end(body)

    def _start(self, status: int, headers: Lines, length: int | None) -> None:
        self.state = State.STATUS
        self.status = status
        if not self._known:
            self.prepare()
        self._caller.begin(status, headers + self._known, length)
