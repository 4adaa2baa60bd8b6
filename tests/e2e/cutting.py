"""A small TCP proxy that cuts answers short: all bytes pass, until the one where it cuts.

    async with Cutting(engine.port, after=[0, 17, 250], how="rst") as cutting:
        ...                                # cutting.url stands in for the engine's

Only streamed answers are cut, and only behind their first whole event: from there each passes the
next number of `after` bytes, and then its connection is reset or closed.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

_RESET = struct.pack("ii", 1, 0)
_PIECE = 1 << 16


class Cutting:
    """The proxy. `cuts` is how many answers it has cut, `left` how many numbers it still has."""

    def __init__(self, port: int, after: Iterable[int], how: Literal["fin", "rst"]) -> None:
        self._to = port
        self._after = list(after)
        self._how = how
        self._server: asyncio.Server | None = None
        self._flows: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)
        # The transports that were closed let go of their sockets one turn of the loop later.
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def left(self) -> int:
        return len(self._after)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flow = asyncio.create_task(self._flow(reader, writer))
        self._flows.add(flow)
        flow.add_done_callback(self._flows.discard)
        # Not in a `finally` of the task: one that is cancelled before it began has none.
        flow.add_done_callback(lambda _: writer.close())

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        with contextlib.closing(back):
            asking = asyncio.create_task(_pass(reader, back))
            answering = asyncio.create_task(self._answer(there, writer))
            try:
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asking.cancel()
                answering.cancel()
                await asyncio.gather(asking, answering, return_exceptions=True)

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        while piece := await there.read(_PIECE):
            seen += piece
            # The head's lines end in CR LF: the first blank line without CR ends an event.
            first = seen.find(b"\n\n")
            if first >= 0 and self._after:
                await self._cut(seen[len(seen) - len(piece) :], there, writer, len(seen), first + 2)
                return
            writer.write(piece)
            await writer.drain()

    async def _cut(
        self,
        piece: bytearray,
        there: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        seen: int,
        first: int,
    ) -> None:
        """Pass what is left of the answer up to the cut, `piece` of it in hand."""
        end = first + self._after.pop(0)
        room = end - (seen - len(piece))
        while room > 0 and piece:
            writer.write(piece[:room])
            await writer.drain()
            room -= len(piece)
            piece = bytearray(await there.read(_PIECE)) if room > 0 else piece
        self.cuts += 1
        if self._how == "rst":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        else:
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
