"""Hours in small: callers come, stream, and leave in every way, and nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from pathlib import Path

import pytest

from tests.fakes.client import Client, head
from tests.fakes.gateway import HEADERS, TIMEOUTS, Command, configured
from tests.fakes.process import EngineProcess

pytestmark = pytest.mark.soak

#: How long to churn, in seconds, and how many callers there are at once.
SECONDS = float(os.environ.get("FAIRGATE_SOAK_SECONDS", "300"))
CALLERS = 50
#: What an allocator may keep for itself, in MiB.
GROWTH = 8.0


def resident(pid: int) -> float:
    """MiB of memory in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def visit(port: int, chance: random.Random) -> None:
    """One caller: reads a few events of a stream that never ends, and leaves by FIN or RST."""
    body = json.dumps(
        {
            "model": "tiny",
            "stream": True,
            "messages": [{"role": "user", "content": "x" * chance.randrange(10_000)}],
        }
    ).encode()
    client = await Client.open(port)
    try:
        await client.send(head("POST", "/v1/chat/completions", HEADERS, body) + body)
        if chance.random() < 0.9:
            await client.read_head()
            await asyncio.sleep(chance.random() * 0.3)
    finally:
        if chance.random() < 0.5:
            client.rst()
        else:
            client.close()


async def test_churn_leaves_no_socket_and_no_memory_behind(tmp_path: Path) -> None:
    chance = random.Random(1)
    engine = EngineProcess("slow_stream")
    async with engine:
        config = tmp_path / "fairgate.yaml"
        config.write_text(configured(engine.url, timeouts=TIMEOUTS))
        async with Command("serve", "--config", str(config)) as gateway:
            port = await gateway.listening()
            quiet = descriptors(gateway.pid)
            visits = 0
            samples: list[float] = []
            ends = time.monotonic() + SECONDS

            async def caller() -> None:
                nonlocal visits
                while time.monotonic() < ends:
                    await visit(port, chance)
                    visits += 1

            async def sample() -> None:
                while time.monotonic() < ends:
                    await asyncio.sleep(SECONDS / 60)
                    samples.append(resident(gateway.pid))

            await asyncio.gather(sample(), *(caller() for _ in range(CALLERS)))
            deadline = time.monotonic() + 10
            while descriptors(gateway.pid) > quiet and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            early = statistics.median(samples[5:15])
            late = statistics.median(samples[-10:])
            print(
                f"{visits} visits in {SECONDS:.0f} s; memory {early:.1f} -> {late:.1f} MiB "
                f"({' '.join(f'{each:.1f}' for each in samples[::6])}); "
                f"descriptors {quiet} -> {descriptors(gateway.pid)}"
            )
            assert visits > SECONDS
            assert descriptors(gateway.pid) <= quiet
            assert late - early <= GROWTH
