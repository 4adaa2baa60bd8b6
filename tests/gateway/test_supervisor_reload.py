"""Another configuration for several workers: told to each, whoever cannot take it is replaced."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import config as configuration
from gateway import supervisor as supervising
from gateway.channel import ChannelEnded, NotAnswered
from gateway.hired import Hired, hire
from gateway.settings import Config
from gateway.start import unpacked
from gateway.supervisor import Supervisor
from tests.fakes.gateway import SECRET, configured, until
from tests.gateway.test_supervisor import living, written

OTHER = configured("http://gpu2:8000", more="secret: sixteen-letters-\nworkers: 2\n")


class Told:
    """A worker that does one thing when asked to reload. Mutable state: what it was told."""

    def __init__(self, answer: Exception | None, *, ready: bool = True) -> None:
        self.pid = 1
        self.channel = self
        self.ready = asyncio.Event()
        if ready:
            self.ready.set()
        self.asked: list[tuple[str, Config, float]] = []
        self.told: list[str] = []
        self._answer = answer

    async def ask(self, name: str, payload: Any, *, timeout: float) -> None:
        self.asked.append((name, unpacked(payload), timeout))
        if self._answer is not None:
            raise self._answer

    def tell(self, name: str, payload: Any = None) -> None:
        self.told.append(name)

    def kill(self) -> None:
        self.told.append("kill")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, []),
        (ChannelEnded("reload"), []),
        (NotAnswered("reload: BadFile"), ["stop"]),
        (TimeoutError(), ["kill"]),
    ],
    ids=["takes it", "died", "cannot", "hangs"],
)
async def test_who_cannot_take_it_ends_and_the_others_stay(
    answer: Exception | None, told: list[str]
) -> None:
    supervisor = Supervisor(configuration.load("t", written("http://gpu1:8000"), {}), SECRET)
    one, other, starting = Told(answer), Told(None), Told(None, ready=False)
    supervisor.places = [
        cast(supervising.Place, SimpleNamespace(hired=cast(Hired, each)))
        for each in (one, other, starting)
    ]
    config = configuration.load("t", OTHER, {})
    await supervisor.reload(config)
    assert supervisor.config is config
    assert one.told == told
    assert other.told == starting.told == []
    assert [each.asked[0][:2] for each in (one, other, starting)] == [("reload", config)] * 3
    assert starting.asked[0][2] > other.asked[0][2], "one that starts has other things to do first"


async def test_one_that_hangs_is_replaced_by_one_with_the_new_configuration(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervising, "_RELOADED_WITHIN", 1.0)
    async with living() as life:
        hangs, other = life.pids
        os.kill(hangs, signal.SIGSTOP)
        with caplog.at_level(logging.ERROR, "fairgate"):
            await life.supervisor.reload(configuration.load("t", OTHER, {}))
            await until(lambda: life.whole and hangs not in life.pids, 20)
        assert f"worker {hangs} did not take the new configuration in time" in caplog.text
        assert other in life.pids
        for told in await life.supervisor.ask("status", None, 5):
            (replica,) = told["pools"]["tiny"]["replicas"]
            assert replica["url"] == "http://gpu2:8000"


async def test_one_that_is_being_started_meanwhile_has_the_new_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, begun, go = hire, asyncio.Event(), asyncio.Event()

    async def slowly(*given: Any) -> Hired:
        begun.set()
        hired = await real(*given)
        await go.wait()
        return hired

    async with living() as life:
        monkeypatch.setattr(supervising, "hire", slowly)
        os.kill(life.pids[0], signal.SIGKILL)
        await asyncio.wait_for(begun.wait(), 10)
        await life.supervisor.reload(configuration.load("t", OTHER, {}))
        go.set()
        await until(lambda: life.whole, 20)
        for told in await life.supervisor.ask("status", None, 5):
            (replica,) = told["pools"]["tiny"]["replicas"]
            assert replica["url"] == "http://gpu2:8000"


async def test_while_it_starts_and_ends_nothing_is_reloaded() -> None:
    supervisor = Supervisor(configuration.load("t", written("http://gpu1:8000"), {}), SECRET)
    assert supervisor._why_no_reload() == "the gateway is starting; it is read again when it runs"
    supervisor.stop()
    assert supervisor._why_no_reload() == "the gateway is stopping"
