"""What all connections of a listener share: the bounds, and who answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

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
    _fields: list[tuple[bytes, bytes]] = field(default_factory=list, repr=False)
    _lines: Lines = field(default=b"", repr=False)

    def lines(self, fields: list[tuple[bytes, bytes]]) -> Lines:
        """Those of uvicorn's fields for every answer, a list that it makes anew each second."""
        if fields is not self._fields:
            self._fields, self._lines = fields, lines_of(fields)
        return self._lines
