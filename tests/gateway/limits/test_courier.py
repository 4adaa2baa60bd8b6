"""What a turn of the loop asks goes in one call; whoever leaves, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.limits import courier as module
from gateway.limits.base import Close
from gateway.limits.courier import Courier
from gateway.limits.memory import microseconds
from tests.fakes.gateway import until
from tests.gateway.limits.scripted import (
    REQUESTS,
    SLOTS,
    TOKENS,
    Scripted,
    ask,
    carried,
    claim,
    ended,
    ids,
    nothing,
    spent,
)

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def store() -> Scripted:
    return Scripted()


# What is gathered


async def test_an_idle_courier_asks_at_once(store: Scripted) -> None:
    async with carried(store) as courier:
        for name in "abc":
            assert (await courier.decide(claim(name))).refused is None
    assert [ids(turn.claims) for turn in store.turns] == [["a"], ["b"], ["c"]]


async def test_what_one_turn_of_the_loop_asks_goes_in_calls_of_128(store: Scripted) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(300)))
        assert courier.live == 300
    assert [len(turn.claims) for turn in store.turns] == [128, 128, 44]
    assert [name for turn in store.turns for name in ids(turn.claims)] == [*map(str, range(300))]


async def test_one_call_at_a_time_and_what_comes_meanwhile_goes_together(
    store: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with carried(store) as courier:
        store.gate = asyncio.Event()
        first = ask(courier, "a")
        await until(lambda: bool(store.calls))
        monkeypatch.setattr(module, "_RENEW_EVERY", 0.001)
        courier._renew_at = 0
        rest = ask(courier, "b", "c")
        await asyncio.sleep(0.005)
        assert len(store.calls) == 1
        store.gate.set()
        await asyncio.gather(*first, *rest)
        assert [ids(turn.claims) for turn in store.turns] == [["a"], ["b", "c"]]
        await until(lambda: len(store.renewals) > 2)
    assert store.together == 1


async def test_settlements_go_before_claims_in_their_order_128_a_call(store: Scripted) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(200)))
        store.calls.clear()
        for name in range(200):
            courier.settle(claim(name), spent(), 0)
        await courier.decide(claim("next"))
        await until(lambda: len(store.settlements) == 200)
    assert [(len(t.settlements), ids(t.claims)) for t in store.turns] == [(128, ["next"]), (72, [])]
    assert ids(store.settlements) == [*map(str, range(200))]


async def test_a_second_settlement_does_nothing(store: Scripted) -> None:
    async with carried(store) as courier:
        await courier.decide(claim("a"))
        courier.settle(claim("a"), spent(1), 0)
        courier.settle(claim("a"), spent(2), 0)
        await courier.decide(claim("b"))
    assert [s.lines for s in store.settlements] == [spent(1)]


async def test_a_refused_claim_has_nothing_to_settle(store: Scripted) -> None:
    store.refused = {"a"}
    async with carried(store) as courier:
        decision = await courier.decide(claim("a"))
        assert (decision.refused, decision.wait) == (0, 1_000_000)
        assert courier.live == 0


# Who leaves


async def test_a_claim_whose_caller_left_before_the_call_is_not_sent(store: Scripted) -> None:
    async with carried(store) as courier:
        store.gate = asyncio.Event()
        (first,) = ask(courier, "a")
        await until(lambda: bool(store.calls))
        leaving, staying = ask(courier, "b", "c")
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, staying)
        assert courier.live == 2
    assert [ids(turn.claims) for turn in store.turns] == [["a"], ["c"]]


async def test_what_was_granted_to_a_caller_who_left_during_the_call_is_given_back(
    store: Scripted,
) -> None:
    async with carried(store) as courier:
        store.gate = asyncio.Event()
        (leaving,) = ask(courier, "a")
        await until(lambda: bool(store.calls))
        leaving.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        await until(lambda: bool(store.settlements))
        assert courier.live == 0
    (back,) = store.settlements
    assert (back.id, back.close) == ("a", Close.SETTLE)
    assert back.lines == nothing(REQUESTS, TOKENS, SLOTS)


@pytest.mark.parametrize("away", [False, True])
async def test_so_is_what_was_granted_to_one_who_left_as_the_answer_came(
    store: Scripted, away: bool
) -> None:
    """Cancelled when the answer is there, but the caller has not gone on yet."""
    loop = asyncio.get_running_loop()
    async with carried(store) as courier:
        store.away = away
        (leaving,) = ask(courier, "a")
        # The courier goes on with the answer, then this happens, and only then the caller's turn.
        store.on_answer = lambda: loop.call_soon(leaving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert courier.live == 0
        store.away = False
        await until(lambda: bool(store.settlements) and not courier._settlements)
    assert {line[0] for s in store.settlements for line in s.lines} == {REQUESTS, TOKENS, SLOTS}
    assert {line[2] for s in store.settlements for line in s.lines} == {0}
    assert {s.close for s in store.settlements} <= {Close.UNDO, Close.SETTLE}


# Renewals


async def renewing(courier: Courier, store: Scripted) -> asyncio.Event:
    """The first call of a renewal is under way, and answered when this is set."""
    store.calls.clear()
    store.gate = asyncio.Event()
    courier._renew_at = 0
    courier._wake.set()
    await until(lambda: bool(store.calls))
    return store.gate


async def test_all_that_lives_is_renewed_in_calls_of_128_between_which_others_go(
    store: Scripted,
) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(300)))
        gate = await renewing(courier, store)
        asked = ask(courier, "new")
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*asked)
        await until(lambda: len(store.renewals) == 3)
    assert [call.kind for call in store.calls] == ["renew", "turn", "renew", "renew"]
    assert [len(claims) for claims in store.renewals] == [128, 128, 44]
    assert {name for claims in store.renewals for name in ids(claims)} == {*map(str, range(300))}


async def test_a_renewal_brings_back_nothing_that_was_given_up(store: Scripted) -> None:
    """What ended before its call is not in it, what ends during the call is settled after it."""
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(200)))
        gate = await renewing(courier, store)
        courier.settle(claim(0), spent(), 0)
        courier.settle(claim(199), spent(), 0)
        gate.set()
        await until(lambda: len(store.renewals) == 2)
    assert [call.kind for call in store.calls] == ["renew", "turn", "renew"]
    assert ids(store.calls[1].settlements) == ["0", "199"]
    assert "0" in ids(store.renewals[0])
    assert ids(store.renewals[1]) == [*map(str, range(128, 199))]


async def test_what_was_let_in_here_is_renewed_as_soon_as_the_store_answers(
    store: Scripted,
) -> None:
    async with carried(store) as courier:
        store.away = True
        await courier.decide(claim("a"))
        store.away = False
        await until(lambda: store.renewals == [[claim("a")]])
        courier.settle(claim("a"), spent(), 0)
        freed = ("a", [(SLOTS, 1, 0)])
        await until(lambda: freed in [(s.id, s.lines) for s in store.settlements])


# The beginning and the end


async def test_it_starts_without_a_store_and_says_so_once(
    store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    store.away = True
    async with carried(store) as courier:
        assert courier.degraded
        assert (await courier.decide(claim("a"))).refused is None
        await until(lambda: store.probes > 3)
        assert [r.getMessage() for r in caplog.records] == [
            "limits: Redis is away (gone); going on as 'local'"
        ]
        store.away = False
        await until(lambda: not courier.degraded)


async def with_ends_to_tell(store: Scripted) -> Courier:
    """A courier that carries no more, and has 300 settlements to deliver."""
    courier = Courier(store, "local", microseconds())
    await courier.start()
    task = asyncio.create_task(courier.run())
    await asyncio.gather(*ask(courier, *range(300)))
    await ended(task)
    for name in range(300):
        courier.settle(claim(name), spent(), 0)
    return courier


async def test_the_end_delivers_what_waits(store: Scripted) -> None:
    courier = await with_ends_to_tell(store)
    await courier.close(2)
    assert ids(store.settlements) == [*map(str, range(300))]
    assert store.closed


async def test_whatever_a_client_raises_at_the_start_is_a_store_that_is_away(
    store: Scripted,
) -> None:
    courier = Courier(store, "local", microseconds())
    store.broken = KeyError("reply")
    await courier.start()
    assert courier.degraded


@pytest.mark.parametrize("fault", ["away", "hangs", "slow"])
async def test_the_end_is_not_delayed_by_a_store_that_is_away(
    store: Scripted, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    courier = await with_ends_to_tell(store)
    if fault == "slow":

        async def slowly(call: object) -> None:
            await asyncio.sleep(0.04)

        store._answer = slowly  # type: ignore[method-assign]
        courier._settlements.extend(list(courier._settlements) * 100)
    else:
        setattr(store, fault, True)
    began = time.monotonic()
    await courier.close(2 if fault != "slow" else 0.2)
    assert time.monotonic() - began < 1
    assert store.closed
    (told,) = [r.getMessage() for r in caplog.records if "at the end" in r.getMessage()]
    assert int(told.split()[1]) == len(courier._settlements) >= 300


async def test_claims_of_a_call_that_the_workers_end_cut_short_are_undone(store: Scripted) -> None:
    courier = Courier(store, "local", microseconds())
    await courier.start()
    task = asyncio.create_task(courier.run())
    store.gate = asyncio.Event()
    (asked,) = ask(courier, "a")
    await until(lambda: bool(store.turns))
    asked.cancel()
    await ended(task)
    store.gate = None
    await courier.close(2)
    (undone,) = store.settlements
    assert (undone.id, undone.close) == ("a", Close.UNDO)
    assert undone.lines == nothing(REQUESTS, TOKENS, SLOTS)
