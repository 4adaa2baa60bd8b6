"""The cells of the fault matrix with a stage of their own, in a gateway of this process."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client
from tests.fakes.engine import Engine, begun
from tests.fakes.gateway import HEADERS, until
from tests.fakes.script import Chunk, EndChunks, Fin, Received, Step, Wait, stream
from tests.faults.asking import CHAT, MESSAGES, Heard, ask, body, error, events
from tests.faults.driving import Driven, driven, text_of

BOTH = (CHAT, MESSAGES)


@dataclass(frozen=True)
class Stage:
    """What a scene may use: a folder, what was logged, and patches that are undone afterwards."""

    folder: Path
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture


async def begun_at(gateway: Driven, *asked: tuple[str, bool]) -> list[asyncio.Task[Heard]]:
    return [asyncio.create_task(ask(gateway.port, path, stream=s)) for path, s in asked]


async def outcomes(gateway: Driven, count: int) -> list[str]:
    lines = await gateway.logged(count)
    assert len(lines) == len({line["request_id"] for line in lines}) == count
    return [line["outcome"] for line in lines]


def posts(engine: Engine) -> list[Received]:
    return [got for got in engine.requests if got.method == "POST"]


# F8


async def split_line_ends(stage: Stage) -> None:
    """No fault: line ends of any kind, cut anywhere, are the same answer."""
    ends: list[bytes] = []

    def script(got: Received) -> Iterable[Step] | None:
        text = b"".join(events(got.path)).replace(b"\n", ends[-1] if ends else b"")
        return stream([bytes([byte]) for byte in text]) if got.method == "POST" else None

    async with Engine(script) as engine, driven(text_of(engine.url), engine) as gateway:
        for path, end in product(BOTH, (b"\r\n", b"\r", b"\n")):
            ends.append(end)
            async with await Client.open(gateway.port) as client:
                await client.post(path, body(path), HEADERS)
                assert (await client.read_head("POST"))[0] == 200
                text = await client.read_body()
                assert text == b"".join(events(path)).replace(b"\n", end)
        assert await outcomes(gateway, 6) == ["ok"] * 6


# F9


async def stale(stage: Stage) -> None:
    """What an engine closes while it is idle costs no attempt, and says nothing against it."""
    seen: list[int] = []

    def script(got: Received) -> Iterable[Step] | None:
        if got.method != "POST":
            return None
        seen.append(got.connection)
        return [Fin()] if seen.count(got.connection) == 2 else None

    async with Engine(script) as engine, driven(text_of(engine.url), engine) as gateway:
        for streamed in (False, True):
            for path in BOTH:
                answer = await ask(gateway.port, path, stream=streamed)
                assert answer.status == 200
                assert answer.finished or not streamed
        lines = await gateway.logged(4)
        assert [line["attempts"] for line in lines] == [1] * 4
        assert len(seen) > 4, "no connection was stale"
        assert gateway.replicas()[0].last_error is None


# F10


class Names:
    """What names stand for now. Mutable state: `known`, and how often one of them was asked for."""

    def __init__(self, known: Sequence[str]) -> None:
        self.known = list(known)
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        self.asked += 1
        if host in ("127.0.0.1", b"127.0.0.1"):
            self.asked -= 1
        elif host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 0))]


def names(stage: Stage, *known: str) -> Names:
    found = Names(known)
    stage.patch.setattr(asyncio.get_running_loop(), "getaddrinfo", found.getaddrinfo)
    return found


async def unknown_name(stage: Stage) -> None:
    names(stage)
    async with driven(text_of("http://engine.test:8000")) as gateway:
        for path in BOTH:
            answer = await ask(gateway.port, path)
            assert answer.status == 502
            error(path, answer)
        assert await outcomes(gateway, 2) == ["upstream_failed"] * 2


async def _with_a_name_lost(stage: Stage, *, living: bool, draining: bool = False) -> None:
    """Connections are all that was lost with the name, where none is `living`."""
    resolver = names(stage, "engine.test")
    wait = Wait()

    def script(got: Received) -> Iterable[Step] | None:
        return held(got, "C", wait) if b"later" in got.body else None

    async with Engine(script) as engine:
        async with driven(text_of(f"http://engine.test:{engine.port}"), engine) as gateway:
            reading = asyncio.create_task(ask(gateway.port, CHAT, user="later"))
            await gateway.until_at("C", 1)
            resolver.known.clear()
            asked = resolver.asked
            if not living:
                await until(lambda: resolver.asked > asked, 15)
            if draining:
                await gateway.stop()
            else:
                for path in BOTH:
                    for connection in list(gateway.worker.composition.transport._idle.values()):
                        for idle in list(connection):
                            idle.abort()
                    assert (await ask(gateway.port, path)).finished
            wait.event.set()
            assert (await reading).finished
            assert gateway.replicas()[0].health.sound, "its probes no longer know where it is"
            await gateway.ended()


async def name_lost(stage: Stage) -> None:
    await _with_a_name_lost(stage, living=False)


async def name_lost_in_mid_stream(stage: Stage) -> None:
    await _with_a_name_lost(stage, living=True)


async def name_lost_while_draining(stage: Stage) -> None:
    await _with_a_name_lost(stage, living=True, draining=True)


# F19


def held(got: Received, phase: str, wait: Wait) -> Iterator[Step]:
    """An untouched engine's answer, with a rest at a phase."""
    first = begun(got, phase)
    yield from first
    yield wait
    if phase == "A":
        whole = stream(events(got.path))
    else:
        whole = [*first, *map(Chunk, events(got.path)[len(first) - 1 :]), EndChunks()]
    yield from whole[len(first) :]


