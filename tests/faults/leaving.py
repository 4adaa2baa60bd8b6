"""Callers that leave, vanish, send slowly or do not read: how soon all they hold is free again."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, product
from typing import Literal

from tests.fakes.client import Client, head, request
from tests.fakes.engine import Engine, begun
from tests.fakes.gateway import HEADERS, until
from tests.fakes.http1 import Wire
from tests.fakes.script import JSON, Chunk, Hang, Head, Received, Send, Sleep, Step, Wait, stream
from tests.faults.asking import CHAT, MESSAGES, PATHS, body, events
from tests.faults.driving import REQUESTS, driven, stepping, text_of
from tests.faults.stages import BOTH, Stage, held, outcomes, posts

#: What is asked of it: 250 ms. What a busy machine may take and the test still pass: a second.
DEADLINE = 1.0

State = Literal["unanswered", "head", "half", "quiet", "flowing"]
How = Literal["fin", "rst", "half-close"]
STATES: tuple[State, ...] = ("unanswered", "head", "half", "quiet", "flowing")
HOWS: tuple[How, ...] = ("fin", "rst", "half-close")


def leave(client: Client, how: How) -> None:
    match how:
        case "fin":
            client.close()
        case "rst":
            client.rst()
        case "half-close":
            client.fin()


@dataclass(frozen=True)
class Leaving:
    """A caller that leaves: of which request, in which state of its answer, and how."""

    path: str
    state: State
    how: How
    stream: bool = True
    pipelined: bool = False

    def steps(self) -> Iterable[Step]:
        """What the engine does until the state is reached, and after it."""
        if self.state == "unanswered":
            return [Hang()]
        if not self.stream:
            return [Head(200, [JSON, ("content-length", "999")]), Send(b'{"id":'), Hang()]
        whole = events(self.path)
        opening = stream([], end=False)
        match self.state:
            case "head":
                return [*opening, Hang()]
            case "half":
                return [*opening, Chunk(whole[0][:-1]), Hang()]
            case "quiet":
                return [*opening, Chunk(whole[0]), Hang()]
        return self._for_ever(opening, whole)

    def _for_ever(self, opening: list[Step], whole: list[bytes]) -> Iterable[Step]:
        yield from (*opening, Chunk(whole[0]))
        for _ in count():
            yield from (Sleep(0.005), Chunk(whole[2]))

    async def arrive(self, port: int, engine: Engine, mark: str) -> Client:
        """Be that caller, up to the state in which it leaves."""
        client = await Client.open(port)
        marked = {"system" if self.path == MESSAGES else "user": mark}
        asked = body(self.path, stream=self.stream, **marked)
        await client.post(self.path, asked, HEADERS)
        await engine.until(lambda: any(mark.encode() in r.body for r in engine.requests), 20)
        if self.stream and self.state in ("quiet", "flowing"):
            await client.read_head("POST")
            await anext(client.read_events())
        if self.pipelined:
            await client.post(self.path, asked, HEADERS)
        return client

    async def leave(self, client: Client, engine: Engine, mark: str) -> float:
        """Leave; how many seconds later the engine saw the end of its own connection."""
        loop = asyncio.get_running_loop()
        left = loop.time()
        leave(client, self.how)
        await engine.until(lambda: any(mark.encode() in a.request.body for a in engine.aborts), 20)
        took = loop.time() - left
        client.close()
        return took


async def played(
    leaving: Iterable[Leaving], *, draining: bool = False, at_once: int = 1000
) -> list[float]:
    """Play all of them, so many at once; how long an engine was kept by each, in order of size."""
    cases = {f"mark-{number:05}": case for number, case in enumerate(leaving)}

    def answer(request: Received) -> Iterable[Step] | None:
        if request.method != "POST":
            return None
        sent = request.json()
        return cases[sent["system" if request.path == MESSAGES else "user"]].steps()

    took: list[float] = []
    marks = list(cases)
    async with Engine(answer) as engine, driven(text_of(engine.url), engine) as gateway:
        for first in range(0, len(marks), at_once):
            some = marks[first : first + at_once]
            arriving = (cases[mark].arrive(gateway.port, engine, mark) for mark in some)
            clients = await asyncio.gather(*arriving)
            if draining:
                await gateway.stop()
            pairs = zip(some, clients, strict=True)
            leaves = (cases[mark].leave(client, engine, mark) for mark, client in pairs)
            took += await asyncio.gather(*leaves)
            engine.aborts.clear()
        if draining:
            await gateway.ended(5)  # it waits for nobody any more
        lines = await gateway.logged(len(cases))
        assert len(lines) == len(cases)
        assert {line["outcome"] for line in lines} == {"client_gone"}
        assert {line["status"] for line in lines} <= {200, 499}
        assert len([r for r in engine.requests if r.method == "POST"]) == len(cases)
    return sorted(took)


# Cells of the fault matrix


async def _left(*states: State, draining: bool = False) -> None:
    cases = [Leaving(path, state, how) for path, state, how in product(PATHS, states, HOWS)]
    plain: State | None = {"unanswered": "unanswered", "half": "half"}.get(states[-1])  # type: ignore[assignment]
    if plain is not None:
        cases += [Leaving(path, plain, how, stream=False) for path, how in product(PATHS, HOWS)]
    assert (await played(cases, draining=draining))[-1] < DEADLINE


async def left_unanswered(stage: Stage) -> None:
    await _left("unanswered")


async def left_before_an_event(stage: Stage) -> None:
    await _left("head", "half")


async def left_in_mid_stream(stage: Stage) -> None:
    await _left("quiet", "flowing")


async def left_while_draining(stage: Stage) -> None:
    await _left("quiet", "flowing", "unanswered", draining=True)


# F12


class Vanishing(Client):
    """A caller whose system drops all that comes: no answer, no FIN, no RST."""

    @classmethod
    async def gone(cls, port: int, path: str) -> Vanishing:
        sock = socket.create_connection(("127.0.0.1", port))
        client = cls(Wire(sock))
        await client.post(path, body(path), HEADERS)
        await client.read_head("POST")
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(drop))
        sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        return client


async def _vanished(times: dict[str, str], phase: str, *, draining: bool, within: float) -> None:
    def script(got: Received) -> Iterable[Step] | None:
        return held(got, phase, Wait()) if got.method == "POST" else None

    text = {"first_event": "200s", "stall": "200s", "total": "200s", **times}
    async with Engine(script) as engine, driven(text_of(engine.url, times=text), engine) as gateway:
        async with stepping(engine, asyncio.Event()):
            clients = [await Vanishing.gone(gateway.port, path) for path in BOTH]
            since = time.monotonic()
            try:
                if draining:
                    await gateway.stop()
                await gateway.until_quiet(within)
            finally:
                for client in clients:
                    client.rst()
            print(f"callers that vanished were given up after {time.monotonic() - since:.1f} s")
            if draining:
                await gateway.ended(within)
            told = "drained" if draining else "client_gone"
            assert await outcomes(gateway, 2) == [told, told]


async def vanished_before_an_event(stage: Stage) -> None:
    early = {"early_commit": "100ms", "heartbeat": "5s"}
    await _vanished(early, "B", draining=False, within=45)


async def vanished_in_mid_stream(stage: Stage) -> None:
    await _vanished({"heartbeat": "5s"}, "C", draining=False, within=45)


async def vanished_while_draining(stage: Stage) -> None:
    await _vanished({"drain": "500ms"}, "C", draining=True, within=5)


# F13

_HEAD = head("POST", CHAT, [*HEADERS, ("content-length", "1000")])


async def _drips(times: dict[str, str], sent: bytes, *, draining: bool, status: int) -> None:
    async with Engine() as engine, driven(text_of(engine.url, times=times), engine) as gateway:
        async with await Client.open(gateway.port) as client:
            await client.send(sent)
            assert (await request(gateway.port, "GET", "/healthz")).status == 200
            if draining:
                await gateway.stop()
            if status:
                told, headers = await client.read_head("POST")
                assert (told, headers.get("connection")) == (status, "close")
                await client.read_body()
            assert await client.read_until_close() == b""
            assert client.ended == "fin"
        await gateway.nothing_held()
        counter = gateway.worker.composition.gateway.admission.counter
        rules = gateway.worker.composition.rulebook.owned()
        assert [left for left, _ in await counter.levels(list(rules))][0] == REQUESTS, (
            "it was charged"
        )
        assert not posts(engine)


async def head_drips(stage: Stage) -> None:
    await _drips({"header": "300ms"}, _HEAD[:-3], draining=False, status=408)


async def body_drips(stage: Stage) -> None:
    await _drips({"body": "300ms"}, _HEAD + b'{"mod', draining=False, status=408)


async def drips_while_draining(stage: Stage) -> None:
    await _drips({}, _HEAD[:-3], draining=True, status=0)


# F14


def _for_ever(got: Received) -> Iterator[Step]:
    yield from begun(got, "C")
    while True:
        yield Chunk(b"data: " + b" " * 65_000 + b"\n\n")


async def _not_read(*, draining: bool) -> None:
    def script(got: Received) -> Iterable[Step] | None:
        return _for_ever(got) if got.method == "POST" else None

    times = {"client_write": "500ms"}
    async with Engine(script) as engine:
        async with driven(text_of(engine.url, times=times), engine) as gateway:
            for number, path in enumerate(BOTH[: 1 if draining else 2], 1):
                async with await Client.open(gateway.port, rcvbuf=4096) as client:
                    await client.post(path, body(path), HEADERS)
                    await gateway.until_at("C", 1)
                    if draining:
                        await gateway.stop()
                    await until(lambda n=number: len(engine.aborts) == n, 10)  # type: ignore[misc]
                    assert engine.sent < number * (24 << 20), "it was not held back"
                    assert not (await client.read_until_close()).endswith(b"0\r\n\r\n")
            if draining:
                await gateway.ended()
            assert set(await outcomes(gateway, 1 if draining else 2)) == {"client_gone"}


async def not_read(stage: Stage) -> None:
    await _not_read(draining=False)


async def not_read_while_draining(stage: Stage) -> None:
    await _not_read(draining=True)
