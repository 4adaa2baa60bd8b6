"""Many faults at once: killed engines, engines that are all full, a request that kills engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, serving
from tests.fakes.process import EngineProcess
from tests.fakes.script import plain
from tests.faults.asking import CHAT, MESSAGES, Heard, ask, body, error, heard
from tests.faults.driving import driven, text_of

pytestmark = pytest.mark.slow

BOTH = (CHAT, MESSAGES)
AT_ONCE = 50


@pytest.mark.parametrize("callers", [200, pytest.param(1_000, marks=pytest.mark.soak)])
async def test_whoever_reads_when_its_engine_is_killed_is_told_so(callers: int) -> None:
    port, longest = 0, 0.0
    async with contextlib.AsyncExitStack() as held:
        gateway = None
        for first in range(0, callers, AT_ONCE):
            async with EngineProcess("until:C", port=port) as engine:
                port = engine.port
                if gateway is None:
                    gateway = await held.enter_async_context(driven(text_of(engine.url)))
                asked = [
                    # No two alike: a request that was there at two deaths is not sent again.
                    (path, asyncio.create_task(ask(gateway.port, path, **{field: f"{number}"})))
                    for number in range(first, first + AT_ONCE)
                    for path, field in ([(CHAT, "user"), (MESSAGES, "system")][number % 2],)
                ]
                await gateway.until_at("C", AT_ONCE)
                await engine.kill()
                since = time.monotonic()
                for path, task in asked:
                    answer = await asyncio.wait_for(task, 10)
                    assert (answer.status, len(answer.events)) == (200, 4)
                    error(path, answer)
                longest = max(longest, time.monotonic() - since)
        assert gateway is not None
        lines = await gateway.logged(callers)
        assert [line["outcome"] for line in lines] == ["upstream_failed"] * callers
    print(f"{callers} callers of killed engines: told within {longest * 1000:.0f} ms")


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.soak)])
async def test_engines_that_are_all_full_are_asked_little_more_than_callers_ask(
    seconds: int,
) -> None:
    full = plain(503, b'{"error":{"message":"The queue is full."}}')
    async with Engine(full) as a, Engine(full) as b, Engine(full) as c:
        engines = (a, b, c)
        async with serving(configured(*(each.url for each in engines))) as gateway:
            asking: list[asyncio.Task[Heard]] = []
            began = time.monotonic()
            for number in range(seconds * 40):
                await asyncio.sleep(began + number / 40 - time.monotonic())
                asking.append(asyncio.create_task(ask(gateway.port, BOTH[number % 2])))
            answers = await asyncio.gather(*asking)
            for number, answer in enumerate(answers):
                error(BOTH[number % 2], answer)
                assert answer.status == (503, 529)[number % 2]
                assert 1 <= int(answer.headers.get("retry-after") or 0) <= 60
            await gateway.until_quiet()
        attempts = sum(got.method == "POST" for each in engines for got in each.requests)
        print(f"{len(asking)} requests, {attempts} attempts")
        assert len(asking) <= attempts <= 1.2 * len(asking)


POISON = "poison"


async def poisoned(port: int, path: str, *, streamed: bool) -> Heard:
    """The very same request each time."""
    asked = body(path, stream=streamed, **{"system" if path == MESSAGES else "user": POISON})
    async with await Client.open(port) as client:
        await client.post(path, asked, HEADERS)
        return await heard(client, path)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("path", BOTH)
async def test_a_request_that_kills_its_engine_kills_two_at_most(
    path: str, workers: int, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as held:
        engines = [
            await held.enter_async_context(EngineProcess(f"dies_of:{POISON}")) for _ in range(4)
        ]
        file = tmp_path / "fairgate.yaml"
        urls = [engine.url for engine in engines]
        file.write_text(configured(*urls, more=f"secret: sixteen-letters-\nworkers: {workers}\n"))
        command = await held.enter_async_context(Command("serve", "--config", str(file)))
        port = await command.listening()
        first = await poisoned(port, path, streamed=True)
        for again in range(20):  # each on a connection of its own: to whichever worker takes it
            answer = first if again == 0 else await poisoned(port, path, streamed=True)
            told = error(path, answer)
            assert answer.status == 500, told
            assert answer.headers.get("x-should-retry") == "false"
            assert path == MESSAGES or told["code"] == "request_quarantined"
            for other in BOTH:
                assert (await ask(port, other)).finished, "others are not served"
        dead = sum([await unreachable(engine.port) for engine in engines])
        assert dead == 2
        assert b"it is refused from now on" in command.err
        assert POISON.encode() not in command.err + command.out
        assert b"Traceback" not in command.err


async def unreachable(port: int) -> bool:
    try:
        return (await request(port, "GET", "/health")).status != 200
    except OSError:
        return True
