"""A sink that keeps all it is told, and the replicas it is told of."""

from __future__ import annotations

import asyncio

from backends.base import Flight, Headers, Origin, Replica
from backends.errors import BackendError
from backends.transport import Transfer, Transport

REQUEST = b"POST /v1/x HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Kept:
    """Mutable state: `calls`, by name and in order, and what came with them; `sends`."""

    def __init__(self) -> None:
        self.failure: BackendError | None = None
        self.promised = False
        self.heard = 0.0
        self.calls: list[str] = []
        self.sends = 0
        self.flight: Flight | None = None
        self.replicas: list[Replica] = []
        self.status = 0
        self.headers: Headers = ()
        self.body = bytearray()

    def begin(self, flight: Flight, replica: Replica) -> None:
        self.calls.append("begin")
        self.failure = None
        self.flight = flight
        self.replicas.append(replica)

    def sent(self) -> None:
        self.sends += 1

    def head(self, status: int, headers: Headers) -> None:
        self.calls.append("head")
        self.status = status
        self.headers = headers

    def data(self, piece: bytes) -> None:
        if self.calls[-1] != "data":
            self.calls.append("data")
        self.body += piece

    def end(self) -> None:
        self.calls.append("end")
        if self.status >= 400:
            self.failure = BackendError(f"status {self.status}")

    def broken(self, exc: BackendError) -> None:
        self.calls.append("broken")
        self.failure = exc


def replica(port: int, host: str = "127.0.0.1") -> Replica:
    return Replica(f"http://{host}:{port}", Origin(host, port))


async def ended(exchange: Transfer) -> None:
    await asyncio.wait_for(asyncio.shield(exchange.done), 10)


async def told(transport: Transport, port: int, sink: Kept | None = None) -> Kept:
    """Send one request and wait for the sink's last call."""
    sink = sink or Kept()
    await ended(transport.send(replica(port), REQUEST, sink))
    return sink
