"""Limits are exact over processes: not one request too many, and not one too few."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from gateway.limits.base import SECOND, WIDTH, Window
from tests.fakes.client import Client, head
from tests.fakes.engine import Engine
from tests.fakes.redis import RedisServer
from tests.fakes.script import Received, Sleep, Step
from tests.faults.asking import CHAT
from tests.faults.sharing import (
    MINUTE,
    PREFIX,
    counted,
    gateway,
    headers,
    limited,
    redis_time,
    reserved,
    slots,
    worker_pids,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_traceback")]

WORKERS = 8
#: How many requests a connection is for.
AGAIN = 5
PER_MINUTE = 600
AT_ONCE = 20
PER_DAY = 3

TEAMS = {
    "rate": f"{{requests_per_minute: {PER_MINUTE}, requests_per_day: 1000000,"
    " tokens_per_day: 1000000000, concurrency: 10000}",
    "slots": f"{{concurrency: {AT_ONCE}, requests_per_day: 1000000}}",
    # Its buckets drain slowly, so that they are still there at the end.
    "spent": f"{{requests_per_day: {PER_DAY}, requests_per_minute: {{limit: 2, burst: 1000000}},"
    " tokens_per_minute: {limit: 5, burst: 1000000}, tokens_per_day: 1000000000, concurrency: 100}",
}


@dataclass
class Underway:
    """An engine's script. Mutable state: how many requests of the slots' team it works on now,
    and the most there were.
    """

    engine: Engine | None = None
    now: int = 0
    most: int = 0

    def __call__(self, request: Received) -> Iterator[Step] | None:
        if request.method != "POST":
            return None
        return self._answer(request)

    def _answer(self, request: Received) -> Iterator[Step]:
        assert self.engine is not None
        ours = b"of slots" in request.body
        self.now += ours
        self.most = max(self.most, self.now)
        yield Sleep(0.1)
        self.now -= ours  # before its caller can know that it is over
        yield from self.engine.vllm.answer(request)


@dataclass
class Asked:
    """What the callers of one team were told. Mutable state: how often what, the tokens used, and
    when by the host's clock, which Redis' is too: the times that each was sent and answered.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    times: list[tuple[int, float, float]] = field(default_factory=list)

    def bounds(self) -> tuple[int, int]:
        """How many may have passed at least and at most, if it was between the first that was
        granted and the last that was refused, somewhere between its sending and its answer.
        """
        sent, answered = (min(each[at] for each in self.times) for at in (1, 2))
        refused = max(each[1] for each in self.times if each[0] == 429)
        last = max(each[2] for each in self.times)
        return admissible(refused - answered), admissible(last - sent)


def admissible(seconds: float) -> int:
    return int(PER_MINUTE * (1 + seconds / 60))


async def ask(client: Client, team: str, words: int, asked: Asked) -> None:
    said = f"of {team}" + " word" * words
    body = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": said}]}
    data = json.dumps(body).encode()
    sent = time.time()
    await client.send(head("POST", CHAT, headers(team), data) + data)
    status, _ = await client.read_head("POST")
    asked.times.append((status, sent, time.time()))
    answer = json.loads(await client.read_body())
    asked.statuses[status] += 1
    if status == 200:
        asked.tokens += answer["usage"]["total_tokens"]


async def attempts(port: int, team: str, callers: int, each: int) -> Asked:
    """What so many callers are told, each of whom asks so often.

    Each comes anew now and then: a connection stays with its worker, and a worker that is busy
    leaves the next one to others.
    """
    asked = Asked()

    async def caller() -> None:
        for first in range(0, each, AGAIN):
            async with await Client.open(port, patience=30) as client:
                for number in range(first, min(first + AGAIN, each)):
                    await ask(client, team, number % 7, asked)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return asked


@dataclass
class Samples:
    """What a thread sees every 50 ms. Mutable state: the most leases in Redis, the most requests at
    the engine, the most descriptors of each worker; `count`, how often it looked.
    """

    server: RedisServer
    underway: Underway
    pids: list[int]
    count: int = 0
    leases: int = 0
    requests: int = 0
    descriptors: Counter[int] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """While the block lasts."""
        over = threading.Event()
        looking = asyncio.get_running_loop().run_in_executor(None, self._look, over)
        try:
            yield
        finally:
            over.set()
            await looking

    def _look(self, over: threading.Event) -> None:
        with Redis(port=self.server.port) as client:
            while not over.wait(0.05):
                leases = client.zcard(PREFIX + "team:slots:concurrency")
                self.leases = max(self.leases, cast(int, leases))
                self.requests = max(self.requests, self.underway.now)
                for pid in self.pids:
                    open_now = len(os.listdir(f"/proc/{pid}/fd"))
                    self.descriptors[pid] = max(self.descriptors[pid], open_now)
                self.count += 1


