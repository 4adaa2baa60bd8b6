"""A worker that is killed leaves no slot taken for longer than a lease, and no other's free."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.limits.base import LEASE, SECOND
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import until
from tests.fakes.redis import RedisServer
from tests.fakes.script import Chunk, EndChunks, Received, Step, Wait, stream
from tests.faults.asking import CHAT, body, events
from tests.faults.sharing import PREFIX, gateway, headers, limited, redis_time

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_traceback")]

#: One of two workers has at least half of them.
LIMIT = 100
KEY = PREFIX + "team:held:concurrency"
EVENTS = events(CHAT)


@dataclass(eq=False)
class Stream:
    """One caller's stream that stands still after its first event. Mutable state: what it read."""

    client: Client
    id: str
    read: list[bytes] = field(default_factory=list)
    broken: bool = False

    async def rest(self) -> None:
        try:
            events = [event async for event in self.client.read_events()]
            self.read = [event for event in events if not event.startswith(b": ")]  # a heartbeat
        except (EOFError, ConnectionResetError):
            self.broken = True


class Callers:
    """Mutable state: their `streams`, and the tasks that read them."""

    def __init__(self, port: int, admin: int) -> None:
        self.streams: list[Stream] = []
        self.readings: list[asyncio.Task[None]] = []
        self._port = port
        self._admin = admin

    async def come(self) -> int:
        """One more; the status it was given. It stays where that is 200."""
        client = await Client.open(self._port, patience=60)
        await client.post(CHAT, body(CHAT), headers("held"))
        status, fields = await client.read_head("POST")
        if status != 200:
            client.close()
            return status
        opened = Stream(client, fields.get("x-request-id") or "")
        self.streams.append(opened)
        self.readings.append(asyncio.create_task(opened.rest()))
        return status

    async def workers(self) -> dict[int, dict[str, Any]]:
        told = (await request(self._admin, "GET", "/status")).json()
        return {worker["pid"]: worker for worker in told["workers"]}

    @property
    def broken(self) -> set[str]:
        return {stream.id for stream in self.streams if stream.broken}


async def leases(server: RedisServer) -> dict[str, int]:
    """When the leases end that are not over, by request; microseconds of Redis' clock."""
    now = await redis_time(server)
    found = await server.command("ZRANGEBYSCORE", KEY, f"({now}", "+inf", "WITHSCORES")
    return dict(zip(found[::2], map(int, found[1::2]), strict=True))


async def test_the_slots_of_a_killed_worker_are_free_within_thirty_seconds(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    wait = Wait()

    def script(got: Received) -> list[Step] | None:
        if got.method != "POST":
            return None
        return [*stream(EVENTS[:1], end=False), wait, *map(Chunk, EVENTS[1:]), EndChunks()]

    async with Engine(script) as engine:
        text = limited(engine.url, redis_server.url, {"held": f"{{concurrency: {LIMIT}}}"})
        async with gateway(tmp_path, text, 2) as (_, port, admin):
            callers = Callers(port, admin)
            for _ in range(LIMIT):
                assert await callers.come() == 200
            before = await callers.workers()
            victim = max(before, key=lambda pid: before[pid]["live_requests"])
            held = before[victim]["live_requests"]
            assert LIMIT // 2 <= held < LIMIT
            os.kill(victim, signal.SIGKILL)
            killed, at = time.monotonic(), await redis_time(redis_server)
            await until(lambda: len(callers.broken) == held)
            lost = callers.broken
            others = {stream.id for stream in callers.streams} - lost
            ends = [end - at for id_, end in (await leases(redis_server)).items() if id_ in lost]
            assert len(ends) == held

            admitted = 0
            while admitted < held:
                now = await leases(redis_server)
                assert others <= set(now), "a lease of the other worker is gone"
                assert len(now) <= LIMIT
                status = await callers.come()
                if status == 200:
                    admitted += 1
                    assert (await redis_time(redis_server)) - at > min(ends), "one too many"
                else:
                    took = time.monotonic() - killed
                    assert status == 429
                    assert took < LEASE, f"{held - admitted} slots are still taken"
                    await asyncio.sleep(0.1)
            assert await callers.come() == 429
            first, last = min(ends) / SECOND, max(ends) / SECOND
            print(f"{held} slots of a killed worker, free after {first:.2f} to {last:.2f} s")
            assert LEASE * 2 / 3 - 2 < first <= last <= LEASE

            assert set(await leases(redis_server)) == {s.id for s in callers.streams} - lost
            after = await callers.workers()
            (new,) = set(after) - set(before)
            assert after[new]["ready"]
            assert after[new]["live_requests"] > 0, "the new worker serves nobody"
            wait.event.set()
            await asyncio.wait_for(asyncio.gather(*callers.readings), 10)
            assert callers.broken == lost
            assert all(s.read == EVENTS for s in callers.streams if s.id not in lost)
            async with asyncio.timeout(5):
                while await leases(redis_server):
                    await asyncio.sleep(0.01)
            for each in callers.streams:
                each.client.close()
