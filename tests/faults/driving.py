"""A gateway in this process that is told to end while callers are there, and what it owes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.base import Replica
from backends.turn import Turn
from gateway import config as configuration
from gateway.limits.rulebook import Rulebook
from gateway.relay import Relay
from gateway.terms import Principal
from gateway.worker import Worker
from tests.fakes.engine import Engine
from tests.fakes.gateway import SECRET, Serving, configured, until

#: Long ones: a case gives those that it is about, and no other may be at fault.
TIMES = {
    "header": "20s",
    "body": "20s",
    "keep_alive": "20s",
    "connect": "5s",
    "first_event": "30s",
    "early_commit": "20s",
    "heartbeat": "10s",
    "stall": "30s",
    "client_write": "20s",
    "total": "30s",
    "lame_duck": "0",
    "drain": "30s",
}
_SLOTS, REQUESTS = 2_000, 100_000


def text_of(*urls: str, times: Mapping[str, str] | None = None, model: str = "") -> str:
    """A configuration whose gateway counts slots; `times` come on top of `TIMES`."""
    timeouts = ", ".join(f"{name}: {value}" for name, value in {**TIMES, **(times or {})}.items())
    return configured(
        *urls,
        model=model,
        timeouts=f"{{{timeouts}}}",
        more=f"limits: {{requests_per_month: {REQUESTS}, concurrency: {_SLOTS}}}\n",
    )


@dataclass
class Driven(Serving):
    """Mutable state: `life`, the task the gateway lives in, and `ending`, set to end it."""

    ending: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None

    def replica(self, url: str) -> Replica:
        pools = self.worker.composition.routes.pools()
        return next(r for pool in pools for r in pool.replicas if r.url == url)

    def replicas(self) -> list[Replica]:
        return [r for pool in self.worker.composition.routes.pools() for r in pool.replicas]

    def relays(self) -> list[Relay]:
        turns = [turn for replica in self.replicas() for turn in replica.flights.values()]
        sinks = [turn._sink for turn in turns if isinstance(turn, Turn)]
        return [sink for sink in sinks if isinstance(sink, Relay)]

    async def until_at(self, phase: str, count: int) -> None:
        """Until the answers of so many requests have come to a phase of tests/faults/matrix.py."""

        def there(relay: Relay) -> bool:
            if phase == "A":
                return relay.reached
            if phase == "B" or not relay._stream:
                return relay._status == 200 and (phase == "B" or relay._size > 0)
            return relay.promised

        await until(lambda: sum(map(there, self.relays())) == count, 10)

    async def stop(self) -> None:
        """As SIGTERM does; back when no new callers are taken."""
        self.worker.stop()
        self.ending.set()
        await until(lambda: not self.worker.ready)

    async def ended(self, timeout: float = 10) -> None:
        self.ending.set()
        assert self.life is not None
        await asyncio.wait_for(asyncio.shield(self.life), timeout)

    async def nothing_held(self, *engines: Engine) -> None:
        """No request, slot or body is held, and each engine saw the end of what it was asked."""
        await self.until_quiet()
        gateway = self.worker.composition.gateway
        for replica in self.replicas():
            assert (replica.in_flight, replica.outstanding) == (0, 0)
            assert not replica.flights
        assert gateway.bodies.held == 0
        rules = Rulebook(self.worker.config).of(Principal("ann", "search"), "tiny")
        left = await gateway.admission.counter.levels(rules)
        assert [n for n, _ in left][-1] == _SLOTS
        for engine in engines:
            counted = engine.vllm.metrics
            await until(lambda m=counted: not m["vllm:num_requests_running"])  # type: ignore[misc]
        transport = self.worker.composition.transport
        if self.life is not None and not self.life.done():
            idle = sum(map(len, transport._idle.values()))
            probing = len(transport._connecting)
            assert transport.open_connections <= idle + probing + len(self.replicas())


@contextlib.asynccontextmanager
async def driven(text: str, *engines: Engine) -> AsyncIterator[Driven]:
    """Run a gateway; afterwards every connection, task and descriptor of it must be gone."""
    tasks, descriptors = len(asyncio.all_tasks()), open_descriptors()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "wb") as file:
            worker = Worker(configuration.load("test.yaml", text, {}), SECRET, file.fileno())
            listening: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
            gateway = Driven(worker, 0, 0, log)
            gateway.life = asyncio.create_task(_live(worker, listening, gateway.ending))
            try:
                begun: set[asyncio.Future[Any]] = {gateway.life, listening}
                await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
                if gateway.life.done():
                    gateway.life.result()
                (address,) = listening.result()
                assert worker.admin_address is not None
                gateway.port = int(address.rpartition(":")[2])
                gateway.admin_port = int(worker.admin_address.rpartition(":")[2])
                yield gateway
                await gateway.nothing_held(*engines)
            finally:
                worker.hurry()
                await gateway.ended()
    assert not worker.composition.transport.open_connections
    for engine in engines:
        await engine.until_closed()
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    with contextlib.suppress(TimeoutError):
        await until(lambda: not open_descriptors() - descriptors)
    assert not open_descriptors() - descriptors


async def _live(
    worker: Worker, listening: asyncio.Future[list[str]], ending: asyncio.Event
) -> None:
    async with worker.serving() as addresses:
        listening.set_result(addresses)
        await ending.wait()


@contextlib.asynccontextmanager
async def stepping(engine: Engine, until_set: asyncio.Event) -> AsyncIterator[None]:
    """Have its counter of steps grow, so that nobody takes it for deadlocked before it is."""

    async def step() -> None:
        while not until_set.is_set():
            engine.vllm.metrics["vllm:iteration_tokens_total_count"] += 1
            await asyncio.sleep(0.02)

    stepping = asyncio.create_task(step())
    try:
        yield
    finally:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)


def open_descriptors() -> set[str]:
    """What the descriptors of this process stand for, the listing's own left out."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


@contextlib.contextmanager
def no_fault_told(caplog: pytest.LogCaptureFixture) -> Any:
    """No exception was left to the event loop, or told as an error; an engine's death may be."""
    caught: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    yield
    assert not caught
    records = caplog.get_records("call")
    told = [r.getMessage() for r in records if r.levelno >= logging.ERROR]
    assert not [line for line in told if "was in flight when" not in line]
    assert not [r for r in records if r.exc_info or "Traceback" in r.getMessage()]
