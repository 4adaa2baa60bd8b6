"""Redis is killed, frozen, full, or not the primary any more: requests go on as was configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.limits import courier as carrying
from gateway.limits.courier import Mode
from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, serving
from tests.fakes.redis import RedisServer
from tests.fakes.redis import until as until_told
from tests.fakes.script import Chunk, EndChunks, Received, Step, Wait, stream
from tests.faults.asking import CHAT, Heard, body, events
from tests.faults.outage import (
    LOADS,
    MODEL_SLOTS,
    REQUESTS,
    TEAM_SLOTS,
    Outage,
    back,
    check,
    courier_of,
    each_dialect,
    frozen,
    full,
    gauge,
    given_up,
    killed,
    loading,
    read_only,
    ruled,
    settled,
    told,
)
from tests.faults.sharing import counted, slots

pytestmark = pytest.mark.usefixtures("no_traceback")

EVENTS = events(CHAT)
AWAY, BACK = "limits: Redis is away", "limits: Redis is back"
MODES: tuple[Mode, ...] = ("local", "open", "closed")
QUICK = {(frozen, "local"), (killed, "closed"), (read_only, "open")}


class Streams:
    """An engine's script. Mutable state: `go`, what lets the streams of a user go on after their
    first event.
    """

    def __init__(self) -> None:
        self.go: dict[str, Wait] = {}

    def __call__(self, got: Received) -> list[Step] | None:
        if got.method != "POST" or "user" not in got.json():
            return None
        go = self.go[got.json()["user"]]
        return [*stream(EVENTS[:1], end=False), go, *map(Chunk, EVENTS[1:]), EndChunks()]

    async def open(self, gateway: Serving, user: str, count: int) -> list[asyncio.Task[Heard]]:
        """So many more, all of which have begun to be answered."""
        self.go.setdefault(user, Wait())
        begun = await asyncio.gather(*(self._begun(gateway, user) for _ in range(count)))
        return [asyncio.create_task(_rest(*each)) for each in begun]

    async def _begun(self, gateway: Serving, user: str) -> tuple[Client, Heard]:
        client = await Client.open(gateway.port, patience=120)
        await client.post(CHAT, body(CHAT, user=user), HEADERS)
        return client, Heard(*await client.read_head("POST"))


async def _rest(client: Client, answer: Heard) -> Heard:
    async with client:
        answer.events = [event async for event in client.read_events()]
        return answer


@pytest.fixture
async def streams() -> Streams:
    return Streams()


@pytest.fixture
async def engine(streams: Streams) -> AsyncIterator[Engine]:
    async with Engine(streams) as running:
        yield running


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer(*LOADS) as running:
        yield running


def cases() -> list[object]:
    return [
        pytest.param(
            outage,
            mode,
            id=f"{outage.__name__}-{mode}",
            marks=() if (outage, mode) in QUICK else pytest.mark.slow,
        )
        for outage in (killed, frozen, read_only, full, loading)
        for mode in MODES
    ]


@pytest.mark.parametrize(("outage", "mode"), cases())
async def test_requests_go_on_as_configured_and_redis_decides_again_when_it_is_back(
    engine: Engine,
    server: RedisServer,
    outage: Outage,
    mode: Mode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never a 401 and never a hang; afterwards every count is right, to the token."""
    # A script that has begun to write may go on in a Redis that is full: as they do with slots.
    text = ruled(engine.url, server.url, mode, slots=outage is not full)
    async with serving(text) as gateway:
        check(await each_dialect(gateway, 3), None)
        before = await gateway.logged(9)
        async with outage(server):
            asked = await given_up(gateway, mode)
            for _ in range(3):
                check(await each_dialect(gateway, 3), mode)
            assert await gauge(gateway)
            assert told(caplog) == [AWAY]
            assert f"going on as {mode!r}" in caplog.text
        took = await back(gateway)
        print(f"back after {took:.2f} s")
        check(await each_dialect(gateway, 3), None)
        assert not await gauge(gateway)
        assert told(caplog) == [AWAY, BACK]
        await gateway.until_quiet()
        lines = await gateway.logged(len(before) + asked + 27 + 9)
        await settled(gateway, server, lines[len(before) :] if outage is killed else lines)


