"""The line between the supervisor and one worker: JSON lines over a socket pair, both ways.

A message is told, or asked and answered. What a name does is a table of handlers on each side.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Self

import msgspec

from gateway.logs import told_safely

logger = logging.getLogger("fairgate")

Handler = Callable[[Any], Awaitable[Any]]
"""Takes a payload of plain JSON values and returns one; of a message only told, it is dropped."""

#: The largest message, and how much may wait for a peer that does not read: a configuration of
#: some hundred thousand keys.
MOST_BYTES = 64 << 20
#: How many messages of the other side may be worked on at once.
MOST_AT_WORK = 64


class ChannelEnded(Exception):
    """Raised to who asks, or waits for the first word, when the other side is gone."""


class NotAnswered(Exception):
    """Raised to who asks when the other side cannot say: a name it has not, or its own fault."""


class _Message(msgspec.Struct, tag_field="is", kw_only=True):
    # The form: a worker of a version installed meanwhile is told apart by it.
    v: Literal[1] = 1
    payload: Any = None


class _Tell(_Message, tag="tell"):
    name: str


class _Ask(_Message, tag="ask"):
    id: int
    name: str


class _Answer(_Message, tag="answer"):
    id: int
    refused: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Tell | _Ask | _Answer).decode


class Channel:
    """One end of the line.

    Mutable state: `ended`, set once nothing comes or goes any more; `_asked`, the answers waited
    for; `_at_work`, the handlers running; and the task that reads.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._handlers: Mapping[str, Handler] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._at_work: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """The end that `sock` is; the channel closes it."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MOST_BYTES))

    async def first(self) -> Any:
        """The payload of the very first message, which is told; before `listen`.

        Raises ChannelEnded.
        """
        try:
            message = _decode(await self._line())
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as exc:
            raise ChannelEnded(told_safely(exc)) from None
        return message.payload

    def listen(self, handlers: Mapping[str, Handler]) -> None:
        """Begin to take messages. The table may still grow."""
        self._handlers = handlers
        self._reading = self._loop.create_task(self._read())

    def tell(self, name: str, payload: Any = None) -> None:
        """Send a message that has no answer; lost where the other side is gone."""
        self._send(_Tell(name=name, payload=payload))

    async def drained(self) -> None:
        """Wait until the other side has taken most of what was sent."""
        try:
            await self._writer.drain()
        except OSError:
            self._end()

    async def ask(self, name: str, payload: Any = None, *, timeout: float) -> Any:
        """The other side's answer within `timeout` seconds.

        Raises ChannelEnded, NotAnswered and TimeoutError.
        """
        if self.ended.is_set():
            raise ChannelEnded(name)
        self._last_id += 1
        number = self._last_id
        answer = self._asked[number] = self._loop.create_future()
        try:
            self._send(_Ask(id=number, name=name, payload=payload))
            async with asyncio.timeout(timeout):
                return await answer
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        """End the line, once what was sent is out; a peer that does not read has a second."""
        tasks = [*self._at_work, *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            pass  # the peer was gone first

    # What comes

    async def _read(self) -> None:
        try:
            while True:
                line = await self._line()
                if len(self._at_work) >= MOST_AT_WORK:
                    # A burst that came in one read is no overload: of what is at work, nothing had
                    # its turn yet. One turn of the loop for their steps, and one for their ends.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                self._take(line)
        except (EOFError, OSError):
            pass
        except (ValueError, msgspec.MsgspecError) as exc:  # the first is too long a line
            logger.error("a message between processes is not understood: %s", told_safely(exc))
        finally:
            self._end()

    async def _line(self) -> bytes:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError  # half a message is none: its sender died
        return line

    def _take(self, line: bytes) -> None:
        match _decode(line):
            case _Answer(id=number, refused=refused, payload=payload):
                answer = self._asked.get(number)  # None: nobody waits any more
                if answer is None or answer.done():
                    return
                if refused is None:
                    answer.set_result(payload)
                else:
                    answer.set_exception(NotAnswered(refused))
            case message:
                handler = self._handlers.get(message.name)
                if handler is None:
                    self._refuse(message, "not known")
                elif len(self._at_work) >= MOST_AT_WORK:
                    self._refuse(message, "too much at once")
                else:
                    task = self._loop.create_task(self._work(handler, message))
                    self._at_work.add(task)
                    task.add_done_callback(self._at_work.discard)

    async def _work(self, handler: Handler, message: _Tell | _Ask) -> None:
        try:
            payload = await handler(message.payload)
        except Exception as exc:
            self._refuse(message, told_safely(exc))
        else:
            if isinstance(message, _Ask):
                self._send(_Answer(id=message.id, payload=payload))

    def _refuse(self, message: _Tell | _Ask, why: str) -> None:
        logger.error("a message between processes failed: %s: %s", message.name, why)
        if isinstance(message, _Ask):
            self._send(_Answer(id=message.id, refused=f"{message.name}: {why}"))

    # What goes

    def _send(self, message: _Message) -> None:
        # Lost, and not read to its end yet: uvloop raises then, to whoever tells something, and who
        # tells something is not to die of another's death.
        if self.ended.is_set() or self._writer.is_closing():
            return
        self._writer.write(_encode(message) + b"\n")
        if self._writer.transport.get_write_buffer_size() > MOST_BYTES:
            logger.error("the other side of a channel does not read")
            self._end()
            self._writer.transport.abort()

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self._writer.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelEnded())
