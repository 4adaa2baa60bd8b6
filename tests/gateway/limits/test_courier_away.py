"""A store that fails: the configured mode decides, nothing waits for ever, all is told after it."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from gateway.limits import courier as module
from gateway.limits.base import Close, Decision, Unavailable
from gateway.limits.courier import Mode
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
    gone,
    ids,
    nothing,
    spent,
)

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def store() -> Scripted:
    return Scripted()


# Calls that fail


async def test_a_call_without_an_answer_ends_and_the_claim_is_decided_here(
    store: Scripted,
) -> None:
    async with carried(store) as courier:
        store.hangs = True
        assert (await courier.decide(claim("a"))).refused is None
        assert courier.degraded
        assert courier.decided_here == 1


async def test_those_behind_a_call_that_failed_wait_for_no_second_one(store: Scripted) -> None:
    async with carried(store) as courier:
        store.hangs = True
        first = ask(courier, *range(128))
        await until(lambda: bool(store.calls))
        behind = ask(courier, *range(128, 300))
        await asyncio.gather(*first, *behind)
        assert [len(turn.claims) for turn in store.turns if turn.claims] == [128]


async def test_an_answer_that_was_there_when_our_own_loop_was_late_counts(store: Scripted) -> None:
    async with carried(store) as courier:
        store.gate = asyncio.Event()
        original = store._answer

        async def unread(call: object) -> None:
            await original(call)  # type: ignore[arg-type]
            for _ in range(5):  # what a client does with what it reads
                await asyncio.sleep(0)

        store._answer = unread  # type: ignore[method-assign]
        (asked,) = ask(courier, "a")
        await until(lambda: bool(store.calls))
        asyncio.get_running_loop().call_later(0.02, store.gate.set)
        time.sleep(0.15)
        await asked
        assert not courier.degraded
        assert courier.decided_here == 0


async def test_nothing_is_left_of_the_claims_of_a_failed_call(store: Scripted) -> None:
    """Of one that was let in here the leases stay, should there be any: it lives."""
    async with carried(store) as courier:
        store.level = (0, 0)  # of all but `b`: it has no line that a share here refuses
        await courier.decide(claim("before"))
        store.away = True
        refused, granted = await asyncio.gather(
            courier.decide(claim("a")), courier.decide(claim("b", [(SLOTS, 1)]))
        )
        assert refused.refused is not None
        assert granted.refused is None
        store.away = False
        await until(lambda: not courier._settlements)
        courier.settle(claim("b", [(SLOTS, 1)]), [(SLOTS, 1, 0)], 0)
        await until(lambda: not courier._settlements and not courier.degraded)
    undone = [s for s in store.settlements if s.close is Close.UNDO]
    assert {(s.id, tuple(s.lines)) for s in undone} == {
        ("a", tuple(nothing(REQUESTS, TOKENS, SLOTS))),
        ("b", ()),
    }
    assert [(s.id, s.lines) for s in store.settlements if s.close is Close.SETTLE] == [
        ("b", [(SLOTS, 1, 0)])
    ]


async def test_settlements_of_a_failed_call_are_kept_and_sent_again_first(store: Scripted) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(5)))
        store.calls.clear()
        store.away = True
        for name in range(5):
            courier.settle(claim(name), spent(), 0)
        await until(lambda: courier._breaker.open)
        store.away = False
        await until(lambda: not courier.degraded and not courier._settlements)
        await courier.decide(claim("next"))
    sent = [ids(turn.settlements) for turn in store.turns]
    assert sent[:4] == [[*"01234"]] * 4, "three that failed, and the one that did not"
    assert not any(sent[4:])


async def test_at_most_10_000_settlements_wait_and_the_rest_is_counted_as_dropped(
    store: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._MOST_WAITING == 10_000
    monkeypatch.setattr(module, "_MOST_WAITING", 10)
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(30)))
        store.calls.clear()
        store.gate = asyncio.Event()
        for name in range(5):
            courier.settle(claim(name), spent(), 0)
        await until(lambda: bool(store.calls))
        for name in range(5, 30):  # while the first five are under way
            courier.settle(claim(name), spent(), 0)
        store.gate.set()
        await until(lambda: not courier._settlements)
        assert courier.dropped == 20
    assert ids(store.settlements) == [*map(str, range(10))]


async def test_what_a_client_may_raise_is_a_failure_like_any_other(
    store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried(store) as courier:
        store.broken = KeyError("reply")
        assert (await courier.decide(claim("a"))).refused is None
        store.broken = None
        await until(lambda: not courier.degraded)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("mode", ["local", "open", "closed"])
async def test_a_fault_of_our_own_leaves_no_claim_waiting_and_the_courier_at_work(
    store: Scripted, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried(store, mode) as courier:
        store.wrong = True
        answers = await asyncio.wait_for(
            asyncio.gather(*ask(courier, *range(200)), return_exceptions=True), 5
        )
        assert len(answers) == 200
        assert all(isinstance(a, Decision | Unavailable) for a in answers)
        store.wrong = False
        await until(lambda: not courier.degraded)
        assert (await courier.decide(claim("after"))).refused is None

        def fault(*_: object) -> None:
            raise RuntimeError

        courier._deliver = fault  # type: ignore[method-assign, assignment]
        (answer,) = await asyncio.gather(*ask(courier, "worse"), return_exceptions=True)
        assert isinstance(answer, Decision | Unavailable)
        await until(lambda: not courier._breaker.open)
        courier._renew = fault  # type: ignore[method-assign, assignment]
        courier._renew_at = 0
        (answer,) = await asyncio.gather(*ask(courier, "worst"), return_exceptions=True)
        assert isinstance(answer, Decision | Unavailable)
    assert [r for r in caplog.records if r.levelno == logging.ERROR]


# While the store is away


async def test_each_change_of_state_is_one_line_whatever_comes_meanwhile(
    store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried(store) as courier:
        for _ in range(2):
            caplog.clear()
            await gone(courier, store)
            await asyncio.gather(*ask(courier, *range(300)))
            await until(lambda p=store.probes: store.probes > p + 3)  # type: ignore[misc]
            (lost,) = [r.getMessage() for r in caplog.records]
            assert lost == "limits: Redis is away (gone); going on as 'local'"
            for name in range(300):
                courier.settle(claim(name), spent(), 0)
            caplog.clear()
            store.away = False
            await until(lambda: not courier.degraded)
            (back,) = [r.getMessage() for r in caplog.records]
            assert back.startswith("limits: Redis is back; ")


async def test_no_request_waits_for_a_store_that_is_known_to_be_away(store: Scripted) -> None:
    async with carried(store) as courier:
        await gone(courier, store)
        store.calls.clear()
        store.hangs = True
        for name in range(50):
            deciding = courier.decide(claim(name))
            with pytest.raises(StopIteration):  # it ends without ever waiting
                deciding.send(None)
        assert not store.turns


async def test_open_grants_everything_and_charges_it_later(store: Scripted) -> None:
    async with carried(store, "open") as courier:
        await gone(courier, store)
        decisions = await asyncio.gather(*ask(courier, *range(200)))
        assert {decision.refused for decision in decisions} == {None}
        for name in range(200):
            courier.settle(claim(name), spent(7), microseconds()())
        store.calls.clear()
        store.away = False
        await until(lambda: any(s.close is Close.CHARGE for s in store.settlements))
    (charge,) = [s for s in store.settlements if s.close is Close.CHARGE]
    assert set(charge.lines) == {(REQUESTS, 0, 200), (TOKENS, 0, 1400)}


async def test_closed_refuses_everything_from_the_first_failure_on(store: Scripted) -> None:
    async with carried(store, "closed") as courier:
        store.away = True
        for name in range(10):
            with pytest.raises(Unavailable):
                await courier.decide(claim(name))
            assert courier.degraded
        assert courier.live == 0
        store.away = False
        await until(lambda: not courier.degraded)
        assert (await courier.decide(claim("a"))).refused is None


@pytest.mark.parametrize(("known", "heard", "share"), [(1, 1, 1), (1, 4, 4), (4, 1, 4), (2, 8, 8)])
async def test_local_grants_a_share_by_the_number_of_workers(
    store: Scripted, known: int, heard: int, share: int
) -> None:
    async with carried(store, "local", known) as courier:
        store.workers = heard
        await gone(courier, store)
        for rule, limit in ((REQUESTS, 60), (SLOTS, 8)):
            lines = [(rule, 1)]
            asked = [courier.decide(claim(f"{rule.key}{n}", lines)) for n in range(100)]
            decisions = await asyncio.gather(*asked)
            assert [d.refused for d in decisions].count(None) == limit // share


async def test_local_decides_from_the_very_first_failure_on(store: Scripted) -> None:
    """A call that fails before the store is given up lets nobody past the rules."""
    async with carried(store) as courier:
        store.hangs = True
        decisions = await asyncio.gather(*ask(courier, *range(100)))
        assert [decision.refused for decision in decisions].count(None) == 8
        assert not courier._breaker.open


async def test_local_goes_on_from_the_level_last_seen_and_what_lives(store: Scripted) -> None:
    async with carried(store) as courier:
        store.level = (3, 57_000_000)
        await courier.decide(claim("a", [(REQUESTS, 1)]))
        store.level = (5, 0)
        await courier.decide(claim("b", [(SLOTS, 5)]))
        await gone(courier, store)
        requests = [await courier.decide(claim(n, [(REQUESTS, 1)])) for n in range(10)]
        assert [decision.refused for decision in requests].count(None) == 3
        slots = [await courier.decide(claim(f"s{n}", [(SLOTS, 1)])) for n in range(10)]
        assert [decision.refused for decision in slots].count(None) == 3


async def test_a_settlement_counts_here_too_while_the_store_is_away(store: Scripted) -> None:
    async with carried(store) as courier:
        store.level = (0, 86_400_000_000)
        await courier.decide(claim("before", [(TOKENS, 100), (SLOTS, 1)]))
        await gone(courier, store)
        assert (await courier.decide(claim("a"))).refused == 1
        courier.settle(claim("before"), spent(0), microseconds()())
        assert (await courier.decide(claim("a"))).refused is None


async def test_what_was_used_here_is_charged_once_and_first_when_the_store_is_back(
    store: Scripted,
) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, "x", "y"))
        await gone(courier, store)
        courier.settle(claim("x"), spent(), 0)
        await asyncio.gather(*ask(courier, "a", "b", "c"))
        courier.settle(claim("a"), spent(40), microseconds()())
        courier.settle(claim("b"), nothing(REQUESTS, TOKENS, SLOTS), microseconds()())
        store.calls.clear()
        store.away = False
        await until(lambda: len(store.turns) > 0)
        courier.settle(claim("c"), spent(9), microseconds()())  # it outlived the outage
        await courier.decide(claim("z"))
        await until(lambda: not courier._settlements)
    first, *later = [s for s in store.settlements if s.close is Close.CHARGE]
    assert store.settlements[0] is first
    assert set(first.lines) == {(REQUESTS, 0, 1), (TOKENS, 0, 40)}
    assert [set(s.lines) for s in later] == [{(REQUESTS, 0, 1), (TOKENS, 0, 9)}]
    settled = [(s.id, s.lines) for s in store.settlements if s.close is Close.SETTLE]
    assert settled == [("x", spent()), ("c", [(SLOTS, 1, 0)])]


async def test_a_charge_whose_call_failed_is_sent_again_as_the_same(store: Scripted) -> None:
    async with carried(store) as courier:
        store.hangs = True
        await courier.decide(claim("a"))
        courier.settle(claim("a"), spent(40), microseconds()())
        await until(lambda: courier._breaker.open)
        store.hangs = False
        await until(lambda: not courier.degraded and not courier._settlements)
    charges = [s for s in store.settlements if s.close is Close.CHARGE]
    assert len(charges) > 1
    assert len({charge.id for charge in charges}) == 1
    assert len({tuple(charge.lines) for charge in charges}) == 1


async def test_a_store_that_answers_but_too_slowly_stays_away(
    store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried(store) as courier:
        await gone(courier, store)
        caplog.clear()
        store.away = False
        store.gate = asyncio.Event()
        await until(lambda p=store.probes: store.probes > p + 2)  # type: ignore[misc]
        assert courier.degraded
        assert not caplog.records


async def test_levels_are_those_that_hold_where_they_are_asked(store: Scripted) -> None:
    async with carried(store) as courier:
        store.level = (42, 0)
        assert await courier.levels([REQUESTS] * 300) == [(42, 0)] * 300
        await gone(courier, store)
        assert await courier.levels([REQUESTS]) == [(60, 0)]


async def test_each_outage_goes_on_from_what_was_seen_before_it(store: Scripted) -> None:
    async with carried(store) as courier:
        for left in (3, 5):
            store.level = (left, (60 - left) * 1_000_000)
            await courier.decide(claim(f"before{left}", [(REQUESTS, 1)]))
            await gone(courier, store)
            asked = [await courier.decide(claim((left, n), [(REQUESTS, 1)])) for n in range(9)]
            assert [decision.refused for decision in asked].count(None) == left
            store.away = False
            await until(lambda: not courier.degraded)


async def test_nothing_is_renewed_once_a_call_between_has_shown_it_away(store: Scripted) -> None:
    async with carried(store) as courier:
        await asyncio.gather(*ask(courier, *range(300)))
        for _ in range(9):  # one more is half of the last twenty
            courier._breaker.succeeded()
            courier._breaker.failed()
        store.calls.clear()
        courier.settle(claim(0), spent(), 0)
        courier._renew_at = 0
        store.on_answer = lambda: setattr(store, "away", store.calls[-1].kind == "turn")
        await until(lambda: courier._breaker.open)
        assert [call.kind for call in store.calls] == ["renew", "turn"]


async def test_what_was_reset_while_away_is_not_charged_afterwards(store: Scripted) -> None:
    async with carried(store) as courier:
        await gone(courier, store)
        await courier.decide(claim("a"))
        courier.settle(claim("a"), spent(), microseconds()())
        await courier.reset([REQUESTS])
        store.away = False
        await until(lambda: not courier.degraded and bool(store.settlements))
    (charge,) = [s for s in store.settlements if s.close is Close.CHARGE]
    assert charge.lines == [(TOKENS, 0, 100)]


async def test_what_was_reset_is_not_remembered_from_before(store: Scripted) -> None:
    async with carried(store) as courier:
        store.level = (0, 60_000_000)
        await courier.decide(claim("a"))
        await courier.reset([REQUESTS, TOKENS])
        store.away = True
        assert (await courier.decide(claim("b"))).refused is None
