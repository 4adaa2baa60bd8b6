"""A gateway with rules of key, team and model in a real Redis, and the ways Redis can be away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError

from gateway.limits.courier import Courier, Mode
from tests.fakes.client import request
from tests.fakes.gateway import Serving, configured
from tests.fakes.redis import RedisServer
from tests.fakes.redis import until as until_told
from tests.faults.asking import CHAT, COMPLETIONS, MESSAGES, Heard, ask
from tests.faults.sharing import counted, reserved, slots

#: No request has longer than this for its answer, in seconds, whatever Redis does.
PATIENCE = 5.0
#: Within so many seconds of its return Redis decides again.
BACK = 2.0
REQUESTS, TOKENS = "key:ann:requests_per_day", "team:search:tokens_per_day"
TEAM_SLOTS, MODEL_SLOTS = "team:search:concurrency", "model:tiny:concurrency"
LIMITS = "{requests_per_day: 1000000, requests_per_minute: 1000000}"


def ruled(
    engine: str, redis: str, mode: Mode = "local", key: str = LIMITS, *, slots: bool = True
) -> str:
    """A configuration of one model. Its windows are wide, so that what they count can be read."""
    text = configured(
        engine,
        more=f"secret: sixteen-letters-\nredis: {redis!r}\nwhen_redis_is_down: {mode}\n",
        model="limits: {concurrency: 100}" if slots else "",
        timeouts="{stall: 60s, first_event: 60s, lame_duck: 0, drain: 3s}",
    )
    team = "tokens_per_day: 1000000000, tokens_per_minute: 1000000000"
    team += ", concurrency: 100" if slots else ""
    text = text.replace("}]\nteams: {search: {}}", f", limits: {key}}}]\nteams: {{search: {{}}}}")
    return text.replace("teams: {search: {}}", f"teams: {{search: {{limits: {{{team}}}}}}}")


def courier_of(gateway: Serving) -> Courier:
    courier = gateway.worker.composition.courier
    assert courier is not None
    return courier


# Ways to be away


@contextlib.asynccontextmanager
async def killed(server: RedisServer) -> AsyncIterator[None]:
    """SIGKILL; it comes back with nothing in it."""
    await server.kill()
    yield
    await server.start()


@contextlib.asynccontextmanager
async def frozen(server: RedisServer) -> AsyncIterator[None]:
    """SIGSTOP; it comes back and does what it was sent meanwhile."""
    server.freeze()
    yield
    server.thaw()


@contextlib.asynccontextmanager
async def read_only(server: RedisServer) -> AsyncIterator[None]:
    """It has become a replica, of nobody."""
    await server.command("REPLICAOF", "127.0.0.1", 1)
    yield
    await server.command("REPLICAOF", "NO", "ONE")


@contextlib.asynccontextmanager
async def full(server: RedisServer) -> AsyncIterator[None]:
    """Out of memory, with nothing it might evict."""
    await server.command("CONFIG", "SET", "maxmemory", "1")
    yield
    await server.command("CONFIG", "SET", "maxmemory", "0")


@contextlib.asynccontextmanager
async def loading(server: RedisServer) -> AsyncIterator[None]:
    """It reads its data from disk, for two seconds: a few long pauses, as short ones take a busy
    machine many times their length.
    """
    await server.command("CONFIG", "SET", "key-load-delay", "10000")
    await server.command("DEBUG", "POPULATE", 200, "{other}", 2000)
    reading = asyncio.create_task(server.command("DEBUG", "RELOAD", timeout=60))

    async def begun() -> bool:
        try:
            return not await server.command("PING")
        except BusyLoadingError:
            return True

    await until_told(begun, PATIENCE)
    yield
    assert not reading.done(), "it was ready before it was asked"
    await reading
    await server.command("CONFIG", "SET", "key-load-delay", "0")


#: What `loading` needs of a server.
LOADS = ("enable-debug-command yes", "loading-process-events-interval-bytes 1024")
Outage = Callable[[RedisServer], AbstractAsyncContextManager[None]]


# What is asked and seen


async def each_dialect(gateway: Serving, times: int = 1) -> list[tuple[str, Heard]]:
    """A request of every kind at once, none of which may hang: its path and its answer."""
    paths = [CHAT, MESSAGES, COMPLETIONS] * times
    async with asyncio.timeout(PATIENCE):
        heard = await asyncio.gather(*(ask(gateway.port, path, stream=False) for path in paths))
    return list(zip(paths, heard, strict=True))


def check(answers: Iterable[tuple[str, Heard]], mode: Mode | None) -> None:
    """All of them are what `mode` says; None: Redis is there."""
    for path, answer in answers:
        degraded = answer.headers.get("x-fairgate-limits")
        assert degraded == (None if mode is None else "degraded"), (path, answer)
        if mode == "closed":
            assert answer.status == (529 if path == MESSAGES else 503)
            assert answer.headers.get("retry-after") == "1"
        else:
            assert answer.status == 200, answer


async def given_up(gateway: Serving, mode: Mode) -> int:
    """Ask until Redis is not asked any more; every answer meanwhile is what `mode` says.

    Returns how many were asked.
    """
    asked = 0
    async with asyncio.timeout(PATIENCE):
        while not courier_of(gateway)._breaker.open:
            answers = await each_dialect(gateway)
            check(answers, mode)
            asked += len(answers)
    return asked


async def back(gateway: Serving, timeout: float = BACK) -> float:
    """Wait until Redis decides again; how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    courier = courier_of(gateway)
    async with asyncio.timeout(timeout):
        while courier._breaker.open or courier.degraded:
            await asyncio.sleep(0.002)
    return loop.time() - began


async def gauge(gateway: Serving) -> bool:
    """What the metric says."""
    text = (await request(gateway.admin_port, "GET", "/metrics")).body
    return {b"1.0": True, b"0.0": False}[text.split(b"\nfairgate_limits_degraded ")[1].split()[0]]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Diagnostics of the limits: what happened, without the why."""
    messages = [record.getMessage() for record in caplog.records]
    return [m.split(" (")[0].split(";")[0] for m in messages if m.startswith("limits: ")]


async def settled(gateway: Serving, server: RedisServer, of: list[dict[str, Any]]) -> None:
    """Redis has counted exactly what these log lines say was used, and holds nothing any more."""
    served = [line for line in of if line["status"] == 200]
    tokens = sum(line["prompt_tokens"] + line["completion_tokens"] for line in served)

    async def facts() -> tuple[int, int, int, int, int]:
        counts = [await counted(server, rule) for rule in (REQUESTS, TOKENS)]
        leases = [await slots(server, rule) for rule in (TEAM_SLOTS, MODEL_SLOTS)]
        return (*counts, *leases, len(await reserved(server)))  # type: ignore[return-value]

    should = (len(served), tokens, 0, 0, 0)

    async def so() -> bool:
        return not courier_of(gateway)._settlements and await facts() == should

    with contextlib.suppress(TimeoutError):
        await until_told(so, PATIENCE)
    assert await facts() == should, f"{await facts()} is not {should}"
    assert not courier_of(gateway)._settlements
    assert courier_of(gateway).live == 0
    assert courier_of(gateway).dropped == 0
