"""Five times what the engines can do: as much is served as ever, the rest is told so at once."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import Command, configured
from tests.fakes.slots import SlotsProcess
from tests.faults.test_never_reading import resident

ROOT = Path(__file__).parents[2]

ENGINES, SLOTS, RATE, TOKENS = 4, 16, 50.0, 50
#: Requests a second that keep every slot busy.
CAPACITY = ENGINES * SLOTS * RATE / TOKENS
GROWTH = 128 << 20


@dataclass(frozen=True)
class Course:
    """Seconds of each phase, and whether its times are judged: only a quiet machine tells them.

    `settle` lies between the end of the overload and what must be normal again.
    """

    normal: float
    peak: float
    overload: float
    settle: float
    timed: bool = False

    def place(self, *, gateway: int, others: int) -> None:
        """Give the gateway a core, and another one to who fills it, where times are judged."""
        usable = sorted(os.sched_getaffinity(0))
        if self.timed and len(usable) > 1:
            os.sched_setaffinity(gateway, usable[:1])
            os.sched_setaffinity(others, usable[1:])


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def usual_p99(values: list[float]) -> float:
    """In milliseconds; the median of it over windows of 50.

    A machine with other work stops any process for tens of milliseconds now and then: what is
    slow by itself is so in most windows, that only in some.
    """
    whole = max(1, len(values) // 50)
    parts = [percentile(values[at * 50 : at * 50 + 50], 0.99) for at in range(whole)]
    return statistics.median(parts) * 1000


def goodput(told: dict[str, Any]) -> float:
    """Tokens a second, in the seconds that have both: arrivals, and streams well under way."""
    whole = told["tokens"][2 : int(told["seconds"])]
    return statistics.fmean(whole)


async def flood(port: int, *phases: tuple[float, float]) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.flood", str(port), json.dumps(phases)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 60 + sum(s for _, s in phases))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    told: list[dict[str, Any]] = json.loads(out)
    return told


async def largest(pid: int) -> int:
    """The most memory that the process has until this is cancelled."""
    most = 0
    with suppress(asyncio.CancelledError):
        while True:
            most = max(most, resident(pid))
            await asyncio.sleep(0.1)
    return most


@pytest.mark.parametrize(
    "course",
    [
        pytest.param(Course(4, 6, 12, 3), marks=pytest.mark.soak, id="short"),
        pytest.param(Course(20, 20, 60, 10, timed=True), marks=pytest.mark.soak, id="long"),
    ],
)
async def test_overload_sheds_the_excess_and_serves_as_much_as_ever(
    tmp_path: Path, course: Course
) -> None:
    file = tmp_path / "fairgate.yaml"
    async with SlotsProcess(ENGINES, SLOTS, RATE, TOKENS) as engines:
        replicas = [f"{{url: '{url}', concurrency: {SLOTS}}}" for url in engines.urls]
        file.write_text(configured(*replicas, timeouts="{lame_duck: 0, drain: 3s}"))
        async with Command("serve", "--config", str(file)) as command:
            port = await command.listening()
            course.place(gateway=command.pid, others=engines.pid)
            half, twice = CAPACITY / 2, CAPACITY * 1.2
            normal, peak = await flood(port, (half, course.normal), (twice, course.peak))
            before = resident(command.pid)
            watching = asyncio.create_task(largest(command.pid))
            over, _, after = await flood(
                port, (CAPACITY * 5, course.overload), (half, course.settle), (half, course.normal)
            )
            watching.cancel()
            grown = await watching - before
            assert b"Traceback" not in command.err
            over["refused_in"] = refused_in(command)
    _judge(course, normal, peak, over, after, grown)


def refused_in(command: Command) -> list[float]:
    """Seconds from head to answer of each refusal, by the gateway's own log."""
    whole = command.out[: command.out.rfind(b"\n")].splitlines()
    lines = [json.loads(line) for line in whole if b'"status":503' in line or b":529" in line]
    return [line["total_ms"] / 1000 for line in lines if line["status"] in (503, 529)]


def _judge(
    course: Course,
    normal: dict[str, Any],
    peak: dict[str, Any],
    over: dict[str, Any],
    after: dict[str, Any],
    grown: int,
) -> None:
    slow = usual_p99(over["refusals"])
    first = [usual_p99(told["firsts"]) for told in (normal, over, after)]
    print(
        f"goodput {goodput(over):.0f} of {goodput(peak):.0f} tokens/s; {over['statuses']}; "
        f"refusals p50 {percentile(over['refusals'], 0.5) * 1000:.1f} ms, usual p99 {slow:.1f} ms, "
        f"p99 of all {percentile(over['refusals'], 0.99) * 1000:.1f} ms, by the gateway's own "
        f"log {percentile(over['refused_in'], 0.99) * 1000:.1f} ms; "
        f"first event p99 {first[0]:.1f} ms before, {first[1]:.1f} during, {first[2]:.1f} after; "
        f"memory +{grown / (1 << 20):.1f} MiB"
    )
    for told in (normal, peak, over, after):
        assert told["odd"] == []
        assert told["without_retry_after"] == 0
    assert set(over["statuses"]) == {"200", "503", "529"}
    assert goodput(over) >= 0.9 * goodput(peak)
    assert grown <= GROWTH
    assert set(after["statuses"]) == {"200"}, "there is room for all again"
    if course.timed:
        assert slow <= 10
        assert percentile(over["refused_in"], 0.99) <= 0.01
        assert first[2] <= 1.5 * first[0] + 5
