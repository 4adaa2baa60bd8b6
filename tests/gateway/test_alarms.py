"""Timers that are set and stopped often: called at their time, and only then."""

from __future__ import annotations

import asyncio

import pytest

from gateway.alarms import Alarm, Alarms
from tests.fakes.flight import Clock, clock_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_of(monkeypatch)


@pytest.fixture
def rung() -> list[str]:
    return []


def alarm_of() -> Alarm:
    return Alarm(asyncio.get_running_loop())


def test_it_rings_once_at_its_time(clock: Clock, rung: list[str]) -> None:
    alarm = alarm_of()
    alarm.set(clock.now + 5, lambda: rung.append("a"))
    clock.wait(4.9)
    assert (rung, alarm.is_set) == ([], True)
    clock.wait(0.2)
    assert (rung, alarm.is_set) == (["a"], False)
    clock.wait(100)
    assert rung == ["a"]


@pytest.mark.parametrize(("then", "timers"), [(8.0, 2), (3.0, 1)])
def test_what_was_set_last_counts_sooner_or_later(
    clock: Clock, rung: list[str], then: float, timers: int
) -> None:
    alarm = alarm_of()
    alarm.set(clock.now + 5, lambda: rung.append("before"))
    alarm.set(clock.now + then, lambda: rung.append("a"))
    clock.wait(then - 0.1)
    assert rung == []
    clock.wait(0.2)
    assert rung == ["a"]
    assert clock.calls == timers, "the timer that was there is used where it comes first"


def test_one_that_is_stopped_never_rings_and_keeps_its_timer(clock: Clock, rung: list[str]) -> None:
    alarm = alarm_of()
    for _ in range(100):
        alarm.set(clock.now + 5, lambda: rung.append("a"))
        alarm.stop()
        clock.wait(0.01)
    assert clock.made == 1
    assert not alarm.is_set
    clock.wait(10)
    assert rung == []


def test_a_clock_that_comes_early_is_waited_for_and_not_watched(
    clock: Clock, rung: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop counts whole milliseconds: a timer may come a part of one before its time."""
    exactly = clock.call_at
    monkeypatch.setattr(clock, "call_at", lambda when, call: exactly(when - 0.0004, call))
    alarm = alarm_of()
    alarm.set(clock.now + 5, lambda: rung.append("a"))
    clock.wait(6)
    assert rung == ["a"]
    assert clock.calls == 2


def test_it_may_be_set_again_from_its_own_call(clock: Clock, rung: list[str]) -> None:
    alarm = alarm_of()

    def ring() -> None:
        rung.append("a")
        if len(rung) < 3:
            alarm.set(clock.now + 2, ring)

    alarm.set(clock.now + 2, ring)
    clock.wait(10)
    assert rung == ["a"] * 3


def test_one_that_ends_leaves_no_timer(clock: Clock, rung: list[str]) -> None:
    alarm = alarm_of()
    alarm.set(clock.now + 5, lambda: rung.append("a"))
    alarm.end()
    assert clock.armed == 0
    alarm.end()
    clock.wait(10)
    assert rung == []


def test_one_that_is_given_back_is_stopped_and_taken_again(clock: Clock, rung: list[str]) -> None:
    alarms = Alarms()
    first, second = alarms.take(), alarms.take()
    assert first is not second
    first.set(clock.now + 5, lambda: rung.append("a"))
    alarms.give(first)
    assert alarms.take() is first
    assert not first.is_set
    clock.wait(10)
    assert rung == []
