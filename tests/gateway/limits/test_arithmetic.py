"""Lua's doubles count what Python's integers and calendar count, as far as limits go."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis as Client

from gateway.limits.base import SECOND, Claim, Rule, Settlement, window_end, window_start
from gateway.limits.redis import Redis
from tests.fakes.redis import RedisServer
from tests.gateway.limits.model import Model
from tests.gateway.limits.stores import InRedis


@pytest_asyncio.fixture
async def inside(redis_server: RedisServer) -> AsyncIterator[Any]:
    async with Client.from_url(redis_server.url) as client:
        yield client


def window_script() -> str:
    text = Redis.turning.text
    begins, ends = text.index("local function month_of"), text.index("local function in_parts")
    return f"""local DAY = 86400000000
    {text[begins:ends]}
    local answer = {{}}
    for i, at in ipairs(ARGV) do
      local start, ends = window(0, tonumber(at))
      answer[i] = string.format('%.0f:%.0f', start, ends)
    end
    return answer"""


async def test_months_in_the_scripts_are_those_of_the_calendar(inside: Any) -> None:
    dice = random.Random(5)
    last = window_start(4_133_980_800 * SECOND, 0)  # the end of 2100
    instants = [dice.randrange(last) for _ in range(3000)]
    start = 0
    while start < last:
        instants += [start, (start := window_end(start, 0)) - 1]
    told = await inside.eval(window_script(), 0, *instants)
    starts = [window_start(at, 0) for at in instants]
    assert [line.decode() for line in told] == [f"{s}:{window_end(s, 0)}" for s in starts]


@pytest.fixture
def clocked(shared_redis: RedisServer) -> Iterator[InRedis]:
    store = InRedis(shared_redis.url)
    store.flush()
    yield store
    store.close()


def test_numbers_near_the_end_of_what_is_exact_stay_exact(clocked: InRedis) -> None:
    dice = random.Random(7)
    rules: Sequence[Rule] = (
        Rule("key", ["minute"], "tokens", "minute", 149_999_957),
        Rule("key", ["second"], "tokens", "second", 999_999_937, 2**33 // 1000),
        Rule("key", ["month"], "tokens", "month", 2**53 - 1),
    )
    assert max(rule.room for rule in rules) > 2**52
    model, at = Model(), 1_800_000_000 * SECOND + 1
    for number in range(300):
        clocked.move(at)
        lines = []
        for rule in rules:
            some = model.level(rule, at)[0]
            lines.append((rule, max(0, some - dice.choice([-1, 0, 0, 1, some // 2, some - 1]))))
        asked = Claim(str(number), tuple(lines))
        [decision], expected = clocked.turn([], [asked], 0), model.decide(asked, at)
        assert [tuple(level) for level in decision.levels] == expected.levels
        assert (decision.refused, decision.wait) == (expected.refused, expected.wait)
        if number % 3 == 0:
            end = Settlement(str(number), [(rule, was, was // 2) for rule, was in lines])
            clocked.turn([end], [], 1)
            model.settle(end, at)
        at += dice.choice([0, 1, decision.wait, decision.wait // 3 or 7, 12_345])
