"""A request is cancelled anywhere: its slots are free, its use is charged, its answer its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from gateway.limits.base import Form, Rule
from gateway.limits.courier import Courier
from gateway.limits.memory import Alone
from gateway.terms import Principal
from tests.fakes.engine import Engine
from tests.fakes.gateway import Serving, serving, until
from tests.fakes.redis import RedisServer
from tests.faults.cancelling import NONCE, Asked, Echo
from tests.faults.sharing import PREFIX, limited, reserved, slots

pytestmark = pytest.mark.usefixtures("no_traceback")

#: Requests under way, and how many of them may hold a slot.
AT_ONCE, SLOTS = 48, 44
LOOKS = 400
#: Buckets that hardly drain and never fill, and windows that hardly ever end: nothing is lost.
LIMITS = (
    "{requests_per_minute: {limit: 1, burst: 10000000},"
    " tokens_per_minute: {limit: 1, burst: 50000000},"
    " requests_per_month: 1000000000, tokens_per_month: 1000000000000,"
    f" concurrency: {SLOTS}}}"
)
MORE = "admin_listen: 127.0.0.1:0\nbounds: {log_lines: 1000000}\ntimeouts: {lame_duck: 0}\n"


class Crowd:
    """Many requests at once, each to be cancelled at some point, or at none.

    Mutable state: the `points` found, by kind of request; how often one was `hit`; the requests
    under way; what became of the others.
    """

    def __init__(self, gateway: Serving, seed: int) -> None:
        self.points: dict[tuple[bool, bool], set[str]] = {}
        self.hit: Counter[str] = Counter()
        self.statuses: Counter[int | None] = Counter()
        self._gateway = gateway
        self._chance = random.Random(seed)
        self._live: set[Asked] = set()
        self._loop = asyncio.get_running_loop()
        self._turning = True

    def look(self) -> None:
        """At every turn of the event loop: where each request is."""
        for asked in list(self._live):
            self._seen(asked)
        if self._turning:
            self._loop.call_soon(self.look)

    def _seen(self, asked: Asked) -> None:
        point = asked.point()
        if point is None or asked.hit is not None:
            return
        if asked.aim is None:
            self.points.setdefault(asked.kind, set()).add(point)
        elif asked.aim == point:
            asked.sightings -= 1
            if asked.sightings < 0:
                asked.leave()

    async def pass_by(self, requests: int, *, cancel: bool) -> None:
        """So many requests, some at once; with `cancel` so many that are cancelled."""
        self._turning = True
        self._loop.call_soon(self.look)
        goal = requests + self._passed(cancel)

        async def one_after_the_other() -> None:
            while self._passed(cancel) < goal:
                await self._one(cancel)

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
        self._turning = False

    @property
    def over(self) -> int:
        """How many requests there were."""
        return self.hit.total() + self.statuses.total()

    def _passed(self, cancel: bool) -> int:
        return self.hit.total() if cancel else self.statuses.total()

    async def _one(self, cancel: bool) -> None:
        asked = Asked(self._gateway, self._chance)
        if cancel and self._chance.random() < 0.95:
            asked.aim = self._aim(asked)
            asked.sightings = int(self._chance.expovariate(1))
        self._live.add(asked)
        task = asked.begin(self._seen)
        await asyncio.wait([task])
        self._live.remove(asked)
        self._judge(asked)

    def _aim(self, asked: Asked) -> str:
        points = sorted(self.points[asked.kind])
        if self._chance.random() < 0.5:
            return self._chance.choice(points)
        return min(points, key=lambda point: self.hit[point])

    def _judge(self, asked: Asked) -> None:
        caller = asked.caller
        found = NONCE.findall(caller.body)
        assert set(found) <= {asked.nonce}, "another caller's answer"
        if asked.hit is not None:
            self.hit[asked.hit] += 1
            return
        assert caller.task.exception() is None
        assert caller.ended == "finished"
        self.statuses[caller.status] += 1
        assert caller.status in (200, 429, 503, 529)
        assert (len(found) >= 2) == (caller.status == 200)


class Counts:
    """What the limits of one gateway have counted, and what its log says was used."""

    def __init__(self, gateway: Serving, server: RedisServer | None) -> None:
        self._gateway = gateway
        self._server = server
        composition = gateway.worker.composition
        self.counter = composition.counter
        self.rules = composition.rulebook.of(Principal("search", "search"), "tiny")

    async def kept(self, rule: Rule) -> tuple[int, int]:
        """Of a bucket its level and as of when, of a window its count and its beginning; slots."""
        if self._server is None:
            assert isinstance(self.counter, Alone)
            state = self.counter._memory._states[rule.key]
            return state.amount, state.since
        if rule.form is Form.SLOTS:
            return await slots(self._server, rule.key), 0
        text = await self._server.command("GET", PREFIX + rule.key)
        amount, since, *_ = text.split(":")
        return int(amount), int(since)

    async def all_kept(self) -> dict[Rule, tuple[int, int]]:
        """Of every rule, once all that happened has come there."""
        await self._gateway.until_quiet()
        if isinstance(self.counter, Courier):
            courier = self.counter
            await until(lambda: not courier._settlements and not courier.degraded)
            assert courier.live == 0, "a claim is still held"
        if self._server is not None:
            assert await reserved(self._server) == []
        return {rule: await self.kept(rule) for rule in self.rules}

    async def used(self, lines: int) -> dict[str, int]:
        """Requests and tokens by the log, which has so many lines."""
        await until(lambda: self._gateway.log.read_bytes().count(b"\n") >= lines, 10)
        read = self._gateway.lines()
        assert len(read) == lines
        tokens = [line["prompt_tokens"] + line["completion_tokens"] for line in read]
        return {"requests": sum(map(bool, tokens)), "tokens": sum(tokens)}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the first answers are broken off: none of it may stop the second from being asked."""
    monkeypatch.setattr("backends.health._ERRORS", 1_000_000_000)
    monkeypatch.setattr("backends.budget._PRICE", 0)


