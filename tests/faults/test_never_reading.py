"""Callers that never read cost little, are given up in time, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, serving, until
from tests.fakes.http1 import Wire
from tests.fakes.script import Chunk, Received, Step, stream
from tests.faults.asking import CHAT, body, nothing_left

pytestmark = pytest.mark.usefixtures("no_traceback")

#: What one of them may cost the gateway, in bytes.
EACH = 256 << 10

SMALL = b'data: {"choices":[{"delta":{"content":"' + b"x" * 200 + b'"}}]}\n\n'
LARGE = b'data: {"choices":[{"delta":{"content":"' + b"x" * 65_000 + b'"}}]}\n\n'
#: What an engine writes at once: many small events, or one that is larger than a read.
PIECES = {"small": SMALL * 100, "large": LARGE}


class Narrow(Engine):
    """An engine whose sockets hold little, so that a thousand of them fit into the kernel."""

    def start(self) -> None:
        super().start()
        assert self._listener is not None
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)


def for_ever(piece: bytes) -> Iterator[Step]:
    yield from stream([], end=False)
    for _ in count():
        yield Chunk(piece)


def endless(got: Received) -> Iterable[Step] | None:
    """A stream without end, of the pieces whose name the caller gives as its user."""
    return for_ever(PIECES[got.json()["user"]]) if got.method == "POST" else None


async def deaf(port: int, kind: str) -> Client:
    """A caller with a small window and segments of a real network, who asks and never reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    sock.setblocking(False)
    client = Client(Wire(sock))
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        await client.post(CHAT, body(CHAT, user=kind), HEADERS)
    except BaseException:
        client.close()
        raise
    return client


@asynccontextmanager
async def crowd(port: int, kind: str, size: int) -> AsyncIterator[list[Client]]:
    clients: list[Client] = []
    try:
        for _ in range(size):
            clients.append(await deaf(port, kind))
        yield clients
    finally:
        for client in clients:
            client.close()


async def stands_still(engine: Engine, streams: int) -> None:
    """Until so many streams run and the engine can send no more in any."""
    await engine.until(lambda: engine.open - 1 <= streams <= len(posts(engine)), 60)
    sent = -1
    async with asyncio.timeout(60):
        while sent != engine.sent:
            sent = engine.sent
            await asyncio.sleep(0.5)


async def forgotten(engine: Engine) -> None:
    """Until no stream runs there: every one that began was broken off."""
    await engine.until(lambda: len(engine.aborts) == len(posts(engine)), 60)


def posts(engine: Engine) -> list[Received]:
    return [got for got in engine.requests if got.method == "POST"]


def resident(pid: int) -> int:
    """The memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def serve(folder: Path, engine: Engine, client_write: str) -> Command:
    file = folder / "fairgate.yaml"
    timeouts = f"{{client_write: {client_write}, lame_duck: 0}}"
    # Not vllm: that one's progress does not stop with its sockets, as this engine's does.
    file.write_text(configured(engine.url, model="kind: openai", timeouts=timeouts))
    return Command("serve", "--config", str(file))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(200, marks=pytest.mark.slow),
        pytest.param(1000, marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("kind", PIECES)
async def test_callers_that_never_read_cost_256_kb_each_and_are_forgotten(
    tmp_path: Path, kind: str, size: int
) -> None:
    async with Narrow(endless) as engine, serve(tmp_path, engine, "120s") as command:
        port = await command.listening()
        async with crowd(port, kind, 5):
            await stands_still(engine, 5)
        await forgotten(engine)
        quiet, before = descriptors(command.pid), resident(command.pid)
        async with crowd(port, kind, size):
            await stands_still(engine, 5 + size)
            grown = resident(command.pid) - before
            assert descriptors(command.pid) >= 2 * size
        print(f"{size} callers that never read, {kind} events: {grown // size >> 10} KiB each")
        assert grown / size <= EACH
        await forgotten(engine)
        await until(lambda: descriptors(command.pid) <= quiet + 2, 10)  # a probe or two
        # What was freed is used again, less what the allocator scatters: a second crowd that
        # stood beside the remains of the first would double it.
        async with crowd(port, kind, size):
            await stands_still(engine, 5 + 2 * size)
            again = resident(command.pid) - before
        print(f"a second crowd: {again // size >> 10} KiB each")
        assert again / size <= EACH
        assert again <= grown * 1.7
        await forgotten(engine)


async def given_up(callers: int) -> tuple[list[dict[str, Any]], bytes]:
    """So many callers that never read, until all are given up: the log, and the metrics then."""
    timeouts = "{client_write: 1s, lame_duck: 0}"
    async with Narrow(endless) as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway, engine):
                async with crowd(gateway.port, "small", callers):
                    await engine.until(lambda: len(engine.aborts) == callers, 20)
                    lines = await gateway.logged(callers)
            return lines, (await request(gateway.admin_port, "GET", "/metrics")).body


async def test_callers_that_never_read_are_given_up_and_their_engines_freed() -> None:
    lines, _ = await given_up(20)
    assert {(line["outcome"], line["status"]) for line in lines} == {("client_gone", 200)}


async def test_callers_that_never_read_are_counted() -> None:
    _, metrics = await given_up(3)
    assert b'fairgate_stream_failures_total{model="tiny",reason="client_stall"} 3' in metrics
