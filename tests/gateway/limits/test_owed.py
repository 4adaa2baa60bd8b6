"""What was used without the shared store, as it is charged when that is back."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.limits.base import SECOND, Claim, Rule
from gateway.limits.owed import Owed
from tests.fakes.clock import Microseconds

MINUTE = Rule("key", ["k"], "requests", "minute", 60)
DAY = Rule("key", ["k"], "tokens", "day", 1000)
MONTH = Rule("key", ["k"], "tokens", "month", 9000)
SLOTS = Rule("key", ["k"], "concurrency", None, 2)
CLAIM = Claim("a", ((MINUTE, 1), (DAY, 500), (MONTH, 500), (SLOTS, 1)))
USED = [(DAY, 500, 900), (MONTH, 500, 900), (SLOTS, 1, 0)]


def test_what_was_used_is_charged_once_and_no_slots() -> None:
    clock = Microseconds(datetime(2026, 6, 15, 12, tzinfo=UTC))
    owed = Owed(clock)
    assert not owed
    for _ in range(2):
        owed.add(CLAIM, USED, clock.now)
    assert owed
    assert owed.taken() == [(MINUTE, 0, 2), (DAY, 0, 1800), (MONTH, 0, 1800)]
    assert (owed.taken(), bool(owed)) == ([], False)


def test_what_was_used_before_midnight_is_not_charged_to_the_new_day() -> None:
    clock = Microseconds(datetime(2026, 6, 15, 23, 59, tzinfo=UTC))
    owed = Owed(clock)
    yesterday = clock.now
    owed.add(CLAIM, USED, yesterday)
    clock.now += 60 * SECOND
    owed.add(Claim("b", ((DAY, 70),)), [], yesterday)  # it ends today
    owed.add(Claim("c", ((DAY, 5),)), [], clock.now)
    assert owed.taken() == [(MINUTE, 0, 1), (MONTH, 0, 900), (DAY, 0, 5)]


def test_what_a_reset_forgets_is_owed_no_more() -> None:
    clock = Microseconds(datetime(2026, 6, 15, 12, tzinfo=UTC))
    owed = Owed(clock)
    owed.add(CLAIM, USED, clock.now)
    owed.forget([DAY, SLOTS])
    assert owed.taken() == [(MINUTE, 0, 1), (MONTH, 0, 900)]
