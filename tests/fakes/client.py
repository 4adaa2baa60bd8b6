"""A raw HTTP/1.1 client on a socket, for callers that are hostile, slow, or gone.

Nothing is checked or completed on the way out: what is sent is what the test wrote. Sending more
before reading is pipelining; not reading is being slow (give `rcvbuf` to make it felt soon).
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from tests.fakes.http1 import End, Headers, Wire

PATIENCE = 10.0
"""Seconds without a byte after which a read fails the test."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `complete`: the body came whole; `closed`: how the server ended, if it did."""

    status: int
    headers: Headers
    body: bytes
    complete: bool
    closed: End | None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Client:
    """One connection. Reads raise EOFError on FIN, ConnectionResetError on RST, TimeoutError."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        # All mutable state: the head of the answer being read, and what came after its last event.
        self._headers = Headers()
        self._bodiless = False
        self.partial = b""

    @classmethod
    async def open(
        cls, port: int, *, rcvbuf: int | None = None, patience: float = PATIENCE
    ) -> Self:
        """Connect to loopback. `rcvbuf` in bytes, the kernel doubles it: socket(7)."""
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(Wire(sock, patience))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> End | None:
        """How the server ended its side, as far as reads have seen it."""
        return self._wire.ended

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        await self._wire.send(data)

    async def post(self, path: str, body: Any, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a well-formed JSON request."""
        data = json.dumps(body).encode()
        await self.send(head("POST", path, [("content-type", "application/json"), *headers], data))
        await self.send(data)

    async def read_head(self, method: str = "GET") -> tuple[int, Headers]:
        """The status and headers of the next answer, a 1xx too."""
        start, self._headers = await self._wire.head()
        version, status = start.split(" ")[:2]
        if not version.startswith("HTTP/1."):
            raise ValueError(f"not an HTTP/1 answer: {start!r}")
        self._bodiless = method == "HEAD" or status in ("204", "304") or status[0] == "1"
        return int(status), self._headers

    async def read(self, most: int) -> bytes:
        """At least one raw byte, `most` at most."""
        return await self._wire.some(most)

    async def read_pieces(self) -> AsyncIterator[bytes]:
        """The body after the last head, chunk by chunk, without framing."""
        if not self._bodiless:
            async for piece in self._wire.pieces(self._headers, to_the_end=True):
                yield piece

    async def read_body(self) -> bytes:
        """The whole body after the last head."""
        return b"".join([piece async for piece in self.read_pieces()])

    async def read_events(self) -> AsyncIterator[bytes]:
        """The body as server-sent events with their blank lines; a rest is left in `partial`."""
        self.partial = b""
        async for piece in self.read_pieces():
            *events, self.partial = (self.partial + piece).split(b"\n\n")
            for event in events:
                yield event + b"\n\n"

    async def read_until_close(self) -> bytes:
        """Everything until the server ends its side; `ended` then says how."""
        await self._wire.gone()
        return await self._wire.exactly(len(self._wire.buffer))

    def fin(self) -> None:
        """Half-close: nothing more will be sent, reading goes on."""
        self._wire.fin()

    def rst(self) -> None:
        """Reset the connection."""
        self._wire.rst()

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()


def head(
    method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
) -> bytes:
    """A request's head; `host` and the body's length are added where they are missing."""
    lines = list(headers)
    names = {name.lower() for name, _ in lines}
    if "host" not in names:
        lines.insert(0, ("host", "127.0.0.1"))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(("content-length", str(len(body))))
    text = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines), "", ""]
    return "\r\n".join(text).encode("latin-1")


async def request(
    port: int,
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    patience: float = PATIENCE,
) -> Answer:
    """One request on a connection of its own. A body that breaks off is returned as it came.

    Raises EOFError or ConnectionResetError if there was no answer at all.
    """
    async with await Client.open(port, patience=patience) as client:
        # A server may answer and leave before it has taken the whole body.
        with suppress(ConnectionError):
            await client.send(head(method, path, headers, body) + (body or b""))
        status, answered = await client.read_head(method)
        while 100 <= status < 200:
            status, answered = await client.read_head(method)
        pieces: list[bytes] = []
        complete = False
        with suppress(EOFError, ConnectionResetError):
            async for piece in client.read_pieces():
                pieces.append(piece)
            complete = True
            if answered.get("connection") == "close":
                await client.read_until_close()
        return Answer(status, answered, b"".join(pieces), complete, client.ended)
