"""Counts in a real Redis: exact under concurrency, all or nothing, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from gateway.limits.base import (
    LEASE,
    SECOND,
    Claim,
    Close,
    Decision,
    Rule,
    Settlement,
    Unavailable,
    window_end,
    window_start,
)
from gateway.limits.redis import MOST, REMEMBERED, BadUrl, Redis
from tests.fakes.redis import RedisServer
from tests.gateway.limits.counting import MINUTE, PREFIX, ask, claim, ids, left

TOKENS = Rule("team", ["t"], "tokens", "minute", 1000)
DAY = Rule("team", ["t"], "tokens", "day", 10_000)
SLOTS = Rule("gateway", (), "concurrency", None, 10)


async def kept(inside: Any) -> dict[bytes, tuple[bytes, int]]:
    """Every key's value and when it expires, in milliseconds since the epoch."""
    return {k: (await inside.dump(k), await inside.pexpiretime(k)) for k in await inside.keys()}


# Exact, whoever asks at the same time


async def asked_at_once(stores: list[Redis], attempts: int, rule: Rule) -> list[Decision]:
    async def some(store: Redis) -> list[Decision]:
        return [await ask(store, (rule, 1)) for _ in range(attempts // (10 * len(stores)))]

    answers = await asyncio.gather(*(some(store) for store in stores for _ in range(10)))
    return [decision for some in answers for decision in some]


async def test_500_at_once_on_60_a_minute_pass_60(stores: list[Redis]) -> None:
    decisions = await asked_at_once(stores, 500, MINUTE)
    granted = sum(decision.refused is None for decision in decisions)
    times = [decision.at for decision in decisions]
    assert len(decisions) == 500
    assert granted == 60 + (max(times) - min(times)) // SECOND  # one more each second


async def test_200_at_once_on_10_slots_pass_10(stores: list[Redis]) -> None:
    decisions = await asked_at_once(stores, 200, SLOTS)
    assert sum(decision.refused is None for decision in decisions) == 10
    assert await left(stores[1], SLOTS) == [0]


async def test_concurrent_claims_cannot_pass_a_rate_of_tokens_together(
    stores: list[Redis],
) -> None:
    # Checked before and counted after, all of them would pass.
    decisions = await asyncio.gather(*(ask(store, (DAY, 4000)) for store in stores * 4))
    assert sum(decision.refused is None for decision in decisions) == 2


async def test_20_settlements_at_once_apply_once(stores: list[Redis]) -> None:
    asked = claim((TOKENS, 800), (DAY, 800), (SLOTS, 3))
    await stores[0].turn([], [asked])
    end = Settlement(asked.id, [(TOKENS, 800, 100), (DAY, 800, 100), (SLOTS, 3, 0)])
    await asyncio.gather(*(store.turn([end, end], []) for store in stores * 4))
    tokens, day, slots = await left(stores[0], TOKENS, DAY, SLOTS)
    assert (day, slots) == (9900, 10)
    assert 900 <= tokens < 1000


async def test_the_members_of_a_request_are_as_many_as_its_slots(
    stores: list[Redis], inside: Any
) -> None:
    asked = claim((SLOTS, 3))
    await stores[0].turn([], [asked])
    members = await inside.zrange(f"{PREFIX}:{SLOTS.key}", 0, -1)
    assert sorted(members) == [m.encode() for m in (asked.id, f"{asked.id}:2", f"{asked.id}:3")]
    assert (await ask(stores[1], (SLOTS, 8))).refused == 0
    await stores[1].turn([Settlement(asked.id, [(SLOTS, 3, 0)])], [])
    assert (await ask(stores[2], (SLOTS, 10))).refused is None


# All or nothing


async def test_a_refusal_changes_no_rule(store: Redis, inside: Any) -> None:
    await ask(store, (MINUTE, 7), (TOKENS, 900), (DAY, 10), (SLOTS, 2))
    before = await kept(inside)
    for _ in range(3):
        refused = await ask(store, (MINUTE, 1), (TOKENS, 500), (DAY, 5), (SLOTS, 1))
        assert refused.refused == 1
        assert (await ask(store, (MINUTE, 1), (SLOTS, 9))).refused == 1
    assert await kept(inside) == before


async def test_reset_times_do_not_move_between_calls(store: Redis) -> None:
    rules = (MINUTE, TOKENS, DAY)
    first = await ask(store, *((rule, rule.burst) for rule in rules))
    told = [first.at + reset for _, reset in first.levels]
    for _ in range(20):
        decision = await ask(store, *((rule, 1) for rule in rules))
        assert decision.refused is not None
        assert [decision.at + reset for _, reset in decision.levels] == told


async def test_a_first_request_larger_than_the_bucket_passes_and_leaves_a_debt(
    store: Redis,
) -> None:
    small = Rule("key", ["k"], "tokens", "minute", 100)
    first, then = await ask(store, (small, 512)), await ask(store, (small, 1))
    assert first.refused is None
    assert tuple(first.levels[0]) == (0, 512 * 600_000)
    assert (then.refused, then.at + then.wait) == (0, first.at + (512 - 99) * 600_000)


async def test_a_refund_and_an_overrun_move_the_bucket(store: Redis) -> None:
    first, then = claim((TOKENS, 800)), claim((TOKENS, 100))
    await store.turn([], [first])
    [decision] = await store.turn([Settlement(first.id, [(TOKENS, 800, 100)])], [then])
    assert 800 <= decision.levels[0][0] <= 801
    [refused] = await store.turn([Settlement(then.id, [(TOKENS, 100, 2000)])], [claim((TOKENS, 1))])
    assert refused.refused == 0
    assert 65 * SECOND < refused.wait < 67 * SECOND


async def test_a_claim_without_lines_is_granted(store: Redis) -> None:
    assert (await ask(store)).refused is None
    assert await store.levels([]) == []


async def test_a_whole_turn_is_decided_in_one_call(store: Redis, redis_server: RedisServer) -> None:
    rules = [Rule("key", [str(n)], "requests", "minute", 9) for n in range(MOST)]
    claims = [claim((rule, 1), (SLOTS, 1)) for rule in rules]
    decisions = await store.turn([], claims)
    assert [decision.refused for decision in decisions] == [None] * 10 + [1] * (MOST - 10)
    used = await redis_server.commands_used()
    assert (used["evalsha"], used["eval"]) == (1, 1)  # the first call brings the script


async def test_charges_on_more_rules_than_a_command_takes_arguments_apply(store: Redis) -> None:
    rules = [Rule("key", [str(n)], "tokens", "day", 9) for n in range(9000)]
    each = range(0, len(rules), MOST)
    charges = [
        Settlement(next(ids), [(r, 0, 4) for r in rules[n : n + MOST]], Close.CHARGE) for n in each
    ]
    await store.turn(charges, [])
    assert await left(store, rules[0], rules[-1]) == [5, 5]


async def test_a_request_may_have_more_slots_than_a_command_takes_arguments(store: Redis) -> None:
    wide = Rule("gateway", (), "concurrency", None, 10_000)
    asked = claim((wide, 9000))
    await store.turn([], [asked])
    await store.renew([asked])
    assert await left(store, wide) == [1000]
    await store.turn([Settlement(asked.id, [(wide, 9000, 0)])], [])
    assert await left(store, wide) == [10_000]


# One settlement, however often and in whatever order it comes


async def test_two_ends_of_one_request_in_one_call_apply_once(store: Redis, inside: Any) -> None:
    asked = claim((DAY, 100), (SLOTS, 1))
    await store.turn([], [asked])
    undo = Settlement(asked.id, [(DAY, 100, 0), (SLOTS, 1, 0)], Close.UNDO)
    await store.turn([undo, Settlement(asked.id, [(DAY, 100, 500), (SLOTS, 1, 0)]), undo], [])
    assert await left(store, DAY, SLOTS) == [10_000, 10]
    # The mark is there, whatever else ends the request: a late decision takes nothing.
    await store.turn([Settlement(asked.id, [(DAY, 100, 500), (SLOTS, 1, 0)])], [])
    await store.turn([], [asked])
    assert await left(store, DAY, SLOTS) == [10_000, 10]
    await store.turn([], [asked, asked])
    assert await left(store, DAY, SLOTS) == [10_000, 10]


async def test_a_claim_that_is_sent_twice_in_one_call_is_taken_once(store: Redis) -> None:
    asked = claim((DAY, 100), (SLOTS, 1))
    await store.turn([], [asked, asked])
    assert await left(store, DAY, SLOTS) == [9900, 9]


# Nothing is left behind


async def test_every_key_expires_when_it_means_nothing_any_more(
    stores: list[Redis], inside: Any
) -> None:
    dice = random.Random(3)
    month = Rule("key", ["k"], "requests", "month", 99)
    rules = (MINUTE, TOKENS, DAY, SLOTS, month)
    for _ in range(60):
        asked = claim(*((rule, dice.randint(1, 5)) for rule in dice.sample(rules, 3)))
        store = dice.choice(stores)
        await store.turn([], [asked])
        if dice.random() < 0.5:
            await store.renew([asked])
        if dice.random() < 0.7:
            close = dice.choice([Close.SETTLE, Close.UNDO, Close.CHARGE])
            await store.turn([Settlement(asked.id, [(r, n, 2) for r, n in asked.lines], close)], [])
    await store.probe()
    now = int((await ask(store)).at / 1000)
    levels = await store.levels(rules)
    longest = {rule.key: level[1] / 1000 for rule, level in zip(rules, levels, strict=True)}
    longest |= {SLOTS.key: LEASE * 1000, "workers": LEASE * 1000, "probe": 0}
    for key, (_, expires) in (await kept(inside)).items():
        prefix, _, name = key.decode().partition(":")
        assert prefix == PREFIX
        most = REMEMBERED if name.startswith("r:") else longest[name]
        assert 0 < expires - now <= most + 1500, key


@pytest.mark.parametrize("rule", [TOKENS, DAY, SLOTS])
async def test_a_refusal_never_makes_a_count_live_longer(
    store: Redis, inside: Any, rule: Rule
) -> None:
    await ask(store, (rule, rule.limit))
    key = f"{PREFIX}:{rule.key}"
    expires = await inside.pexpiretime(key)
    for _ in range(10):
        await asyncio.sleep(0.002)
        assert (await ask(store, (rule, rule.limit))).refused == 0
    assert await inside.pexpiretime(key) == expires


async def test_a_window_ends_when_it_ends_however_often_it_is_used(
    store: Redis, inside: Any
) -> None:
    for _ in range(10):
        await ask(store, (DAY, 1))
        assert abs(await inside.pexpiretime(f"{PREFIX}:{DAY.key}") % 86_400_000 - 1000) <= 1


async def test_a_settled_request_leaves_no_reservation(store: Redis, inside: Any) -> None:
    asked = claim((DAY, 5), (SLOTS, 1))
    await store.turn([], [asked])
    await store.turn([Settlement(asked.id, [(DAY, 5, 3), (SLOTS, 1, 0)])], [])
    assert await inside.keys() == [f"{PREFIX}:{DAY.key}".encode()]


async def test_a_renewal_holds_leases_and_the_reservation(store: Redis, inside: Any) -> None:
    asked, reservation = claim((SLOTS, 2), (DAY, 5)), f"{PREFIX}:r:id"
    asked = Claim("id", asked.lines)
    await store.turn([], [asked])
    await inside.pexpire(reservation, 5000)
    [(_, before), _] = await inside.zrange(f"{PREFIX}:{SLOTS.key}", 0, -1, withscores=True)
    await store.renew([asked])
    [(_, after), _] = await inside.zrange(f"{PREFIX}:{SLOTS.key}", 0, -1, withscores=True)
    assert after > before
    assert await inside.pttl(reservation) > REMEMBERED - 5000


async def test_a_renewal_counts_the_workers_of_the_last_lease(
    stores: list[Redis], inside: Any
) -> None:
    for number, store in enumerate(stores, 1):
        await store.renew([])
        await store.renew([])
        assert store.workers == number
    now = (await ask(stores[0])).at
    names = await inside.zrange(f"{PREFIX}:workers", 0, -1)
    await inside.zadd(f"{PREFIX}:workers", dict.fromkeys(names, now))
    await stores[0].renew([])
    assert stores[0].workers == 1


# Redis forgets


async def test_a_script_that_redis_forgot_runs_in_the_same_call(store: Redis, inside: Any) -> None:
    asked = claim((DAY, 5), (SLOTS, 1))
    await store.turn([], [asked])
    await inside.script_flush()
    assert (await ask(store, (DAY, 5))).refused is None
    await inside.script_flush()
    assert await left(store, DAY) == [9990]
    await inside.script_flush()
    await store.renew([asked])


async def test_after_flushall_counts_begin_anew_and_renewals_bring_back_slots(
    store: Redis, inside: Any
) -> None:
    asked = claim((DAY, 500), (SLOTS, 4))
    await store.turn([], [asked])
    await inside.flushall()
    await store.renew([asked])
    assert await left(store, DAY, SLOTS) == [10_000, 6]
    # No reservation: a refund would be one of what is not counted any more.
    await ask(store, (DAY, 100))
    await store.turn([Settlement(asked.id, [(DAY, 500, 100), (SLOTS, 4, 0)])], [])
    assert await left(store, DAY, SLOTS) == [9900, 10]


async def test_a_reset_forgets_rates_and_keeps_slots(store: Redis) -> None:
    await ask(store, (MINUTE, 5), (DAY, 5), (SLOTS, 5))
    await store.reset([MINUTE, DAY, SLOTS])
    assert await left(store, MINUTE, DAY, SLOTS) == [60, 10_000, 5]
    await store.reset([SLOTS])


async def test_a_clock_that_went_back_empties_no_window(store: Redis, inside: Any) -> None:
    [(_, reset)] = await store.levels([DAY])
    at = (await ask(store)).at
    tomorrow = window_start(at + reset + SECOND, DAY.width)
    await inside.set(f"{PREFIX}:{DAY.key}", f"10000:{tomorrow}")
    refused = await ask(store, (DAY, 1))
    assert refused.refused == 0
    assert refused.at + refused.wait == window_end(tomorrow, DAY.width)


async def test_a_clock_that_went_back_fills_no_bucket(store: Redis, inside: Any) -> None:
    at = (await ask(store)).at
    await inside.set(f"{PREFIX}:{TOKENS.key}", f"{400 * TOKENS.unit}:{at + 3600 * SECOND}")
    assert await left(store, TOKENS) == [600]


async def test_a_clock_that_went_back_keeps_nothing_that_is_given_back(
    store: Redis, inside: Any
) -> None:
    asked = claim((MINUTE, 20))
    now = (await ask(store)).at
    kept = f"{30 * MINUTE.unit}:{now}:{MINUTE.unit}:{MINUTE.drain}:{now + 3600 * SECOND}"
    await inside.set(f"{PREFIX}:{MINUTE.key}", kept)
    await store.turn([], [asked])
    assert (await left(store, MINUTE))[0] in (10, 11, 12)
    await store.turn([Settlement(asked.id, [(MINUTE, 20, 0)])], [])
    assert (await left(store, MINUTE))[0] in (30, 31, 32)


async def test_what_cannot_be_asked_is_unavailable(redis_server: RedisServer) -> None:
    nobody = Redis("redis://127.0.0.1:1/0", PREFIX)
    for call in (ask(nobody, (DAY, 1)), nobody.renew([]), nobody.levels([DAY]), nobody.probe()):
        with pytest.raises(Unavailable):
            await call
    await nobody.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://h?socket_timeout=abc",
        "redis://h?nonsense=1",
        "redis+sentinel://h/fairgate/0?nonsense=1",
        "redis+cluster://h?nonsense=1",
    ],
)
async def test_a_parameter_that_the_client_does_not_know_is_told_at_the_start(url: str) -> None:
    with pytest.raises(BadUrl, match="not understood"):
        Redis(url.replace("h?", "user:secret@h?"), "{fairgate}")