@pytest.mark.parametrize("mode", MODES)
async def test_it_starts_without_redis_and_takes_it_when_it_comes(
    engine: Engine, server: RedisServer, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    await server.kill()
    async with serving(ruled(engine.url, server.url, mode)) as gateway:
        check(await each_dialect(gateway), mode)
        await server.start()
        await back(gateway)
        check(await each_dialect(gateway), None)
        assert told(caplog) == [AWAY, BACK]
        await gateway.until_quiet()
        await settled(gateway, server, await gateway.logged(6))


async def test_a_flush_of_the_scripts_is_noticed_by_nobody(
    engine: Engine, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ruled(engine.url, server.url)) as gateway:
        for _ in range(3):
            check(await each_dialect(gateway), None)
            await server.command("SCRIPT", "FLUSH")
        check(await each_dialect(gateway), None)
        assert courier_of(gateway).decided_here == 0
        assert not told(caplog)
        await gateway.until_quiet()
        await settled(gateway, server, await gateway.logged(12))


@pytest.mark.parametrize("outage", [None, killed])
async def test_leases_of_live_streams_come_back_after_all_was_lost(
    engine: Engine,
    server: RedisServer,
    streams: Streams,
    outage: Outage | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after FLUSHALL, which no call fails of: the next renewal brings them back."""
    assert carrying._RENEW_EVERY == 10
    monkeypatch.setattr(carrying, "_RENEW_EVERY", 0.3 if outage is None else 60)
    async with serving(ruled(engine.url, server.url)) as gateway:
        asked = await streams.open(gateway, "lasting", 5)

        async def counted_again() -> bool:
            return [await slots(server, rule) for rule in (TEAM_SLOTS, MODEL_SLOTS)] == [5, 5]

        assert await counted_again()
        if outage is None:
            await server.command("FLUSHALL")
        else:
            async with outage(server):
                await given_up(gateway, "local")
            await back(gateway)
        await until_told(counted_again, 2)
        streams.go["lasting"].event.set()
        assert all(answer.finished for answer in await asyncio.gather(*asked))
        await gateway.until_quiet()
        await until_told(lambda: none(server), 2)


async def none(server: RedisServer) -> bool:
    return not await slots(server, TEAM_SLOTS) and not await slots(server, MODEL_SLOTS)


@pytest.mark.parametrize(
    "seconds",
    [0.3, pytest.param(10, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.soak)],
)
async def test_what_ends_during_an_outage_is_settled_once_after_it(
    engine: Engine, server: RedisServer, streams: Streams, seconds: float
) -> None:
    """Streams that were let in before it end before, in and after it, some because their callers
    left; others come meanwhile. What is charged is what the log says, to the token.
    """
    async with serving(ruled(engine.url, server.url)) as gateway:
        await each_dialect(gateway)
        ending = await streams.open(gateway, "ending", 20)
        leaving = await streams.open(gateway, "leaving", 10)
        outliving = await streams.open(gateway, "outliving", 10)
        meanwhile = 0
        async with frozen(server):
            loop = asyncio.get_running_loop()
            ends = loop.time() + seconds
            for each in leaving:
                each.cancel()
            meanwhile += await given_up(gateway, "local")
            streams.go["ending"].event.set()
            assert all(a.finished for a in await asyncio.gather(*ending))
            crossing = await streams.open(gateway, "crossing", 10)
            while loop.time() < ends:
                check(await each_dialect(gateway, 2), "local")
                meanwhile += 6
                await asyncio.sleep(0.05)
            assert courier_of(gateway)._settlements
        print(f"back after {await back(gateway):.2f} s")
        check(await each_dialect(gateway), None)
        assert await slots(server, TEAM_SLOTS) == len(outliving) + len(crossing)
        for user in ("outliving", "crossing"):
            streams.go[user].event.set()
        assert all(a.finished for a in await asyncio.gather(*outliving, *crossing))
        await gateway.until_quiet()
        lines = await gateway.logged(3 + 40 + meanwhile + 10 + 3)
        print(f"{len(lines)} requests, {sum(x['completion_tokens'] for x in lines)} tokens")
        await settled(gateway, server, lines)
        assert [line["outcome"] for line in lines].count("client_gone") == len(leaving)
        assert await counted(server, REQUESTS) == len(lines)


@pytest.mark.parametrize("mode", MODES)
async def test_the_end_is_not_delayed_by_a_frozen_redis(
    engine: Engine, server: RedisServer, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with serving(ruled(engine.url, server.url, mode)) as gateway:
            check(await each_dialect(gateway), None)
            server.freeze()
            await each_dialect(gateway)
            began = loop.time()
        assert loop.time() - began < 2
    finally:
        server.thaw()
