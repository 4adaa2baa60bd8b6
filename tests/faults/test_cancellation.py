"""Every await of a request's path may be its last: nothing is leaked, and the caller is told.

A request ends early in two ways, the caller leaving and the gateway ending it; each is tried while
it waits for its key, its body, its admission, a connection, the engine's head and the next event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import pytest

from gateway.authenticate import Keys
from gateway.errors import Draining
from gateway.terms import Principal
from tests.fakes.admission import Counting
from tests.fakes.client import Client, head
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import Chunk, Hang, Step, stream
from tests.faults.asking import CHAT, MESSAGES, body, error, events, heard, nothing_left

Ending = Literal["leaves", "ended"]
ENDINGS: tuple[Ending, ...] = ("leaves", "ended")
PATHS = (CHAT, pytest.param(MESSAGES, marks=pytest.mark.slow))

pytestmark = pytest.mark.usefixtures("no_traceback")


@dataclass
class SlowKeys:
    """Keys that have to be fetched from a place that does not answer."""

    waiting: int = 0

    def known(self, digest: bytes) -> Principal | None:
        return None

    async def fetch(self, digest: bytes) -> Principal | None:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        return None


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine([Hang()]) as running:
        yield running


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[Serving]:
    async with serving(configured(engine.url)) as running:
        yield running


@pytest.fixture
def admission(gateway: Serving) -> Counting:
    counted = Counting()
    gateway.worker.composition.gateway.admission = counted
    return counted


async def end(
    gateway: Serving, client: Client, path: str, how: Ending, begun: bool = False
) -> None:
    """End the one request under way, and see that its caller was told and the log has it."""
    if how == "leaves":
        client.rst()
    else:
        (exchange,) = gateway.worker.composition.gateway.live
        exchange.end(Draining("Stopping."))
        exchange.end(Draining("Stopping, again."))
        answer = await heard(client, path)
        assert answer.status == (200 if begun else 529 if path == MESSAGES else 503)
        assert error(path, answer)["message"].startswith("Stopping. ")
    await gateway.until_quiet(1)
    (line,) = await gateway.logged(1)
    assert line["outcome"] == ("client_gone" if how == "leaves" else "drained")


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
async def test_while_the_key_is_fetched(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending
) -> None:
    keys: Keys = SlowKeys()
    assert isinstance(keys, SlowKeys)
    gateway.worker.composition.gateway.keys = keys
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(path, body(path), HEADERS)
        await until(lambda: keys.waiting == 1)
        await end(gateway, client, path, how)
        assert keys.waiting == 0
    assert admission.given == []


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sent", [0, 500])
async def test_while_the_body_is_read(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending, sent: int
) -> None:
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        declared = [*HEADERS, ("content-length", "1000")]
        await client.send(head("POST", path, declared) + b" " * sent)
        bodies = gateway.worker.composition.gateway.bodies
        await until(lambda: gateway.live == 1 and bodies.held == sent)
        await end(gateway, client, path, how)
        assert bodies.held == 0
    assert admission.given == []


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
async def test_while_it_waits_for_admission(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending
) -> None:
    admission.closed = True
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(path, body(path), HEADERS)
        await until(lambda: admission.waiting == 1)
        await end(gateway, client, path, how)
    assert (admission.waiting, admission.given) == (0, [])
    assert not [r for r in engine.requests if r.method == "POST"]


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
async def test_while_the_engine_is_connected_to(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending
) -> None:
    transport = gateway.worker.composition.transport
    for connection in list(transport._all):
        connection.abort()  # what discovery left, so that a new one has to be made
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(path, body(path), HEADERS)
        while not transport._connecting:
            await asyncio.sleep(0)
        await end(gateway, client, path, how)
        assert not transport._connecting
    assert [len(endings) for endings in admission.settled] == [1]


STEPS: dict[str, list[Step]] = {
    "before its head": [Hang()],
    "after its head": [*stream([], end=False), Hang()],
    "inside an event": [*stream([b'data: {"id":'], end=False), Hang()],
}


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("point", STEPS)
async def test_while_the_engine_has_said_no_whole_event(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending, point: str
) -> None:
    engine.script = STEPS[point]
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(path, body(path), HEADERS)
        await engine.until(lambda: any(r.method == "POST" for r in engine.requests))
        await end(gateway, client, path, how)
        await engine.until(lambda: len(engine.aborts) == 1, 1)
    assert [len(endings) for endings in admission.settled] == [1]


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("path", PATHS)
async def test_in_mid_stream(
    gateway: Serving, engine: Engine, admission: Counting, path: str, how: Ending
) -> None:
    engine.script = [*stream([], end=False), *map(Chunk, events(path)[:4]), Hang()]
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(path, body(path), HEADERS)
        await until(lambda: any(e.reply.bytes_out for e in gateway.worker.composition.gateway.live))
        await end(gateway, client, path, how, begun=True)
        await engine.until(lambda: len(engine.aborts) == 1, 1)
    assert [len(endings) for endings in admission.settled] == [1]
    assert admission.settled[0][0].completion > 0, "what was used is charged all the same"


@pytest.mark.parametrize("how", ENDINGS)
async def test_while_a_plain_answer_is_awaited(
    gateway: Serving, engine: Engine, admission: Counting, how: Ending
) -> None:
    async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
        await client.post(CHAT, body(CHAT, stream=False), HEADERS)
        await engine.until(lambda: any(r.method == "POST" for r in engine.requests))
        await end(gateway, client, CHAT, how)
        await engine.until(lambda: len(engine.aborts) == 1, 1)
    assert [len(endings) for endings in admission.settled] == [1]


async def test_at_every_turn_of_the_event_loop(
    gateway: Serving, engine: Engine, admission: Counting
) -> None:
    """Wherever the request is: the caller leaves after so many turns, whole streams included."""
    engine.script = stream(events(CHAT))
    async with nothing_left(gateway, engine):
        for turns in range(60):
            async with await Client.open(gateway.port) as client:
                await client.post(CHAT, body(CHAT), HEADERS)
                for _ in range(turns):
                    await asyncio.sleep(0)
                client.rst()
            await gateway.until_quiet(1)
    assert all(len(endings) == 1 for endings in admission.settled)
