"""The answer to one caller, as a state: none → status sent → content → ended.

Everything a caller ever reads passes here. `refuse` does the right thing in every state: a whole
error answer while nothing was sent, the last words of the dialect inside a stream, and a cut
connection where a plain answer had begun, since no byte could mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Protocol

import orjson

from gateway.errors import GatewayError

Headers = Sequence[tuple[bytes, bytes]]


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

    gone: bool
    watcher: Watcher | None

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """Status and headers; `length` of the body in bytes, or None for one in chunks."""

    def write(self, piece: bytes) -> None: ...
    def finish(self) -> None: ...
    def cut(self) -> None:
        """Break the connection, so that what was sent is not taken for an answer."""


class Speech(Protocol):
    """How a dialect says what the gateway itself has to say."""

    heartbeat: bytes

    def status(self, exc: GatewayError) -> int: ...
    def error_object(self, exc: GatewayError, request_id: str) -> dict[str, Any]: ...
    def error_frame(self, exc: GatewayError, request_id: str) -> bytes: ...


class State(IntEnum):
    NONE = 0
    STATUS = 1
    CONTENT = 2
    ENDED = 3


_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_JSON_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


class Reply:
    """Mutable state: `state`, `status`, whether it is a `stream`, and `bytes_out`."""

    __slots__ = (
        "_caller",
        "_ids",
        "_request_id",
        "_speech",
        "bytes_out",
        "more_headers",
        "state",
        "status",
        "stream",
    )

    def __init__(self, caller: Caller, speech: Speech, request_id: str) -> None:
        self._caller = caller
        self._speech = speech
        self._request_id = request_id
        encoded = request_id.encode()
        self._ids = ((b"x-request-id", encoded), (b"request-id", encoded))
        self.state = State.NONE
        self.status = 0
        self.stream = False
        self.bytes_out = 0
        #: For every answer to this caller, whatever it says.
        self.more_headers: Headers = ()

    def start_stream(self, extra: Headers = ()) -> None:
        """Commit to a 200 and a stream; what fails from here on is told inside it."""
        self.stream = True
        self._start(200, (*_STREAM_HEADERS, *extra), None)

    def start_plain(self, extra: Headers = (), length: int | None = None) -> None:
        self._start(200, (*_JSON_HEADERS, *extra), length)

    def data(self, piece: bytes) -> None:
        self.state = State.CONTENT
        self.bytes_out += len(piece)
        self._caller.write(piece)

    def heartbeat(self) -> None:
        """Only between whole events, and only once the status is out."""
        self._caller.write(self._speech.heartbeat)

    def end(self) -> None:
        self.state = State.ENDED
        self._caller.finish()

    def whole(self, body: bytes, extra: Headers = ()) -> None:
        """A complete plain answer."""
        self.start_plain(extra, len(body))
        self.data(body)
        self.end()

    def empty(self, status: int) -> None:
        self._start(status, (), 0)
        self.end()

    def refuse(self, exc: GatewayError) -> None:
        """Tell the caller, in whatever way is left."""
        if self.state is State.ENDED or self._caller.gone:
            self.state = State.ENDED
        elif self.state is State.NONE:
            self._refuse_whole(exc)
        elif self.stream:
            self.data(self._speech.error_frame(exc, self._request_id))
            self.end()
        else:
            self.state = State.ENDED
            self._caller.cut()

    def _refuse_whole(self, exc: GatewayError) -> None:
        body = orjson.dumps(self._speech.error_object(exc, self._request_id))
        headers = [*_JSON_HEADERS, *exc.headers]
        if exc.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(exc.retry_after))))
            headers.append((b"retry-after-ms", b"%d" % round(exc.retry_after * 1000)))
        if exc.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if exc.should_retry else b"false"))
        self._start(self._speech.status(exc), headers, len(body))
        self.bytes_out += len(body)
        self._caller.write(body)
        self.end()

    def _start(self, status: int, headers: Headers, length: int | None) -> None:
        self.state = State.STATUS
        self.status = status
        self._caller.begin(status, (*headers, *self._ids, *self.more_headers), length)
