"""A Redis that is frozen under load costs requests next to nothing, and limits go on to hold.

How long a request waited for its limits is told apart from how long this machine made it wait: it
is measured by a clock that stands still while the event loop is kept from running. Whoever awaits
Redis lets the loop go on, and the clock with it; whoever is preempted stops both.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.limits.base import Claim, Decision
from gateway.limits.courier import Courier
from tests.fakes.gateway import serving
from tests.fakes.process import EngineProcess
from tests.fakes.redis import RedisServer
from tests.faults.outage import BACK, back, courier_of, ruled, told

pytestmark = pytest.mark.usefixtures("no_traceback")

ROOT = Path(__file__).parents[2]
RATE = 200
#: Requests that may pass in a second, and at once.
PER_SECOND, BURST = 100, 200
KEY = f"{{requests_per_minute: {{limit: {60 * PER_SECOND}, burst: {BURST}}}}}"
#: How often the clock is moved on, and the most it moves at once, in seconds.
TICK, LEAP = 0.001, 0.002
#: Seconds before and after the freeze.
QUIET, AFTER = 3.0, 3.0


class LoopClock:
    """Mutable state: `now`, for how many seconds the loop was free to run."""

    def __init__(self) -> None:
        self.now = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            self.now += min(loop.time() - last, LEAP)
            last = loop.time()


@dataclass
class Waited:
    """One decision: when it was asked for, and for how long; by the loop's clock, in seconds."""

    at: float
    clock: float
    granted: bool
    degraded: bool


def measured(courier: Courier, clock: LoopClock) -> list[Waited]:
    """Note how long each request waits for its decision from now on."""
    waits: list[Waited] = []
    decide = courier.decide

    async def noted(claim: Claim) -> Decision:
        at = clock.now
        decision = await decide(claim)
        granted = decision.refused is None
        waits.append(Waited(at, clock.now - at, granted, courier.degraded))
        return decision

    courier.decide = noted  # type: ignore[method-assign]
    return waits


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(20, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.soak)],
)
async def test_no_request_waits_for_a_frozen_redis_and_limits_go_on_to_hold(
    seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = LoopClock()
    async with RedisServer() as server, EngineProcess() as engine:
        async with serving(ruled(engine.url, server.url, "local", KEY)) as gateway:
            courier = courier_of(gateway)
            ticking = asyncio.create_task(clock.run())
            waits = measured(courier, clock)
            generator = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.steady", str(gateway.port)),
                *(str(RATE), str(QUIET + seconds + AFTER)),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
            )
            while len(waits) < QUIET * RATE:
                await asyncio.sleep(0.01)
            quiet = list(waits)
            server.freeze()
            frozen_at, began = clock.now, time.monotonic()
            await asyncio.sleep(seconds)
            server.thaw()
            lasted = time.monotonic() - began
            took = await back(gateway, BACK)
            out, _ = await generator.communicate()
            ticking.cancel()
            lines = gateway.lines()
    answers = [json.loads(line) for line in out.splitlines()]
    outage = [w for w in waits if w.at >= frozen_at and w.degraded]
    later = [w for w in outage if w.at >= frozen_at + 0.2]
    granted = sum(w.granted for w in outage)
    report(quiet, outage, later, answers, lines, granted / (BURST + PER_SECOND * lasted), took)

    assert len(answers) == (QUIET + seconds + AFTER) * RATE
    assert {answer["status"] for answer in answers} == {200, 429}
    assert len(later) > 0.8 * RATE * seconds
    assert max(w.clock for w in outage) <= 0.060
    assert max(w.clock for w in later) <= 0.001
    assert granted <= 1.5 * (BURST + PER_SECOND * lasted)
    assert granted >= 0.9 * PER_SECOND * lasted, "limits refuse more than they should"
    assert told(caplog) == ["limits: Redis is away", "limits: Redis is back"]
    assert not waits[-1].degraded


def report(
    quiet: list[Waited],
    outage: list[Waited],
    later: list[Waited],
    answers: list[dict[str, Any]],
    lines: list[dict[str, Any]],
    share: float,
    took: float,
) -> None:
    def spread(of: Iterable[float]) -> str:
        ms = sorted(of)
        return f"p50 {ms[len(ms) // 2]:.2f} p99 {ms[len(ms) * 99 // 100]:.2f} max {ms[-1]:.2f} ms"

    def most(of: list[Waited]) -> str:
        return spread(w.clock * 1000 for w in of)

    print(
        f"\nwaited for limits, quiet: {most(quiet)}; from the freeze on: {most(outage)};"
        f" from 200 ms after it on: {most(later)}"
        f"\nadmit_ms of the log: {spread(line['admit_ms'] for line in lines)}"
        f"\nseen by the callers: {spread(answer['took'] * 1000 for answer in answers)}"
        f"\n{len(outage)} decided in the outage, granted {share:.2f} x the limit; back {took:.2f} s"
    )
