"""A caller that reads slowly slows its engine down, and nothing piles up in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import count

import pytest

from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving
from tests.fakes.script import JSON, Chunk, EndChunks, Head, Received, Send, Step, stream
from tests.faults.asking import CHAT, body, nothing_left

EVENT = b'data: {"choices":[{"delta":{"content":"' + b"x" * 65_000 + b'"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
pytestmark = pytest.mark.usefixtures("no_traceback")

#: What the sockets of both connections may hold between them, at the kernel's largest.
BUFFERS = 24 << 20


def _for_ever(request: Received) -> Iterable[Step] | None:
    return _endless() if request.method == "POST" else None


def _endless() -> Iterator[Step]:
    yield from stream([], end=False)
    for _ in count():
        yield Chunk(EVENT)


async def _stands_still(engine: Engine) -> int:
    """How much the engine had sent when it could send no more."""
    sent = -1
    async with asyncio.timeout(10):
        while sent != engine.sent or sent == 0:
            sent = engine.sent
            await asyncio.sleep(0.2)
    return sent


async def _slow(port: int) -> Client:
    client = await Client.open(port, rcvbuf=4096)
    await client.post(CHAT, body(CHAT), HEADERS)
    return client


async def test_a_caller_that_does_not_read_stops_the_engine() -> None:
    timeouts = "{client_write: 60s, lame_duck: 0, drain: 0}"
    async with Engine(_for_ever) as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway, engine):
                async with await _slow(gateway.port):
                    assert await _stands_still(engine) < BUFFERS
                await engine.until(lambda: bool(engine.aborts), 1)


async def test_a_caller_that_never_reads_again_is_given_up() -> None:
    timeouts = "{client_write: 300ms, lame_duck: 0}"
    async with Engine(_for_ever) as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway, engine):
                async with await _slow(gateway.port) as client:
                    await engine.until(lambda: bool(engine.aborts), 5)
                    (line,) = await gateway.logged(1)
                    assert line["outcome"] == "client_gone"
                    assert not (await client.read_until_close()).endswith(b"\r\n0\r\n\r\n")
            assert gateway.live == 0


async def test_a_caller_that_reads_again_in_time_loses_nothing() -> None:
    # The stall timer is shorter than the pause: the engine must not be blamed for its caller.
    timeouts = "{client_write: 10s, stall: 200ms, heartbeat: 50ms, lame_duck: 0}"
    whole = [*[EVENT.replace(b"xx", b"%02d" % n, 1) for n in range(100)] * 4, DONE]
    async with Engine([*stream(whole, end=False), EndChunks()]) as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway, engine), await _slow(gateway.port) as client:
                assert await _stands_still(engine) < BUFFERS
                await asyncio.sleep(0.4)
                assert (await client.read_head("POST"))[0] == 200
                read = [event async for event in client.read_events()]
                assert [e for e in read if not e.startswith(b": ping")] == whole
            (line,) = await gateway.logged(1)
            assert line["outcome"] == "ok"


@pytest.mark.slow
async def test_a_large_plain_answer_waits_for_its_reader() -> None:
    text = b'{"object":"list","model":"tiny","data":"' + b"x" * (40 << 20) + b'"}'
    head = Head(200, [JSON, ("content-length", str(len(text)))])
    pieces = [Send(text[at : at + (1 << 20)]) for at in range(0, len(text), 1 << 20)]
    async with Engine([head, *pieces]) as engine, serving(configured(engine.url)) as gateway:
        async with nothing_left(gateway, engine):
            async with await Client.open(gateway.port, rcvbuf=4096) as client:
                asked = {"model": "tiny", "input": "hi"}
                await client.post("/v1/embeddings", asked, HEADERS)
                assert await _stands_still(engine) < BUFFERS
                assert (await client.read_head("POST"))[0] == 200
                assert await client.read_body() == text
