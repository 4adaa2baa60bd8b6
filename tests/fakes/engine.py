"""A scripted model server on a real loopback socket.

    async with Engine(stream([...], end=False) + [Rst()]) as engine:
        ...                                # engine.url, engine.requests, engine.aborts
        await engine.until_closed()

Without a script it answers like vLLM (tests/fakes/vllm.py). As a process of its own, to be killed:
`python -m tests.fakes.engine --port 0 --script slow_stream` prints its port and runs until it is
ended; tests/fakes/process.py starts it that way.
"""

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self

from tests.fakes.http1 import End, Wire, readable
from tests.fakes.script import (
    Answerer,
    Chunk,
    Fin,
    Hang,
    Received,
    Rst,
    Script,
    Send,
    Sleep,
    Step,
    Wait,
    stream,
    written,
)
from tests.fakes.vllm import Vllm

_BAD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 30\r\nconnection: close\r\n\r\nInvalid HTTP request received."
)


@dataclass(frozen=True, slots=True)
class Abort:
    """The peer left before its answer was complete: how, and how many bytes of it were sent."""

    how: End
    request: Received
    sent: int


class Engine:
    """The server. The script may be changed between requests; `stop` and `start` keep the port.

    An answer is complete when its steps have run out; the connection then waits for the next
    request, except after `Fin`, `Rst` or a request with `connection: close`. A peer's half-close
    counts as its leaving, as with uvicorn. What a script raises, `stop` raises again.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: Sequence[str] = ("tiny",),
        api_key: str | None = None,
        port: int = 0,
    ) -> None:
        self.script = script
        self.port = port
        self.vllm = Vllm(models, api_key)
        # All mutable state, for tests to read: what came, who left, and how much was sent.
        self.requests: list[Received] = []
        self.aborts: list[Abort] = []
        self.connections = 0
        self.open = 0
        self.sent = 0
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: list[BaseException] = []
        self._change = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def closed(self) -> int:
        """How many connections have come and gone."""
        return self.connections - self.open

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept(self._listener))

    async def stop(self) -> None:
        """Close the listener and every connection: further connects are refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if self._broken:
            raise self._broken.pop()

    async def until(self, fact: Callable[[], bool], timeout: float = 5) -> None:
        """Wait until the fact about this engine holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not fact():
                await self._change.wait()

    async def until_closed(self, n: int | None = None, timeout: float = 5) -> None:
        """Wait until no connection is open; with `n`, until n of them have been closed in all."""
        await self.until(lambda: self.open == 0 if n is None else self.closed >= n, timeout)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            self.connections += 1
            self.open += 1
            wire = Wire(sock)
            # Not in a `finally` of its task: one that is cancelled before it began has none.
            self._spawn(self._serve(wire, self.connections), partial(self._left, wire))
            self._changed()

    def _left(self, wire: Wire, _: object) -> None:
        wire.close()
        self.open -= 1
        self._changed()

    async def _serve(self, wire: Wire, number: int) -> None:
        while (request := await _read(wire, number)) is not None:
            self.requests.append(request)
            self._changed()
            if not await self._answer(wire, request):
                return

    async def _answer(self, wire: Wire, request: Received) -> bool:
        """Play the steps while watching the peer. True if the connection goes on."""
        before = self.sent
        playing = asyncio.create_task(self._play(wire, request))
        watching = asyncio.create_task(wire.gone())
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            watching.cancel()
            results = await asyncio.gather(playing, watching, return_exceptions=True)
        match results[0]:
            case asyncio.CancelledError() | OSError():
                self.aborts.append(Abort(wire.ended or "rst", request, self.sent - before))
                return False
            case BaseException() as broken:
                self._broken.append(broken)
            case Rst():
                wire.rst()
            case Fin():
                wire.close()
            case _:
                return request.headers.get("connection") != "close"
        return False

    async def _play(self, wire: Wire, request: Received) -> Fin | Rst | None:
        metrics = self.vllm.metrics
        generating = request.method == "POST"
        metrics["vllm:num_requests_running"] += generating
        try:
            for step in self._steps(request):
                match step:
                    case Fin() | Rst():
                        return step
                    case Sleep(seconds):
                        await asyncio.sleep(seconds)
                    case Wait(event):
                        await event.wait()
                    case Hang():
                        await asyncio.Event().wait()
                    case _:
                        data = written(step)
                        await wire.send(data)
                        self.sent += len(data)
                        metrics["vllm:iteration_tokens_total_count"] += isinstance(step, Chunk)
                        self._changed()
        finally:
            metrics["vllm:num_requests_running"] -= generating
        return None

    def _steps(self, request: Received) -> Iterable[Step]:
        if callable(self.script):
            steps = self.script(request)
            return self.vllm.answer(request) if steps is None else steps
        if self.script is not None and request.method == "POST":
            return self.script
        return self.vllm.answer(request)

    def _spawn(
        self, work: Coroutine[None, None, None], after: Callable[[object], None] | None = None
    ) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if after is not None:
            task.add_done_callback(after)

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


async def _read(wire: Wire, number: int) -> Received | None:
    """The next request; None if the peer has left or does not speak HTTP."""
    try:
        start, headers = await wire.head()
        method, target, version = start.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"not HTTP/1: {start!r}")
        body = b"".join([piece async for piece in wire.pieces(headers, to_the_end=False)])
    except ValueError:
        with suppress(OSError):
            await wire.send(_BAD)
        return None
    except (EOFError, OSError):
        return None
    return Received(method, target, headers, body, number)


def named(name: str) -> Answerer:
    """The script of that name, for an engine in a process of its own.

    `vllm` is no script at all; `slow_stream` a chat event each 20 ms for ever; `after_offset:N` the
    default stream up to exactly N bytes of its body, then silence; `until:P` every answer up to its
    phase P (see `begun`), then silence; `dies_of:WORD` ends the process at a body with that word.
    """
    kind, _, offset = name.partition(":")
    if kind not in ("vllm", "slow_stream", "after_offset", "until", "dies_of"):
        raise ValueError(f"no script {name!r}")

    def answer(request: Received) -> Iterable[Step] | None:
        if request.method != "POST" or kind == "vllm":
            return None
        if kind == "until":
            return [*begun(request, offset), Hang()]
        if kind == "dies_of":
            if offset.encode() in request.body:
                os._exit(1)
            return None
        steps = Vllm(("tiny",), None).answer(request)
        events = [step.data for step in steps if isinstance(step, Chunk)]
        if kind == "slow_stream":
            return _for_ever(events)
        return [*stream([b"".join(events)[: int(offset)]], end=False), Hang()]

    return answer


def begun(request: Received, phase: str) -> list[Step]:
    """An untouched engine's answer up to a phase: A nothing, B its head, C its head and a part."""
    steps = Vllm(("tiny",), None).answer(request)
    if phase == "A":
        return []
    if len(steps) > 1:
        return steps[:1] if phase == "B" else steps[:4]
    head, mark, body = written(steps[0]).partition(b"\r\n\r\n")
    return [Send(head + mark if phase == "B" else head + mark + body[: len(body) // 2])]


def _for_ever(events: Sequence[bytes]) -> Iterator[Step]:
    yield from stream(events[:1], end=False)
    for _ in count():
        yield from (Sleep(0.02), Chunk(events[1]))


async def _run(port: int, script: Script, *, tied: bool) -> None:
    async with Engine(script, port=port) as engine:
        print(engine.port, flush=True)
        if tied:
            # Nothing is ever sent on it: readable means that the parent is gone.
            await readable(sys.stdin.fileno())
        else:
            await asyncio.Event().wait()


def main() -> None:
    """Run one engine until it is ended."""
    options = argparse.ArgumentParser(description="A scripted model server.")
    options.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options.add_argument("--script", type=named, default="vllm", help="see `named`")
    options.add_argument("--tied", action="store_true", help="end when standard input closes")
    chosen = options.parse_args()
    asyncio.run(_run(chosen.port, chosen.script, tied=chosen.tied))


if __name__ == "__main__":
    main()
