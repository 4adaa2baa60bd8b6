"""Both stores do, to the microsecond and the token, what the model says; whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from typing import Any, ClassVar, get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gateway.limits.base import Claim, Close, Counted, Decision, Form, Rule, Settlement, Window
from tests.fakes.redis import RedisServer
from tests.gateway.limits.model import LEASE, Model, ends, microseconds
from tests.gateway.limits.stores import Face, InMemory, InRedis, slots

#: Levels that stay exact in the scripts however much a run piles up: 2^53 is the end.
_LARGEST_ROOM = 2**43
_MOST_SLOTS = 2500

_DATES = """
1970-01-31T23:59:59.999999 2000-02-28T23:59:30 2024-02-29T23:59:59.999 2026-12-31T23:59:59.999999
2027-03-01T00:00 2099-12-31T23:59 2100-02-28T12:00
""".split()
_starts = st.sampled_from([microseconds(datetime.fromisoformat(f"{d}+00:00")) for d in _DATES])
_limits = st.one_of(
    st.integers(1, 12),
    st.sampled_from([7, 13, 60, 97, 600, 7919, 104_729, 500_000, 10_000_000, 999_999_937]),
    st.integers(1, 2**40),
)
_names = st.sampled_from(["search", "a/b:c", "}{", "{x}", "ключ", ""])


@st.composite
def _rules(draw: st.DrawFn) -> list[Rule]:
    windows = st.sampled_from([None, None, *get_args(Window), "second", "minute"])
    made: list[Rule] = []
    for number, window in enumerate(draw(st.lists(windows, min_size=1, max_size=6))):
        limit, owner = draw(_limits), (draw(_names), str(number))
        if window is None:
            made.append(Rule("key", owner, "concurrency", None, min(limit, _MOST_SLOTS)))
            continue
        counted: Counted = draw(st.sampled_from(("requests", "tokens")))
        burst = None
        if window in ("second", "minute"):
            burst = draw(st.sampled_from([None, 1, limit // 3 + 1, 2 * limit]))
            while Rule("team", owner, counted, window, limit, burst).room > _LARGEST_ROOM:
                limit, burst = limit // 7 + 1, None
        made.append(Rule("team", owner, counted, window, limit, burst))
    return made


class Limits(RuleBasedStateMachine):
    """Mutable state: a store, the model beside it, every claim so far, and the last wait told."""

    make: ClassVar[Callable[[], Face]]

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).make()
        self.store.flush()
        self.model = Model(leases_end=self.store.leases_end)
        self.claims: dict[str, Claim] = {}
        self.charges: list[str] = []
        self.ids = (f"id-{number}" for number in count())
        self.wait = 0

    def teardown(self) -> None:
        self.store.check()

    @initialize(made=_rules(), at=_starts)
    def begin(self, made: list[Rule], at: int) -> None:
        self.kept = made
        self.store.move(at)

    @rule(data=st.data())
    def pass_time(self, data: st.DataObject) -> None:
        now = self.store.now
        own = data.draw(st.sampled_from(self.kept))
        reset = self.model.level(own, now)[1]
        window = microseconds(ends(data.draw(st.sampled_from(["hour", "day", "month"])), now)) - now
        edges = [self.wait, reset, LEASE, window]
        steps = [1, 999, 10**6, LEASE // 3, 29 * 24 * 3600 * 10**6, *edges, *(e - 1 for e in edges)]
        self.store.move(now + max(0, data.draw(st.sampled_from(steps))))

    @rule(data=st.data(), worker=st.integers(0, 1))
    def turn(self, data: st.DataObject, worker: int) -> None:
        settlements = [self._settlement(data) for _ in range(data.draw(st.integers(0, 3)))]
        claims = [self._claim(data) for _ in range(data.draw(st.integers(not settlements, 4)))]
        decisions = self.store.turn(settlements, claims, worker)
        at = self.store.now
        for settlement in settlements:
            self.model.settle(settlement, at)
        assert len(decisions) == len(claims)
        for claim, decision in zip(claims, decisions, strict=True):
            assert decision.at == at
            known = self.model.knows(claim.id)
            expected = self.model.decide(claim, at)
            assert _told(decision, known) == _told(expected, known)
            self.wait = expected.wait

    @rule(data=st.data(), worker=st.integers(0, 1))
    def renew(self, data: st.DataObject, worker: int) -> None:
        live = [id for id in self.claims if id in self.model.live]
        chosen = data.draw(st.sets(st.sampled_from(live), max_size=4)) if live else ()
        claims = [self.claims[id] for id in chosen]
        self.store.renew(claims, worker)
        self.model.renew(claims, self.store.now)

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        chosen = [data.draw(st.sampled_from(self.kept))]
        self.store.reset(chosen)
        self.model.reset(chosen)

    @rule(really=st.integers(0, 3))
    def flush(self, really: int) -> None:
        if not really:
            self.store.flush()
            self.model.flush()

    @invariant()
    def every_level_is_that_of_the_model(self) -> None:
        if hasattr(self, "kept"):
            told = [tuple(level) for level in self.store.levels(self.kept)]
            assert told == self.model.levels(self.kept, self.store.now)

    def _claim(self, data: st.DataObject) -> Claim:
        """A new one, or rarely one that was sent before, and may have been undone since."""
        if self.claims and data.draw(st.integers(0, 9)) == 9:
            return self.claims[data.draw(st.sampled_from(sorted(self.claims)))]
        chosen = data.draw(st.lists(st.sampled_from(self.kept), unique=True, max_size=5))
        claim = Claim(next(self.ids), tuple((own, self._amount(data, own)) for own in chosen))
        self.claims[claim.id] = claim
        return claim

    def _amount(self, data: st.DataObject, own: Rule) -> int:
        left = self.model.level(own, self.store.now)[0]
        edges = [left, left + 1, own.burst, own.burst + 1, 2 * own.burst]
        if own.form is Form.SLOTS:
            return max(1, min(data.draw(st.sampled_from([1, 2, *edges])), _MOST_SLOTS))
        drawn = st.one_of(st.sampled_from([0, 1, 1, *edges]), st.integers(0, own.burst))
        return data.draw(drawn)

    def _settlement(self, data: st.DataObject) -> Settlement:
        close = data.draw(st.sampled_from([Close.SETTLE, Close.SETTLE, Close.UNDO, Close.CHARGE]))
        if close is Close.CHARGE:
            id = data.draw(st.sampled_from([next(self.ids), *self.charges[-2:]]))
            self.charges.append(id)
            rates = [own for own in self.kept if own.form is not Form.SLOTS]
            return Settlement(id, [(own, 0, self._amount(data, own)) for own in rates], close)
        if not self.claims or (close is Close.UNDO and data.draw(st.booleans())):
            claim = self._claim(data)  # which was not sent, or will be later
        else:
            claim = self.claims[data.draw(st.sampled_from(sorted(self.claims)))]
        if close is Close.UNDO:
            return Settlement(claim.id, [(own, was, 0) for own, was in claim.lines], close)
        lines = slots(claim)
        for own, was in claim.lines:
            if own.form is not Form.SLOTS:
                used = data.draw(st.sampled_from([0, was // 2, was, was + 1, was + own.burst]))
                lines.append((own, was, used))
        return Settlement(claim.id, lines, close)


def _told(decision: Decision, known: bool) -> tuple[Any, ...]:
    """What counts of a decision; nobody waits for one on a claim that was known before."""
    levels = [tuple(level) for level in decision.levels]
    return (levels,) if known else (levels, decision.refused, decision.wait)


def _run(make: Callable[[], Face], examples: int, steps: int) -> None:
    machine = type("Machine", (Limits,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def in_redis(shared_redis: RedisServer) -> Iterator[InRedis]:
    store = InRedis(shared_redis.url)
    yield store
    store.close()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Face:
    made: Face = InMemory() if request.param == "memory" else request.getfixturevalue("in_redis")
    made.flush()
    return made


@pytest.mark.parametrize("window", ["hour", "day", "month"])
@pytest.mark.parametrize("used", [0, 90])
def test_a_settlement_after_the_end_of_its_window_changes_no_later_one(
    store: Face, window: Window, used: int
) -> None:
    own = Rule("key", ["k"], "tokens", window, 100)
    store.move(microseconds(datetime.fromisoformat("2026-12-31T23:59:59.999999+00:00")))
    store.turn([], [Claim("early", ((own, 50),))], 0)
    store.move(store.now + 1)
    store.turn([], [Claim("late", ((own, 30),))], 0)
    store.turn([Settlement("early", [(own, 50, used)])], [], 0)
    assert store.levels([own])[0][0] == 70


def test_a_slot_that_is_freed_is_there_for_the_next_claim_of_the_same_call(store: Face) -> None:
    own = Rule("key", ["k"], "concurrency", None, 2)
    store.turn([], [Claim("1", ((own, 2),))], 0)
    ended = Settlement("1", [(own, 2, 0)])
    [one, other] = store.turn([ended], [Claim("2", ((own, 1),)), Claim("3", ((own, 2),))], 0)
    assert (one.refused, tuple(one.levels[0])) == (None, (1, 0))
    assert other.refused == 0


def test_a_lease_ends_after_30_s_to_the_microsecond_unless_it_is_renewed(in_redis: InRedis) -> None:
    in_redis.flush()
    own = Rule("key", ["k"], "concurrency", None, 3)
    claims = [Claim("1", ((own, 1),)), Claim("2", ((own, 2),))]
    start = 1_800_000_000 * 10**6
    in_redis.move(start)
    in_redis.turn([], claims, 0)
    in_redis.move(start + 10**7)
    in_redis.renew(claims[1:], 1)
    left = []
    for at in (start + LEASE - 1, start + LEASE, start + LEASE + 10**7 - 1, start + LEASE + 10**7):
        in_redis.move(at)
        left += [level for level, _ in in_redis.levels([own])]
    assert left == [0, 1, 1, 3]


@pytest.mark.parametrize("window", ["minute", "day"])
def test_a_refund_never_leaves_more_than_all(store: Face, window: Window) -> None:
    own = Rule("key", ["k"], "tokens", window, 100)
    store.move(microseconds(datetime.fromisoformat("2026-12-31T12:00:00+00:00")))
    store.turn([], [Claim("1", ((own, 50),))], 0)
    store.reset([own])
    store.turn([Settlement("1", [(own, 50, 10)])], [Claim("2", ((own, 60),))], 0)
    assert store.levels([own])[0][0] == 40


def test_what_has_drained_is_not_given_back_a_second_time(store: Face) -> None:
    """Else it would be others' use that is taken off, and more would pass than the bucket holds."""
    own = Rule("key", ["k"], "requests", "minute", 1)
    store.flush()
    start = microseconds(datetime.fromisoformat("2026-12-31T12:00:00+00:00"))
    passed: list[Decision] = []
    for minute in range(3):
        store.move(start + minute * 60 * 10**6)
        passed += store.turn([], [Claim(str(minute), ((own, 1),))], 0)
    assert [decision.refused for decision in passed] == [None] * 3
    failed = [Settlement("0", [(own, 1, 0)]), Settlement("1", [(own, 1, 0)], Close.UNDO)]
    [decision] = store.turn(failed, [Claim("3", ((own, 1),))], 0)
    assert (decision.refused, decision.wait) == (0, 60 * 10**6)
    [decision] = store.turn([Settlement("2", [(own, 1, 0)])], [Claim("4", ((own, 1),))], 0)
    assert decision.refused is None


def test_what_was_never_drained_is_given_back_however_late(store: Face) -> None:
    own = Rule("key", ["k"], "tokens", "minute", 100)
    store.flush()
    start = microseconds(datetime.fromisoformat("2026-12-31T12:00:00+00:00"))
    store.move(start)
    store.turn([], [Claim("1", ((own, 90),))], 0)
    store.move(start + 30 * 10**6)
    store.turn([], [Claim("2", ((own, 60),))], 0)
    store.move(start + 60 * 10**6)
    assert store.levels([own])[0][0] == 50
    store.turn([Settlement("1", [(own, 90, 60)])], [], 0)
    assert store.levels([own])[0][0] == 80


def test_memory_keeps_every_rule_of_the_model() -> None:
    _run(InMemory, 40, 40)


def test_redis_keeps_every_rule_of_the_model(in_redis: InRedis) -> None:
    _run(lambda: in_redis, 25, 30)


@pytest.mark.slow
def test_memory_keeps_every_rule_of_the_model_in_many_runs() -> None:
    _run(InMemory, 500, 60)


@pytest.mark.slow
def test_redis_keeps_every_rule_of_the_model_in_many_runs(in_redis: InRedis) -> None:
    _run(lambda: in_redis, 200, 60)
