"""Hours in small: callers come, stream, and leave in every way, and nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.client import Client, head
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.fakes.process import ROOT
from tests.fakes.slots import SlotsProcess
from tests.faults.asking import CHAT, MESSAGES, body
from tests.faults.counted import EVERY
from tests.faults.test_never_reading import descriptors, resident

pytestmark = pytest.mark.soak

#: How long to churn, in seconds, and how many callers there are at once.
SECONDS = float(os.environ.get("FAIRGATE_SOAK_SECONDS", "1440"))
CALLERS = 50
#: The part of it in which everything may still grow: 4 minutes of 24.
WARM = 1 / 6
#: Those that end a part of the visits; an engine is never given up, however busy the machine is.
TIMEOUTS = "{header: 2s, body: 2s, keep_alive: 5s, client_write: 3s, first_event: 60s, stall: 60s}"
#: What an allocator may keep for itself, in bytes.
GROWTH = 8 << 20
#: What caches may keep of a load that is over: metrics' labels, names, idle timers.
OBJECTS = 2_000


@dataclass(frozen=True)
class Sample:
    """What the gateway holds at one time."""

    memory: int
    descriptors: int
    tasks: int
    objects: int


class Counted(Command):
    """The command, which tells how many tasks and objects it has."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._counts = folder / "counts"
        program = (sys.executable, "-m", "tests.faults.counted", str(self._counts))
        super().__init__(*arguments, program=program, cwd=ROOT)

    async def _keep(self, stream: asyncio.StreamReader, kept: bytearray) -> None:
        while piece := await stream.read(1 << 16):
            if kept is not self.out:  # a log of hours is read, so that it never blocks, and dropped
                kept += piece

    async def sample(self) -> Sample:
        """As soon as it has counted anew."""
        before = self._lines()
        await until(lambda: self._lines() > before, 10 * EVERY)
        counts = json.loads(self._counts.read_text().splitlines()[-1])
        return Sample(resident(self.pid), descriptors(self.pid), **counts)

    def _lines(self) -> int:
        return self._counts.read_text().count("\n") if self._counts.exists() else 0


class Churn:
    """Callers that come and leave until `ends`. Mutable state: `left`, how many left where."""

    def __init__(self, port: int, seconds: float) -> None:
        self.left: Counter[str] = Counter()
        self._port = port
        self._chance = random.Random(1)
        self._ends = time.monotonic() + seconds

    async def run(self) -> None:
        await asyncio.gather(*(self._caller() for _ in range(CALLERS)))

    async def _caller(self) -> None:
        while time.monotonic() < self._ends:
            client = await Client.open(self._port)
            try:
                self.left[await self._visit(client)] += 1
            finally:
                if self._chance.random() < 0.5:
                    client.rst()
                else:
                    client.close()

    async def _visit(self, client: Client) -> str:
        """Ask one thing or some, and come back where it is time to leave."""
        for _ in range(self._chance.randint(1, 3)):
            where = await self._ask(client)
            if where != "whole":
                return where
        return "whole"

    async def _ask(self, client: Client) -> str:
        chance = self._chance.random
        path = CHAT if chance() < 0.5 else MESSAGES
        said = "x" * self._chance.randrange(10_000)
        sent = json.dumps(body(path, messages=[{"role": "user", "content": said}])).encode()
        asked = head("POST", path, HEADERS, sent) + sent
        if chance() < 0.1:
            await client.send(asked[: self._chance.randrange(len(asked))])
            return "asking"
        await client.send(asked)
        if chance() < 0.1:
            return "asked"
        assert (await client.read_head("POST"))[0] == 200
        if chance() < 0.4:
            return "head"
        stop = self._chance.randint(1, 40)
        async for _ in client.read_events():
            stop -= 1
            if not stop:
                return "stream"
        return "whole"


def median(samples: list[Sample], fact: str, part: float) -> float:
    """Of a twelfth of the time, from that part of it on."""
    at = int(len(samples) * part)
    some = samples[at : at + max(3, len(samples) // 12)]
    return float(statistics.median(getattr(sample, fact) for sample in some))


async def test_churn_leaves_no_socket_no_task_and_no_memory_behind(tmp_path: Path) -> None:
    samples: list[Sample] = []
    async with SlotsProcess(2, 1_000, 100, 20) as engines:
        config = tmp_path / "fairgate.yaml"
        config.write_text(configured(*engines.urls, timeouts=TIMEOUTS))
        async with Counted(tmp_path, "serve", "--config", str(config)) as gateway:
            port = await gateway.listening()
            quiet = await gateway.sample()
            churn = Churn(port, SECONDS)
            running = asyncio.create_task(churn.run())
            while not running.done():
                samples.append(await gateway.sample())
            await running
            await until(lambda: descriptors(gateway.pid) <= quiet.descriptors + 2, 30)
            await gateway.sample()  # what went since the last one is counted now
            after = await gateway.sample()
            assert b"Traceback" not in gateway.err
    print(f"{churn.left.total()} visits in {SECONDS:.0f} s, left at {dict(churn.left)}")
    for fact in ("memory", "descriptors", "tasks", "objects"):
        seen = [
            getattr(sample, fact)
            for sample in (quiet, *samples[:: max(1, len(samples) // 8)], after)
        ]
        print(f"{fact}: {' '.join(map(str, seen))}")
    assert set(churn.left) == {"asking", "asked", "head", "stream", "whole"}
    assert median(samples, "memory", 11 / 12) - median(samples, "memory", WARM) <= GROWTH
    for fact in ("descriptors", "tasks"):
        # As many as there are callers, more or less: it swings, and does not grow.
        grown = median(samples, fact, 11 / 12) - median(samples, fact, WARM)
        assert grown <= CALLERS / 4, fact
    assert after.tasks <= quiet.tasks + 3, "more than a probe under way"
    assert after.objects - quiet.objects <= OBJECTS
