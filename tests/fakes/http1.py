"""HTTP/1.1 on a bare socket: what the scripted engine and the raw client share.

Every send is one system call as long as the peer has room, and no byte is read before it is asked
for: tests count writes, cut at offsets, and stop reading.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

End = Literal["fin", "rst"]


class Headers(list[tuple[bytes, bytes]]):
    """Header lines in the order they came, names in lower case."""

    def all(self, name: str) -> list[str]:
        """Every value of one header."""
        return [value.decode("latin-1") for key, value in self if key == name.lower().encode()]

    def get(self, name: str) -> str | None:
        """The first value of one header, None if it did not come."""
        values = self.all(name)
        return values[0] if values else None


class Wire:
    """A connected socket: buffered reads on demand, sends at once, and three ways to end.

    Reads raise EOFError when the peer sent FIN, ConnectionResetError when it sent RST, and
    TimeoutError when nothing came for `patience` seconds (None: wait for ever).
    """

    def __init__(self, sock: socket.socket, patience: float | None = None) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience = patience
        self._sock = sock
        # All mutable state: what came and was not taken yet, and how the peer ended its side.
        self.buffer = bytearray()
        self.ended: End | None = None

    async def fill(self) -> None:
        """Wait for bytes and take in what is there."""
        async with asyncio.timeout(self.patience):
            await readable(self._sock)
        # No await between here and the buffer: a cancelled reader loses nothing.
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as exc:
            self.ended = self.ended or "rst"
            raise ConnectionResetError("the peer sent RST") from exc
        if not data:
            self.ended = self.ended or "fin"
            raise EOFError("the peer sent FIN")
        self.buffer += data

    async def gone(self) -> End:
        """Take in bytes until the peer ends, and tell how."""
        while True:
            try:
                await self.fill()
            except EOFError:
                return "fin"
            except ConnectionResetError:
                return "rst"

    async def some(self, most: int = 1 << 16) -> bytes:
        """At least one byte, `most` at most."""
        while not self.buffer:
            await self.fill()
        return self._take(min(most, len(self.buffer)))

    async def exactly(self, size: int) -> bytes:
        """That many bytes."""
        while len(self.buffer) < size:
            await self.fill()
        return self._take(size)

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark."""
        while (at := self.buffer.find(mark)) < 0:
            await self.fill()
        return self._take(at + len(mark))

    async def head(self) -> tuple[str, Headers]:
        """The start line and the headers. Raises ValueError if they are none."""
        start, *lines = (await self.until(b"\r\n\r\n"))[:-4].split(b"\r\n")
        headers = Headers()
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError(f"not a header: {line!r}")
            headers.append((name.lower(), value.strip()))
        return start.decode("latin-1"), headers

    async def pieces(self, headers: Headers, *, to_the_end: bool) -> AsyncIterator[bytes]:
        """The body after these headers, without its framing; chunks one by one.

        With neither a length nor chunks it is empty, or runs to the peer's FIN if `to_the_end`.
        """
        length = headers.get("content-length")
        if (headers.get("transfer-encoding") or "").lower() == "chunked":
            while size := int((await self.until(b"\r\n")).split(b";")[0], 16):
                yield (await self.exactly(size + 2))[:-2]
            while await self.until(b"\r\n") != b"\r\n":
                pass
        elif length is not None:
            left = int(length)
            while left:
                piece = await self.some(left)
                left -= len(piece)
                yield piece
        elif to_the_end:
            while True:
                try:
                    yield await self.some()
                except EOFError:
                    return

    async def send(self, data: bytes) -> None:
        """Send all of it, waiting while the peer has no room."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def fin(self) -> None:
        """End our side and keep reading: a half-close."""
        self._sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Close at once with RST: a linger time of zero, as tcp(7) and socket(7) have it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        """Close: FIN, or RST if the kernel holds bytes nobody read. Fine to call twice."""
        self._sock.close()

    def _take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data


async def readable(sock: socket.socket | int) -> None:
    """Wait until reading, or accepting, would not block."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
