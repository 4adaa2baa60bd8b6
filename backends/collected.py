"""A sink that keeps a small answer, for what the gateway itself asks of a server."""

from __future__ import annotations

from typing import Any

from backends.base import Headers, Replica
from backends.errors import BackendError, BadAnswer


class Collected:
    """Mutable state: `status`, the `pieces` of the body so far, `failure` as a `Sink` has it."""

    def __init__(self, limit: int) -> None:
        self.failure: BackendError | None = None
        self.promised = False
        self.heard = 0.0
        self.status = 0
        self.pieces: list[bytes] = []
        self._room = limit
        self._flight: Any = None

    def begin(self, flight: Any, replica: Replica) -> None:
        self._flight = flight

    def sent(self) -> None:
        pass

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
