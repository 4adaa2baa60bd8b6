"""Whoever blocks the event loop is named, once, without a word of what it works on."""

from __future__ import annotations

import asyncio
import logging
import selectors
import threading
import time
import traceback

import pytest

from gateway import watchdog
from gateway.watchdog import Watchdog
from tests.fakes.gateway import until


def block(seconds: float, secret: str = "a prompt") -> None:
    time.sleep(seconds)  # what is to be noticed


async def test_what_blocks_the_loop_is_told_once_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []
    watching = asyncio.get_running_loop().create_task(Watchdog().run(lags.append))
    await until(lambda: bool(lags))
    with caplog.at_level(logging.WARNING):
        block(watchdog.BLOCKED + 0.6)
        await until(lambda: max(lags) > watchdog.BLOCKED)
        watching.cancel()
        await asyncio.wait([watching])
    told = [record.getMessage() for record in caplog.records]
    told = [line for line in told if "event loop" in line]
    assert len(told) == 1
    assert f"{__file__}:" in told[0]
    assert " block" in told[0]
    assert "a prompt" not in told[0]
    assert "time.sleep" not in told[0]


async def test_a_loop_that_turns_is_not_told_of_and_the_thread_ends_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []
    watching = asyncio.get_running_loop().create_task(Watchdog().run(lags.append))
    await until(lambda: len(lags) > 3)
    assert any(thread.name == "watchdog" for thread in threading.enumerate())
    watching.cancel()
    await asyncio.wait([watching])
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    assert "event loop" not in caplog.text


async def test_where_only_the_loop_was_running_no_library_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lags: list[float] = []
    loop = asyncio.get_running_loop()
    watching = loop.create_task(Watchdog().run(lags.append))
    await until(lambda: bool(lags))
    with caplog.at_level(logging.WARNING):
        loop.call_soon(time.sleep, watchdog.BLOCKED + 0.6)  # C code: no frame of its own
        await until(lambda: max(lags) > watchdog.BLOCKED)
        watching.cancel()
        await asyncio.wait([watching])
    (line,) = [r.getMessage() for r in caplog.records if "event loop" in r.getMessage()]
    assert "nothing of ours was running: the machine was busy, or the process was stopped" in line
    assert ".py" not in line


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        ("/lib/python3.12/asyncio/runners.py", False),
        ("/venv/site-packages/uvloop/__init__.py", False),
        (selectors.__file__, False),
        ("/venv/site-packages/click/core.py", True),
        ("/app/gateway/relay.py", True),
    ],
)
def test_the_innermost_frame_says_who_blocks(file: str, ours: bool) -> None:
    frames = [traceback.FrameSummary("/app/gateway/worker.py", 7, "run")]
    line = watchdog.told([*frames, traceback.FrameSummary(file, 9, "inner")])
    assert line.startswith(f"{file}:9 inner < " if ours else "nothing of ours was running")