async def kept(server: RedisServer, team: str) -> dict[str, bytes]:
    """What is counted for a team, byte for byte, once nothing waits for its settlement."""
    async with asyncio.timeout(5):
        while await reserved(server):
            await asyncio.sleep(0.01)
    keys = await server.command("KEYS", f"{PREFIX}team:{team}:*")
    return {key: await server.command("GET", key) for key in sorted(keys)}


async def test_ten_thousand_attempts_through_eight_workers(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    underway = Underway()
    async with Engine(underway) as engine:
        underway.engine = engine
        text = limited(engine.url, redis_server.url, TEAMS)
        async with gateway(tmp_path, text, WORKERS) as (_, port, admin):
            first = await attempts(port, "spent", 20, 1)
            assert first.statuses == {200: PER_DAY, 429: 20 - PER_DAY}
            spent = await kept(redis_server, "spent")
            assert len(spent) == 4, "a rule was not counted"

            samples = Samples(redis_server, underway, await worker_pids(admin))
            idle = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in samples.pids}
            async with samples.taken():
                of_rate, of_slots, of_spent = await asyncio.gather(
                    attempts(port, "rate", 250, 30),
                    attempts(port, "slots", 100, 15),
                    attempts(port, "spent", 50, 20),
                )

            admitted, (least, most) = of_rate.statuses[200], of_rate.bounds()
            passed = of_slots.statuses[200]
            connections = [open_then - idle[pid] for pid, open_then in samples.descriptors.items()]
            print(f"admitted {admitted} of 7500, by the rule {least} to {most};")
            print(f"{passed} of 1500 had a slot: at most {samples.leases} leases and")
            print(f"{underway.most} at the engine, {samples.count} samples;")
            print(f"the most connections of each worker: {connections}")
            assert least <= admitted <= most
            assert max(samples.leases, samples.requests, underway.most) == AT_ONCE
            assert min(connections) > 0, "a worker was never asked"

            assert of_spent.statuses == {429: 1000}
            assert await kept(redis_server, "spent") == spent, "a refused request left something"
            assert await counted(redis_server, "team:rate:requests_per_day") == admitted
            assert await counted(redis_server, "team:rate:tokens_per_day") == of_rate.tokens
            assert await counted(redis_server, "team:slots:requests_per_day") == passed
            assert await slots(redis_server, "team:slots:concurrency") == 0


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def processes(
    server: RedisServer, window: Window, limit: int, count: int, seconds: float
) -> list[tuple[int, bool]]:
    """What eight processes were told who ask for the same rule at once, in the order of decisions:
    when, and whether it was granted. Each makes `count` attempts within so many `seconds`; where
    days are counted, midnight is half-way.
    """
    words = (sys.executable, "-m", "tests.faults.attempts", server.url, window, str(limit))
    pipe = asyncio.subprocess.PIPE
    async with contextlib.AsyncExitStack() as stack:
        started = []
        for _ in range(WORKERS):
            process = await asyncio.create_subprocess_exec(
                *words, str(count), str(seconds), stdin=pipe, stdout=pipe, limit=1 << 24
            )
            stack.push_async_callback(ended, process)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        if window == "day":
            now = await redis_time(server)
            day = WIDTH["day"]
            await server.command("SET", "shift", day - now % day - round(seconds / 2 * SECOND))
        for process in started:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        told = await asyncio.gather(*(process.communicate() for process in started))
    made = [(at, granted) for out, _ in told for at, granted in json.loads(out)]
    assert len(made) == WORKERS * count
    return sorted(made, key=lambda each: (each[0], not each[1]))


async def test_every_single_decision_of_eight_processes_is_right(redis_server: RedisServer) -> None:
    """Each of 10,000 is held against the rule itself, at its own microsecond."""
    made = await processes(redis_server, "minute", PER_MINUTE, 1250, 5)
    began, ended = made[0][0], made[-1][0]
    admitted = 0
    for at, granted in made:
        # One every 100 ms comes on top of the burst; the bucket is never empty meanwhile.
        may = PER_MINUTE + PER_MINUTE * (at - began) // MINUTE
        assert granted == (admitted < may), f"the {admitted + 1}th of {may}, after {at - began} us"
        admitted += granted
    bound = PER_MINUTE + PER_MINUTE * (ended - began) // MINUTE
    print(f"admitted {admitted} of {len(made)} in {(ended - began) / SECOND:.3f} s, bound {bound}")
    assert admitted == bound


async def test_a_day_never_passes_its_limit_also_over_midnight(redis_server: RedisServer) -> None:
    """What is given back on the second day makes no room in it: it was the first one's."""
    day = WIDTH["day"]
    made = await processes(redis_server, "day", 500, 1250, 4)
    of_day = Counter((at // day, granted) for at, granted in made)
    first, second = made[0][0] // day, made[-1][0] // day
    print(f"by day: {dict(of_day)}")
    assert second == first + 1
    assert of_day[first, True] == of_day[second, True] == 500
    assert min(of_day[first, False], of_day[second, False]) > 1000
    kept = f"500:{second * day}"
    assert await redis_server.command("GET", f"{PREFIX}gateway::requests_per_day") == kept
