"""More than there is room for, whatever the answers are, from a process of its own.

`python -m tests.faults.flood PORT PHASES` plays phases of [requests a second, seconds], streams in
both dialects, in turn, and prints one JSON document with a `Told` of each phase.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field

import uvloop

from tests.fakes.client import head
from tests.fakes.gateway import HEADERS
from tests.faults.asking import CHAT, MESSAGES, body

_MARK = b"\n\n"


@dataclass
class Told:
    """What callers of one phase met. Times in seconds; `tokens` by the second they came in."""

    seconds: float
    tokens: list[int] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    refusals: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    #: How many were refused without being told when to come again.
    without_retry_after: int = 0
    odd: list[str] = field(default_factory=list)


class Caller(asyncio.Protocol):
    """One connection, kept for the next request.

    Mutable state: its transport, the phase it tells to, when it asked, what came so far, `done`.
    """

    def __init__(self, idle: deque[Caller]) -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._phase_began = 0.0
        self._told = Told(0)
        self._head = b""
        self._last = b""
        self.done: asyncio.Future[None] = self._loop.create_future()

    def ask(self, request: bytes, told: Told, phase_began: float) -> None:
        assert self._transport is not None
        self._told, self._phase_began = told, phase_began
        self._head = self._last = b""
        self._began = time.perf_counter()
        self.done = self._loop.create_future()
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        if not self._head:
            # An answer's head comes in one piece, with its first bytes.
            self._head, _, data = data.partition(b"\r\n\r\n")
            status = int(self._head[9:12])
            self._told.statuses[status] = self._told.statuses.get(status, 0) + 1
            if self._head[9:12] == b"200":
                self._told.firsts.append(time.perf_counter() - self._began)
        if self._head[9:12] == b"200":
            self._count(data)
        else:
            self._refused(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._told.odd.append(f"cut: {exc!r}, {self._last!r}")
            self.done.set_result(None)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def _count(self, data: bytes) -> None:
        second = int(self._loop.time() - self._phase_began)
        tokens = self._told.tokens
        tokens.extend([0] * (second + 1 - len(tokens)))
        tokens[second] += data.count(_MARK)
        self._last = (self._last + data)[-200:]
        if self._last.endswith(b"\r\n0\r\n\r\n"):
            if b"[DONE]" not in self._last and b"message_stop" not in self._last:
                self._told.odd.append(f"unfinished: {self._last!r}")
            self._end()

    def _refused(self, data: bytes) -> None:
        self._last += data
        lines = self._head.lower().split(b"\r\n")
        length = next(int(line[16:]) for line in lines if line.startswith(b"content-length: "))
        if len(self._last) < length:
            return
        self._told.refusals.append(time.perf_counter() - self._began)
        self._told.without_retry_after += b"\r\nretry-after: " not in self._head.lower()
        if self._head[9:12] not in (b"503", b"529"):
            self._told.odd.append(f"{self._head[9:12]!r}: {self._last!r}")
        self._end()

    def _end(self) -> None:
        self._idle.append(self)
        self.done.set_result(None)


async def _one(port: int, idle: deque[Caller], request: bytes, told: Told, began: float) -> None:
    while idle:
        caller = idle.pop()
        if caller._transport is not None and not caller._transport.is_closing():
            break
    else:
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: Caller(idle), "127.0.0.1", port)
    caller.ask(request, told, began)
    await caller.done


async def _phase(port: int, idle: deque[Caller], rate: float, seconds: float) -> Told:
    told = Told(seconds)
    loop = asyncio.get_running_loop()
    began = loop.time()
    live: set[asyncio.Task[None]] = set()
    requests = []
    for path in (CHAT, MESSAGES):
        sent = json.dumps(body(path)).encode()
        requests.append(head("POST", path, HEADERS, sent) + sent)
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - loop.time())
        task = asyncio.create_task(_one(port, idle, requests[number % 2], told, began))
        live.add(task)
        task.add_done_callback(live.discard)
    await asyncio.gather(*live)
    return told


async def _run(port: int, phases: list[tuple[float, float]]) -> None:
    idle: deque[Caller] = deque()
    told = [asdict(await _phase(port, idle, *phase)) for phase in phases]
    for caller in idle:
        caller.close()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1]), json.loads(sys.argv[2])))
