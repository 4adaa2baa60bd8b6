"""A limit that changes while it is counted, in Redis and on the way there: nothing starts over."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.limits.base import SECOND, Rule, Settlement, Window
from gateway.limits.redis import Redis
from tests.gateway.limits.counting import CHANGES, MINUTE, PREFIX, ask, claim, left
from tests.gateway.limits.scripted import Scripted, carried, gone
from tests.gateway.limits.scripted import claim as named


def allowing(before: int, window: Window | None = "minute") -> Rule:
    return Rule("key", ["r"], "concurrency" if window is None else "tokens", window, before)


@pytest.mark.parametrize(
    ("window", "before", "used", "after", "left_then"),
    CHANGES,
)
async def test_with_another_limit_what_was_used_stays_used(
    store: Redis, window: Window | None, before: int, used: int, after: int, left_then: int
) -> None:
    rule = allowing(before, window)
    assert (await ask(store, (rule, used))).refused is None
    rule.allow(after)
    [found] = await left(store, rule)
    assert left_then <= found <= left_then + 2 * after // 60  # what two slow seconds drain
    assert (await ask(store, (rule, left_then + after // 10 + 20))).refused == 0


async def test_a_lowered_limit_makes_no_debt(store: Redis) -> None:
    rule = allowing(600)
    assert (await ask(store, (rule, 600))).refused is None
    rule.allow(60)
    assert (await ask(store, (rule, 5))).wait <= 5 * SECOND


async def test_what_ends_is_settled_by_the_limit_there_is_then(store: Redis, inside: Any) -> None:
    rule = allowing(600_000)
    asked = claim((rule, 100_000))
    await store.turn([], [asked])
    rule.allow(60)
    await store.turn([Settlement(asked.id, [(rule, 100_000, 99_990)])], [])
    assert await left(store, rule) in ([10], [11], [12])
    # Its drain is the new one: nothing of the old limit is left in what is kept.
    kept_as = (await inside.get(f"{PREFIX}:{rule.key}")).split(b":")
    assert [int(n) for n in kept_as[2:4]] == [rule.unit, rule.drain]


async def test_gateways_with_different_limits_count_the_same_use(stores: list[Redis]) -> None:
    slow, fast = allowing(70), allowing(110)
    for _ in range(10):
        await ask(stores[0], (slow, 1))
        await ask(stores[1], (fast, 1))
    [slow_left], [fast_left] = await left(stores[0], slow), await left(stores[1], fast)
    assert slow_left in range(50, 56)
    assert fast_left in range(90, 96)


async def test_what_was_kept_without_its_scale_still_counts(store: Redis, inside: Any) -> None:
    now = (await ask(store)).at
    await inside.set(f"{PREFIX}:{MINUTE.key}", f"{30 * MINUTE.unit}:{now}")
    assert await left(store, MINUTE) in ([30], [31], [32])


@pytest.mark.parametrize(("after", "passing"), [(20, 12), (9, 1), (5, 0)])
async def test_local_goes_on_from_what_was_used_where_the_limit_is_another_now(
    after: int, passing: int
) -> None:
    rule = Rule("team", ("search",), "requests", "day", 10)
    store = Scripted()
    async with carried(store) as courier:
        store.level = (2, 57_000_000)
        await courier.decide(named("a", [(rule, 1)]))
        rule.allow(after)
        await gone(courier, store)
        asked = [await courier.decide(named(n, [(rule, 1)])) for n in range(20)]
        assert [decision.refused for decision in asked].count(None) == passing


@pytest.mark.parametrize(("after", "passing"), [(600, 570), (60, 30), (40, 10), (6, 0)])
async def test_local_goes_on_from_what_was_used_of_a_bucket_whose_limit_is_another_now(
    after: int, passing: int
) -> None:
    rule = Rule("team", ("search",), "requests", "minute", 60)
    store = Scripted()
    async with carried(store) as courier:
        store.level = (30, 30 * SECOND)
        await courier.decide(named("a", [(rule, 1)]))
        rule.allow(after)
        await gone(courier, store)
        asked = [await courier.decide(named(n, [(rule, 1)])) for n in range(600)]
        granted = [decision.refused for decision in asked].count(None)
        assert passing <= granted <= passing + after // 60  # what a slow second drains
