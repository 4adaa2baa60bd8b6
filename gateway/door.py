"""What all connections of a listener share: the bounds, who answers, and how they refuse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway import passing
from gateway.eager import Starts
from gateway.endpoints.base import speech
from gateway.errors import GatewayError, HeadersTooLarge
from gateway.reply import Lines
from gateway.visit import Visit, lines_of

#: Answers a visit without an ASGI application; None for one that is not for it.
Direct = Callable[[Visit], Awaitable[None] | None]


def nobody(visit: Visit) -> None:
    """Leaves every visit to the application."""


@dataclass(slots=True)
class Door:
    """Times in seconds, sizes in bytes. `drain_for` and `drain_bytes` say how much of an unread
    body is taken in after an early answer, so that closing does not destroy the answer on its way.

    `direct` is asked before the listener's application, which gets what it leaves.

    Mutable state: the fields of every answer as they were last, and their lines.
    """

    header_timeout: float = 10.0
    header_bytes: int = 32 * 1024
    header_fields: int = 100
    pipelined_bytes: int = 64 * 1024
    pipelined_requests: int = 64
    connections: int = 10_000
    drain_for: float = 1.0
    drain_bytes: int = 64 * 1024
    direct: Direct = nobody
    starts: Starts = field(default_factory=Starts, repr=False)
    _fields: list[tuple[bytes, bytes]] = field(default_factory=list, repr=False)
    _lines: Lines = field(default=b"", repr=False)

    def too_large(
        self, target: bytes, listed: Sequence[tuple[bytes, bytes]]
    ) -> HeadersTooLarge | None:
        """What is wrong with the size of a head."""
        if len(listed) > self.header_fields:
            return HeadersTooLarge("The request has too many header fields.")
        if len(target) + sum(len(name) + len(value) for name, value in listed) > self.header_bytes:
            return HeadersTooLarge("The request head is too large.")
        return None

    def refusal(self, exc: GatewayError, target: bytes, usual: Lines) -> bytes:
        """A whole answer to what is no request, in the dialect of its target as far as it came."""
        said = speech(target.decode("latin-1"))
        request_id = passing.request_id()
        body = orjson.dumps(said.error_object(exc, request_id))
        identity = request_id.encode()
        lines = [STATUS_LINE[said.status(exc)], usual, lines_of(exc.headers)]
        lines.append(b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body))
        lines.append(b"x-request-id: %b\r\nrequest-id: %b\r\n" % (identity, identity))
        lines.append(b"connection: close\r\n\r\n")
        lines.append(body)
        return b"".join(lines)

    def lines(self, fields: list[tuple[bytes, bytes]]) -> Lines:
        """Those of uvicorn's fields for every answer, a list that it makes anew each second."""
        if fields is not self._fields:
            self._fields, self._lines = fields, lines_of(fields)
        return self._lines
