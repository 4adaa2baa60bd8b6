"""A model server that breaks: its caller reads whole events, then one error, never a false end."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.fakes.engine import Engine
from tests.fakes.gateway import configured, serving, until
from tests.fakes.process import EngineProcess
from tests.fakes.script import Chunk, EndChunks, Fin, Received, Rst, Sleep, Step, stream
from tests.faults.asking import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    PATHS,
    ask,
    error,
    events,
    nothing_left,
    sockets,
)

pytestmark = pytest.mark.usefixtures("no_traceback")

_AT_ONCE = 50
_ENDS: dict[str, Step] = {"rst": Rst(), "fin": Fin(), "end": EndChunks()}


@dataclass(frozen=True)
class Break:
    """A stream that ends after `offset` bytes of its body, sent in two pieces cut at `seam`."""

    path: str
    offset: int
    how: Literal["rst", "fin", "end"]
    seam: int

    @property
    def whole(self) -> list[bytes]:
        """The events that came whole."""
        kept, size = [], 0
        for event in events(self.path):
            size += len(event)
            if size > self.offset:
                break
            kept.append(event)
        return kept

    def steps(self) -> list[Step]:
        sent = b"".join(events(self.path))[: self.offset]
        pieces = [piece for piece in (sent[: self.seam], sent[self.seam :]) if piece]
        row = stream(pieces, end=False)
        return [*row[:2], Sleep(0.001), *row[2:], _ENDS[self.how]]


def _every_offset_of(path: str, index: int, seed: int) -> Iterator[Break]:
    """Each way to end at each byte of one event."""
    dice = random.Random(seed)
    begin = sum(map(len, events(path)[:index]))
    for offset in range(begin + (index == 0), begin + len(events(path)[index]) + (index > 0)):
        for how in ("rst", "fin", "end"):
            yield Break(path, offset, how, dice.randint(0, offset))


def _breaks(count: int) -> list[Break]:
    """`count` of them over both dialects, in a fixed order that looks random."""
    every = [
        *_every_offset_of(CHAT, 2, 1),
        *_every_offset_of(MESSAGES, 3, 2),
        *_every_offset_of(COMPLETIONS, 1, 3),
        *_every_offset_of(CHAT, 0, 4),
        *_every_offset_of(MESSAGES, 0, 5),
    ]
    random.Random(6).shuffle(every)
    assert len(every) >= count
    return every[:count]


@pytest.mark.parametrize(
    "count", [60, pytest.param(1_200, marks=pytest.mark.slow)], ids=["some", "all"]
)
async def test_no_end_of_an_engine_looks_like_the_end_of_an_answer(count: int) -> None:
    cases = _breaks(count)
    waiting: dict[str, Break] = {}
    before = sockets()

    def broken(request: Received) -> Iterable[Step] | None:
        if request.method != "POST":
            return None
        return waiting.pop(request.json()["user" if request.path != MESSAGES else "system"]).steps()

    async with Engine(broken) as engine, serving(configured(engine.url)) as gateway:
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int, case: Break) -> None:
            mark = f"case-{number}"
            waiting[mark] = case
            field = "system" if case.path == MESSAGES else "user"
            async with room:
                answer = await ask(gateway.port, case.path, **{field: mark})
            told = error(case.path, answer)
            if case.whole:
                assert answer.status == 200, case
                assert answer.events[:-1] == case.whole, case
            else:
                assert answer.status == 502, case
            assert told["type"] == ("api_error" if case.path == MESSAGES else "server_error")

        async with nothing_left(gateway, engine):
            async with asyncio.TaskGroup() as group:
                for number, case in enumerate(cases):
                    group.create_task(one(number, case))
        lines = await gateway.logged(count)
        assert {line["outcome"] for line in lines} == {"upstream_failed"}
        assert len({line["request_id"] for line in lines}) == count
    await until(lambda: sockets() <= before)


async def test_a_stream_that_stands_still_is_ended_by_an_error() -> None:
    timeouts = "{stall: 300ms, heartbeat: 100ms, lame_duck: 0}"
    async with EngineProcess("slow_stream") as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway):
                await _stopped(engine, gateway.port)
                (line,) = await gateway.logged(1)
                assert line["outcome"] == "timed_out"


async def _stopped(engine: EngineProcess, port: int) -> None:
    task = asyncio.create_task(ask(port, CHAT))
    await asyncio.sleep(0.3)
    engine.signal(signal.SIGSTOP)
    answer = await asyncio.wait_for(task, 5)
    assert answer.status == 200
    assert error(CHAT, answer)["code"] == "timeout"
    assert answer.events[-2] == b": ping\n\n", "it was not told that we are still here"
    engine.signal(signal.SIGCONT)


@pytest.mark.parametrize("path", PATHS)
async def test_every_pause_between_writes_gives_the_same_answer(path: str) -> None:
    whole = events(path)
    text = b"".join(whole)
    dice = random.Random(path)
    cuts = sorted({0, len(text), *(dice.randrange(len(text)) for _ in range(60))})
    steps: list[Step] = stream([], end=False)
    for at, to in zip(cuts, cuts[1:], strict=False):
        steps += [Chunk(text[at:to]), Sleep(0)]
    async with Engine([*steps, EndChunks()]) as engine, serving(configured(engine.url)) as gateway:
        answer = await ask(gateway.port, path)
        assert answer.events == whole
        assert answer.finished
        (line,) = await gateway.logged(1)
        assert line["outcome"] == "ok"