async def cancelled_everywhere(server: RedisServer | None, times: int, least: int) -> None:
    echo = Echo()
    async with Engine(echo) as one, Engine(echo) as other:
        url = server.url if server is not None else None
        pool = f"{{concurrency: {SLOTS - 1}}}"
        text = limited(f"{one.url}, {other.url}", url, {"search": LIMITS}, pool, MORE)
        async with serving(text) as gateway:
            crowd, counts = Crowd(gateway, times), Counts(gateway, server)
            await crowd.pass_by(LOOKS, cancel=False)
            before, so_far = await counts.all_kept(), await counts.used(crowd.over)
            began = time.monotonic()
            await crowd.pass_by(times, cancel=True)
            took = time.monotonic() - began
            after, used = await counts.all_kept(), await counts.used(crowd.over)
            print(f"\n{crowd.hit.total():,} cancelled in {took:.1f} s; others {crowd.statuses}")
            for point, hits in sorted(crowd.hit.items()):
                print(f"{hits:8,}  {point}")
            for rule, (amount, since) in after.items():
                was, then = before[rule]
                if rule.form is Form.SLOTS:
                    assert amount == 0, f"{rule}: a slot is still taken"
                    continue
                more = used[rule.counted] - so_far[rule.counted]
                if rule.form is Form.WINDOW:
                    assert amount == was + more, f"{rule} and the log differ"
                else:
                    drained = rule.drain * (since - then)
                    odd = amount - (was + more * rule.unit - drained)
                    # The host's clock may go back by a microsecond, which drains twice then.
                    assert abs(odd) < rule.unit / 1000, f"{rule} and the log differ"
            found = {point for points in crowd.points.values() for point in points}
            assert min(crowd.hit[point] for point in found) >= least


@pytest.mark.slow
async def test_anywhere_with_limits_in_memory() -> None:
    await cancelled_everywhere(None, 4000, 20)


@pytest.mark.slow
async def test_anywhere_with_limits_in_redis(redis_server: RedisServer) -> None:
    await cancelled_everywhere(redis_server, 5000, 20)


@pytest.mark.soak
async def test_a_hundred_thousand_times(redis_server: RedisServer) -> None:
    await cancelled_everywhere(redis_server, 100_000, 100)