async def _stopped(phase: str, times: dict[str, str], *, twice: bool = False) -> None:
    wait = Wait()

    def script(got: Received) -> Iterable[Step] | None:
        return held(got, phase, wait) if got.method == "POST" else None

    async with Engine(script) as engine:
        async with driven(text_of(engine.url, times=times), engine) as gateway:
            asked = [(path, True) for path in BOTH]
            reading = await begun_at(gateway, *asked)
            await gateway.until_at(phase, len(asked))
            await gateway.stop()
            in_time = not (times or twice)
            if twice:
                gateway.worker.stop()
            if in_time:
                wait.event.set()
            for (path, _), answer in zip(asked, await asyncio.gather(*reading), strict=True):
                assert answer.status == 200
                if in_time:
                    assert answer.finished
                    assert len(answer.events) == len(events(path))
                else:
                    assert "stopping" in error(path, answer)["message"]
            await gateway.ended(5)
            told = {"ok"} if in_time else {"drained"}
            assert set(await outcomes(gateway, len(asked))) == told


async def stopped_unanswered(stage: Stage) -> None:
    await _stopped("A", {})


async def stopped_before_an_event(stage: Stage) -> None:
    await _stopped("B", {})


async def stopped_in_mid_stream(stage: Stage) -> None:
    await _stopped("C", {})


async def stopped_at_the_deadline(stage: Stage) -> None:
    await _stopped("C", {"drain": "400ms"})


async def stopped_twice(stage: Stage) -> None:
    await _stopped("C", {}, twice=True)


# F26


async def loop_blocked(stage: Stage) -> None:
    """It is told with the place that blocked, and in the metrics; the request is only late."""
    async with Engine() as engine, driven(text_of(engine.url), engine) as gateway:
        asking = asyncio.create_task(ask(gateway.port, CHAT))
        await asyncio.sleep(0)
        _block()
        await until(lambda: gateway.worker.composition.metrics.loop_lag > 0.2)
        assert (await asking).finished
        assert await outcomes(gateway, 1) == ["ok"]
        records = stage.log.get_records("call")
        told = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
        assert any("event loop" in line and "_block" in line for line in told), told


def _block() -> None:
    time.sleep(1.2)


async def loop_blocked_in_mid_stream(stage: Stage) -> None:
    wait = Wait()

    def script(got: Received) -> Iterable[Step] | None:
        return held(got, "C", wait) if got.method == "POST" else None

    times = {"heartbeat": "200ms"}
    async with Engine(script) as engine:
        async with driven(text_of(engine.url, times=times), engine) as gateway:
            async with await Client.open(gateway.port) as client:
                await client.post(CHAT, body(CHAT), HEADERS)
                await client.read_head("POST")
                reading = client.read_events()
                for _ in range(3):
                    await anext(reading)
                _block()
                async with asyncio.timeout(1):
                    assert await anext(reading) == b": ping\n\n"
                wait.event.set()
                rest = [event async for event in reading]
                assert rest[-1] == b"data: [DONE]\n\n"
            assert await outcomes(gateway, 1) == ["ok"]
