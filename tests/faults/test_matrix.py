"""Every cell of the fault matrix is played, and none of its cells is empty."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import Engine, begun
from tests.fakes.process import EngineProcess
from tests.fakes.script import Hang, Received, Step, Wait
from tests.faults.asking import CHAT, MESSAGES, Heard, ask, error, events
from tests.faults.driving import Driven, driven, no_fault_told, stepping, text_of
from tests.faults.matrix import (
    MATRIX,
    PATIENT,
    PHASES,
    Case,
    NotApplicable,
    Staged,
    Strike,
    Told,
)
from tests.faults.stages import Stage

ROWS = (*range(1, 15), 18, 19, 20, 25, 26)
#: How many whole events a stream's caller has read when the fault comes in phase C.
READ = 3
#: What the sockets of one connection may hold, at the kernel's largest.
BUFFERS = 16 << 20


def cases() -> Iterator[Any]:
    for row, cells in MATRIX.items():
        for phase, cell in cells.items():
            for case in () if isinstance(cell, NotApplicable) else cell:
                name = "-".join(filter(None, (row.replace(" ", "_"), phase, case.name)))
                if isinstance(case, Staged):
                    marks = [getattr(pytest.mark, mark) for mark in case.marks]
                    yield pytest.param(case, False, id=name, marks=marks)
                    continue
                slow = isinstance(case.fault, Strike) or bool(case.times)
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(case, False, id=name, marks=marks)
                yield pytest.param(case, True, id=f"{name}-alone", marks=[pytest.mark.slow])


def test_no_cell_is_empty() -> None:
    assert tuple(int(row.split()[0].removeprefix("F")) for row in MATRIX) == ROWS
    for row, cells in MATRIX.items():
        assert tuple(cells) == PHASES, row
        for phase, cell in cells.items():
            assert cell, f"{row}, {phase}"
            assert not isinstance(cell, NotApplicable) or len(cell.reason) > 20
            for case in () if isinstance(cell, NotApplicable) else cell:
                assert isinstance(case, Staged) or case.draining is (phase == "D")


@pytest.fixture
async def no_fault(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    with no_fault_told(caplog):
        yield


@pytest.mark.usefixtures("no_fault")
@pytest.mark.parametrize(("case", "alone"), list(cases()))
async def test_a_fault_is_hidden_or_told_honestly_and_leaves_nothing(
    case: Case | Staged,
    alone: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(90):
        if isinstance(case, Staged):
            await case.play(Stage(tmp_path, monkeypatch, caplog))
        else:
            shorten(monkeypatch, case)
            await play(case, alone)


async def play(case: Case, alone: bool) -> None:
    async with struck(case) as engine, Engine() as other:
        others = () if alone else (other,)
        seen = (engine,) if isinstance(engine, Engine) else ()
        text = text_of(engine.url, *(each.url for each in others), times=case.times)
        async with driven(text, *seen, other) as gateway:
            await Play(case, alone, gateway, engine, other).run()


def shorten(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """What no timeout of the configuration is about."""
    monkeypatch.setattr("backends.pool._ALIVE", 0.3)
    monkeypatch.setattr("backends.health._FIRST", 60.0)  # not over before it is looked at
    if case.fault is Strike.DEADLOCK:
        monkeypatch.setattr("backends.progress.PATIENCE", 0.4)
        monkeypatch.setattr("backends.probes.EVERY", 0.05)


class Struck(Engine):
    """An engine that answers up to a phase, and does what a case says once `wait` is over."""

    def __init__(self, case: Case) -> None:
        super().__init__(self._script)
        self.case = case
        self.wait = Wait()

    def _script(self, request: Received) -> Iterable[Step] | None:
        return self._steps_of(request) if request.method == "POST" else None

    def _steps_of(self, request: Received) -> Iterator[Step]:
        yield from begun(request, self.case.until)
        yield self.wait
        yield from (Hang(),) if isinstance(self.case.fault, Strike) else self.case.fault(request)


@contextlib.asynccontextmanager
async def struck(case: Case) -> AsyncIterator[Struck | EngineProcess]:
    if case.fault in (Strike.KILL, Strike.STOP):
        async with EngineProcess(f"until:{case.until}") as process:
            yield process
    else:
        async with Struck(case) as engine, stepping(engine, engine.wait.event):
            yield engine


class Play:
    """One case being played: callers of both dialects whose answers all come from one engine."""

    def __init__(
        self,
        case: Case,
        alone: bool,
        gateway: Driven,
        engine: Struck | EngineProcess,
        other: Engine,
    ) -> None:
        self.case = case
        self.alone = alone
        self.gateway = gateway
        self.engine = engine
        self.other = other

    async def run(self) -> None:
        case, gateway = self.case, self.gateway
        fates = {(path, True): case.stream for path in (CHAT, MESSAGES)}
        if case.plain is not None:
            fates[CHAT, False] = case.plain
        if not self.alone:
            gateway.replica(self.other.url).drained = True  # all go to the one that will fail
        asked = {
            (path, streamed): asyncio.create_task(ask(gateway.port, path, stream=streamed))
            for path, streamed in fates
        }
        await gateway.until_at(case.until, len(asked))
        if case.draining:
            await gateway.stop()
        if not self.alone:
            gateway.replica(self.other.url).drained = False
        await self.strike()
        try:
            answers = dict(zip(fates, await asyncio.gather(*asked.values()), strict=True))
        finally:
            for task in asked.values():
                task.cancel()
        seen = [self.engine] if isinstance(self.engine, Engine) else []
        await gateway.nothing_held(*seen, self.other)
        assert all(each.sent < len(asked) * BUFFERS for each in seen), "too much was taken in"
        if case.standing:
            self.stands(case.standing)
        if case.times is PATIENT and not self.alone:
            reasons = {reason for _, reason in gateway.worker.composition.metrics.retries}
            assert reasons == {"stuck"}, "no probe moved it"
        if case.draining:
            await gateway.ended()
        lines = {line["request_id"]: line for line in await gateway.logged(len(asked))}
        for (path, streamed), fate in fates.items():
            answer = answers[path, streamed]
            told = fate.alone if self.alone else fate.two
            self.judge(told, path, answer, lines.pop(answer.request_id))
        assert not lines
        assert len(gateway.lines()) == len(asked)

    async def strike(self) -> None:
        match self.engine, self.case.fault:
            case EngineProcess() as process, Strike.KILL:
                await process.kill()
            case EngineProcess() as process, _:
                process.signal(signal.SIGSTOP)
            case Struck() as engine, _:
                engine.wait.event.set()

    def stands(self, standing: str) -> None:
        replica = self.gateway.replica(self.engine.url)
        now = asyncio.get_running_loop().time()
        assert replica.health.standing(now).value == standing
        assert replica.choosable(now) is (standing == "up")

    def judge(self, told: Told, path: str, answer: Heard, line: dict[str, Any]) -> None:
        found, expected = (line["outcome"], line["attempts"]), (told.outcome, told.attempts)
        assert found == expected, (path, answer.plain or answer.events)
        anthropic = path == MESSAGES
        status = told.anthropic_status if anthropic else told.status
        assert answer.status == line["status"] == (200 if told.inside else status)
        if told.outcome == "ok":
            self.is_whole(path, answer)
            return
        said = error(path, answer)
        assert answer.status == 400 or "secret" not in said["message"]
        assert said["type"] == (told.anthropic_type if anthropic else told.type)
        assert anthropic or said["code"] == told.code
        if told.inside:
            assert answer.without_heartbeats[:-1] == self.whole(path, answer)[:READ]
        assert (answer.headers.get("retry-after") is not None) is (
            told.retry_after and not told.inside
        )

    def is_whole(self, path: str, answer: Heard) -> None:
        if answer.plain is None:
            assert answer.without_heartbeats == self.whole(path, answer)
        else:
            assert answer.plain["choices"][0]["finish_reason"]

    def whole(self, path: str, answer: Heard) -> list[bytes]:
        """The engine's events, as it tells them to this caller."""
        named = b"chatcmpl-" + answer.request_id.encode()
        # The fingerprint is in the event of the usage, which the gateway asked for.
        told = (re.sub(rb',"system_fingerprint":"[^"]+"', b"", event) for event in events(path))
        return [re.sub(rb"chatcmpl-\w+", named, event) for event in told]
