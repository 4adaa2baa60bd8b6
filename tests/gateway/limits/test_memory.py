"""Counts in this process: what the contract suite does not see, and a share among several."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from gateway.limits.base import (
    SECOND,
    SLOT_WAIT,
    Claim,
    Counted,
    Rule,
    Settlement,
    Window,
)
from gateway.limits.memory import Alone, Memory, microseconds
from tests.fakes.clock import Microseconds
from tests.gateway.limits.counting import CHANGES
from tests.gateway.limits.model import Model

MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)


@pytest.fixture
def clock() -> Microseconds:
    return Microseconds(START)


def grants(memory: Memory, rule: Rule, amount: int = 1) -> bool:
    return memory.decide(Claim("id", ((rule, amount),))).refused is None


def test_the_clock_ignores_later_steps_of_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = microseconds()
    before = now()
    assert abs(before - time.time_ns() // 1000) < SECOND
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert before <= now() < before + 60 * SECOND


# A share: what passes here counts for all who enforce the same rules


@pytest.mark.parametrize(
    ("window", "limit", "share"), [("minute", 600, 4), ("minute", 10, 3), ("day", 1000, 8)]
)
def test_a_share_passes_its_part_of_a_rate_and_no_more(
    clock: Microseconds, window: str, limit: int, share: int
) -> None:
    rule = Rule("key", ["k"], "requests", window, limit)  # type: ignore[arg-type]
    memories = [Memory(clock, share) for _ in range(share)]
    granted = sum(grants(memory, rule) for memory in memories for _ in range(limit))
    assert limit - share < granted <= limit


def test_a_share_counts_as_the_model_counts_so_many_times_more(clock: Microseconds) -> None:
    rules = [
        Rule("key", ["k"], "tokens", "minute", 97, 40),
        Rule("key", ["k"], "tokens", "day", 900),
    ]
    memory, model = Memory(clock, 3), Model()
    for turn in range(300):
        amount = turn * 7 % 23
        decision = memory.decide(Claim(str(turn), tuple((rule, amount) for rule in rules)))
        expected = model.decide(Claim(str(turn), tuple((r, amount * 3) for r in rules)), clock.now)
        assert decision == expected
        if decision.refused is None:
            memory.settle([(rule, amount, 5) for rule in rules], decision.at)
            model.settle(Settlement(str(turn), [(r, amount * 3, 15) for r in rules]), clock.now)
        clock.now += turn * 7_777_777


def test_a_share_of_a_rule_of_one_admits_and_holds_the_average(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "requests", "minute", 1)
    memory = Memory(clock, 4)
    granted = 0
    for _ in range(3600):
        granted += grants(memory, rule)
        clock.now += SECOND
    assert granted == 3600 / 60 / 4


@pytest.mark.parametrize(("limit", "share", "each"), [(2, 8, 1), (1, 3, 1), (8, 2, 4), (10, 3, 3)])
def test_a_share_of_a_few_slots_is_never_less_than_one(
    clock: Microseconds, limit: int, share: int, each: int
) -> None:
    rule = Rule("key", ["k"], "concurrency", None, limit)
    memory = Memory(clock, share)
    assert [grants(memory, rule) for _ in range(each + 2)].count(True) == each
    memory.settle([(rule, 1, 0)], clock.now)
    assert grants(memory, rule)
    assert not grants(memory, rule)


def test_a_share_grants_no_more_slots_than_the_rule_has(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "concurrency", None, 3)
    assert not grants(Memory(clock, 4), rule, 4)
    assert grants(Memory(clock, 4), rule, 3)


def test_a_full_rule_of_slots_tells_to_come_back_in_a_second(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "concurrency", None, 1)
    memory = Memory(clock)
    assert grants(memory, rule)
    decision = memory.decide(Claim("2", ((rule, 1),)))
    assert (decision.refused, decision.wait) == (0, SLOT_WAIT * SECOND)


# Going on from what another store had


@pytest.mark.parametrize("window", ["second", "minute", "hour", "day", "month"])
def test_it_goes_on_from_the_level_another_store_told(clock: Microseconds, window: str) -> None:
    rule = Rule("key", ["k"], "tokens", window, 600)  # type: ignore[arg-type]
    first, then = Memory(clock), Memory(clock)
    assert grants(first, rule, 450)
    seen = clock.now
    [level] = first.levels([rule])
    clock.now += SECOND // 10
    then.begin(rule, level, seen, rule.scale)
    assert then.levels([rule]) == first.levels([rule])
    clock.now += 40 * DAY
    assert then.levels([rule]) == first.levels([rule])


def test_a_debt_goes_on_too(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "tokens", "minute", 60)
    first, then = Memory(clock), Memory(clock)
    assert grants(first, rule, 300)
    then.begin(rule, first.levels([rule])[0], clock.now, rule.scale)
    assert not grants(then, rule)
    clock.now += 4 * MINUTE + SECOND
    assert grants(then, rule)


def test_slots_another_store_gave_are_held_here(clock: Microseconds) -> None:
    rule, rate = (
        Rule("key", ["k"], "concurrency", None, 2),
        Rule("key", ["k"], "requests", "minute", 1),
    )
    memory = Memory(clock)
    memory.hold([(rule, 2), (rate, 1)])
    assert not grants(memory, rule)
    assert grants(memory, rate)
    memory.settle([(rule, 2, 0)], clock.now)
    assert grants(memory, rule, 2)


def test_held_slots_count_for_all_who_share(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "concurrency", None, 12)
    memory = Memory(clock, 3)
    memory.hold([(rule, 2)])
    assert memory.levels([rule]) == [(6, 0)]


# Another limit


@pytest.mark.parametrize(
    ("window", "before", "used", "after", "left"),
    CHANGES,
)
def test_with_another_limit_what_was_used_stays_used(
    clock: Microseconds, window: Window | None, before: int, used: int, after: int, left: int
) -> None:
    counted: Counted = "concurrency" if window is None else "tokens"
    rule = Rule("key", ["k"], counted, window, before)
    memory = Memory(clock)
    assert grants(memory, rule, used)
    rule.allow(after)
    assert memory.levels([rule])[0][0] == left
    assert not grants(memory, rule, left + 1)
    assert grants(memory, rule, left) or not left


def test_a_lowered_limit_makes_no_debt(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "requests", "minute", 600)
    memory = Memory(clock)
    assert grants(memory, rule, 600)
    rule.allow(6)
    assert not grants(memory, rule)
    clock.now += 10 * SECOND
    assert grants(memory, rule), "one in ten seconds, as the new limit says"


@pytest.mark.parametrize("burst", [None, 30])
def test_a_reload_that_leaves_the_rate_as_it_is_forgives_no_debt(
    clock: Microseconds, burst: int | None
) -> None:
    rule = Rule("key", ["k"], "tokens", "minute", 60)
    memory = Memory(clock)
    at = memory.decide(Claim("1", ((rule, 60),))).at
    memory.settle([(rule, 60, 600)], at)
    rule.allow(60, burst)
    assert memory.levels([rule]) == [(0, 10 * MINUTE)]
    clock.now += 9 * MINUTE
    assert not grants(memory, rule, 60)


def test_what_ends_is_settled_by_the_limit_there_is_then(clock: Microseconds) -> None:
    rule = Rule("key", ["k"], "tokens", "minute", 600)
    memory = Memory(clock)
    at = memory.decide(Claim("1", ((rule, 100),))).at
    rule.allow(90)
    memory.settle([(rule, 100, 30)], at)
    assert memory.levels([rule])[0][0] == 70, "90, which were used, less the 70 that were not"
    clock.now += 10 * SECOND
    assert memory.levels([rule])[0][0] == 85


# The counter of one process alone


async def test_a_claim_is_settled_once_and_a_refused_one_never(clock: Microseconds) -> None:
    counter = Alone(clock)
    rule = Rule("key", ["k"], "tokens", "day", 100)
    slot = Rule("key", ["k"], "concurrency", None, 2)
    first = Claim("1", ((rule, 60), (slot, 1)))
    refused = Claim("2", ((rule, 60), (slot, 1)))
    at = (await counter.decide(first)).at
    assert (await counter.decide(refused)).refused == 0
    for _ in range(3):
        counter.settle(refused, [(rule, 60, 0), (slot, 1, 0)], at)
    assert (await counter.levels([rule, slot]))[1] == (1, 0)
    for _ in range(3):
        counter.settle(first, [(rule, 60, 10), (slot, 1, 0)], at)
    assert [left for left, _ in await counter.levels([rule, slot])] == [90, 2]


async def test_a_reset_forgets_rates_and_keeps_slots(clock: Microseconds) -> None:
    counter = Alone(clock)
    lines = [
        (Rule("key", ["k"], "tokens", "minute", 9), 9),
        (Rule("key", ["k"], "tokens", "day", 9), 9),
        (Rule("key", ["k"], "concurrency", None, 9), 9),
    ]
    await counter.decide(Claim("1", tuple(lines)))
    rules = [rule for rule, _ in lines]
    await counter.reset(rules)
    assert [left for left, _ in await counter.levels(rules)] == [9, 9, 0]


async def test_what_is_used_after_a_reset_counts(clock: Microseconds) -> None:
    counter = Alone(clock)
    rules = [Rule("key", ["k"], "tokens", "minute", 90), Rule("key", ["k"], "tokens", "day", 90)]
    claim = Claim("1", tuple((rule, 10) for rule in rules))
    at = (await counter.decide(claim)).at
    await counter.reset(rules)
    counter.settle(claim, [(rule, 10, 40) for rule in rules], at)
    assert [left for left, _ in await counter.levels(rules)] == [60, 60]
