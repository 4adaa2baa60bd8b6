"""What limits mean, in exact fractions and calendar dates: what every store is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from gateway.limits.base import Claim, Close, Decision, Level, Rule, Settlement

MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: How long a bucket takes to drain its limit, in microseconds.
PERIOD = {"second": 10**6, "minute": 60 * 10**6}
#: A lease's length and what a refusal for want of a slot tells to wait, in microseconds.
LEASE, SLOT_WAIT = 30 * 10**6, 10**6


def instant(at: int) -> datetime:
    """Of microseconds since the epoch."""
    return EPOCH + at * MICROSECOND


def microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


def began(window: str, at: int) -> datetime:
    """When the hour, day or month began that `at` lies in."""
    moment = instant(at).replace(minute=0, second=0, microsecond=0)
    if window == "hour":
        return moment
    moment = moment.replace(hour=0)
    return moment if window == "day" else moment.replace(day=1)


def ends(window: str, at: int) -> datetime:
    """When the next one begins."""
    start = began(window, at)
    if window == "hour":
        return start + timedelta(hours=1)
    if window == "day":
        return start + timedelta(days=1)
    return began("month", microseconds(start + timedelta(days=31)))


class Model:
    """Every rule's counts by the words of the design. Told the time; asks no clock.

    Mutable state: `_debts`, of each bucket what was taken and is not drained, and when that was so;
    `_emptied`, when it was empty last; `_counts` by rule and window; `_leases` by rule and request,
    how many and until when; `_open`, when each reservation was made that is not ended; `_closed`,
    ids that were undone or charged.
    """

    def __init__(self, *, leases_end: bool = True) -> None:
        self._leases_end = leases_end
        self.flush()

    def flush(self) -> None:
        self._debts: dict[str, tuple[Fraction, int]] = {}
        self._emptied: dict[str, int] = {}
        self._counts: defaultdict[tuple[str, datetime], int] = defaultdict(int)
        self._leases: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        self._open: dict[str, int] = {}
        self._closed: set[str] = set()

    def knows(self, id: str) -> bool:
        """Whether a claim of this id would not be taken."""
        return id in self._open or id in self._closed

    @property
    def live(self) -> set[str]:
        return set(self._open)

    def decide(self, claim: Claim, at: int) -> Decision:
        waits = [self._wait(rule, amount, at) for rule, amount in claim.lines]
        longest = max(waits, default=0)
        refused = waits.index(longest) if longest else None
        if refused is None and not self.knows(claim.id):
            self._open[claim.id] = at
            for rule, amount in claim.lines:
                self._take(rule, amount, claim.id, at)
        levels = [self.level(rule, at) for rule, _ in claim.lines]
        return Decision(at, levels, refused, longest)

    def settle(self, settlement: Settlement, at: int) -> None:
        for rule, _, _ in settlement.lines:
            self._leases[rule.key].pop(settlement.id, None)
        since = self._open.pop(settlement.id, None)
        if settlement.close is Close.CHARGE and settlement.id not in self._closed:
            since = at
        if settlement.close is not Close.SETTLE:
            self._closed.add(settlement.id)
        if since is None:
            return
        for rule, reserved, used in settlement.lines:
            self._add(rule, used - reserved, since, at)

    def renew(self, claims: Iterable[Claim], at: int) -> None:
        for claim in claims:
            for rule, slots in claim.lines:
                if rule.window is None:
                    self._leases[rule.key][claim.id] = (slots, at + LEASE)

    def reset(self, rules: Iterable[Rule]) -> None:
        for rule in rules:
            self._debts.pop(rule.key, None)
            self._emptied.pop(rule.key, None)
            for key, window in list(self._counts):
                if key == rule.key:
                    del self._counts[key, window]

    def level(self, rule: Rule, at: int) -> Level:
        if rule.window is None:
            return max(0, rule.limit - self._taken(rule, at)), 0
        if rule.window in PERIOD:
            debt = self._debt(rule, at)
            return max(0, math.floor(rule.burst - debt)), math.ceil(debt / _per_microsecond(rule))
        left = rule.limit - self._counts[rule.key, began(rule.window, at)]
        return max(0, left), microseconds(ends(rule.window, at)) - at

    def levels(self, rules: Sequence[Rule], at: int) -> list[Level]:
        return [self.level(rule, at) for rule in rules]

    def _wait(self, rule: Rule, amount: int, at: int) -> int:
        """How long until there is room; for more than all there can be, until all is there."""
        if rule.window is None:
            return SLOT_WAIT if self._taken(rule, at) + amount > rule.limit else 0
        if rule.window in PERIOD:
            over = self._debt(rule, at) + min(amount, rule.burst) - rule.burst
            return max(0, math.ceil(over / _per_microsecond(rule)))
        count = self._counts[rule.key, began(rule.window, at)]
        full = count + min(amount, rule.limit) > rule.limit
        return microseconds(ends(rule.window, at)) - at if full else 0

    def _take(self, rule: Rule, amount: int, id: str, at: int) -> None:
        if rule.window is None:
            self._leases[rule.key][id] = (amount, at + LEASE)
        else:
            self._add(rule, amount, at, at)

    def _add(self, rule: Rule, amount: int, since: int, at: int) -> None:
        """Charge a rate, or give back: to a bucket now, unless it was empty after `since`; to the
        window that `since` lies in.
        """
        if rule.window in PERIOD:
            debt = self._debt(rule, at)
            if not debt:
                self._emptied[rule.key] = at
            if amount >= 0 or since >= self._emptied.get(rule.key, 0):  # else it has drained
                self._debts[rule.key] = (max(Fraction(0), debt + amount), at)
        elif rule.window is not None:
            window = rule.key, began(rule.window, since)
            self._counts[window] = max(0, self._counts[window] + amount)

    def _debt(self, rule: Rule, at: int) -> Fraction:
        debt, since = self._debts.get(rule.key, (Fraction(0), at))
        return max(Fraction(0), debt - (at - since) * _per_microsecond(rule))

    def _taken(self, rule: Rule, at: int) -> int:
        leases = self._leases[rule.key].values()
        return sum(slots for slots, end in leases if end > at or not self._leases_end)


def _per_microsecond(rule: Rule) -> Fraction:
    assert rule.window is not None
    return Fraction(rule.limit, PERIOD[rule.window])
