"""Counts kept in this process: for a gateway of one process, and while Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.limits.base import (
    SECOND,
    SLOT_WAIT,
    Claim,
    Decision,
    Form,
    Level,
    Line,
    Rule,
    Settled,
    window_end,
    window_start,
)

_BUCKET, _WINDOW, _SLOTS = Form.BUCKET, Form.WINDOW, Form.SLOTS


def microseconds() -> Callable[[], int]:
    """Microseconds since the epoch that never jump: later steps of the host's clock are ignored."""
    began = time.time_ns() - time.monotonic_ns()
    return lambda: (began + time.monotonic_ns()) // 1000


class State:
    """What one rule has counted.

    Mutable state: `amount`, a bucket's level as of `since`, a window's count, or the slots taken;
    `since`, of a window its beginning; `scale`, a bucket's unit and drain that its level is by.
    """

    __slots__ = ("amount", "scale", "since")

    def __init__(self, rule: Rule) -> None:
        self.amount = 0
        self.since = 0
        self.scale = rule.scale


class Memory:
    """A store whose calls are plain functions, and which needs no reservations.

    With a `share` of n, this process is one of n that enforce the same rules without knowing of
    each other: whatever passes here counts n times.

    Mutable state: what each rule has counted, by its key.
    """

    def __init__(self, now: Callable[[], int], share: int = 1) -> None:
        self._now = now
        self._share = share
        self._states: dict[str, State] = {}

    def decide(self, claim: Claim) -> Decision:
        """Grant a claim on every rule, or change nothing."""
        now = self._now()
        share = self._share
        found: list[tuple[Rule, State, int]] = []
        refused: int | None = None
        wait = 0
        for rule, amount in claim.lines:
            state = self._states.get(rule.key)
            if state is None:
                state = self._states[rule.key] = State(rule)
            amount *= share
            form = rule.form
            if form is _BUCKET:
                amount *= rule.unit
                _drain(rule, state, now)
                room = rule.room
                over = state.amount + (amount if amount < room else room) - room
                delay = -(-over // rule.drain) if over > 0 else 0
            elif form is _WINDOW:
                _turn(rule, state, now)
                over = state.amount + min(amount, rule.limit) - rule.limit
                delay = window_end(state.since, rule.width) - now if over > 0 else 0
            else:
                over = state.amount + amount - rule.limit
                # A share of a few slots is never less than one.
                alone = share > 1 and not state.amount and amount <= rule.limit * share
                delay = SLOT_WAIT * SECOND if over > 0 and not alone else 0
            if delay > wait:
                wait = delay
                refused = len(found)
            found.append((rule, state, amount))
        levels: list[Level] = []
        for rule, state, amount in found:
            if refused is None:
                state.amount += amount
            levels.append(_level(rule, state, now))
        return Decision(now, levels, refused, wait)

    def settle(self, lines: Sequence[Settled], since: int) -> None:
        """Charge what was used instead of what was reserved at `since`, and free the slots."""
        now = self._now()
        for rule, reserved, used in lines:
            state = self._states.get(rule.key)
            if state is None:
                state = self._states[rule.key] = State(rule)
            if rule.form is _SLOTS:
                state.amount = max(0, state.amount - reserved * self._share)
            elif used != reserved:
                by = (used - reserved) * self._share
                if rule.form is _BUCKET:
                    _drain(rule, state, now)
                    by *= rule.unit
                else:
                    _turn(rule, state, now)
                    if since < state.since:
                        continue  # its window is over, and with it what it counted
                amount = state.amount + by
                state.amount = amount if amount > 0 else 0

    def begin(self, rule: Rule, level: Level, at: int) -> None:
        """Go on from what was left of a rule `at` a time (microseconds of this store's clock)."""
        state = self._states[rule.key] = State(rule)
        left, reset = level
        if rule.form is _BUCKET:
            state.amount, state.since = reset * rule.drain, at
        elif rule.form is _WINDOW:
            state.amount, state.since = rule.limit - left, window_start(at, rule.width)

    def hold(self, lines: Sequence[Line]) -> None:
        """Count the slots of a request that another store let in."""
        for rule, slots in lines:
            if rule.form is _SLOTS:
                state = self._states.setdefault(rule.key, State(rule))
                state.amount += slots * self._share

    def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        now = self._now()
        return [self._looked_up(rule, now) for rule in rules]

    def _looked_up(self, rule: Rule, now: int) -> Level:
        state = self._states.get(rule.key)
        if state is None:
            state = State(rule)
        if rule.form is _BUCKET:
            _drain(rule, state, now)
        elif rule.form is _WINDOW:
            _turn(rule, state, now)
        return _level(rule, state, now)

    def reset(self, rules: Sequence[Rule]) -> None:
        """Forget what was counted. Slots stay: their requests are still there."""
        for rule in rules:
            if rule.form is not _SLOTS:
                self._states.pop(rule.key, None)


def _drain(rule: Rule, state: State, now: int) -> None:
    if state.scale is not rule.scale:
        _rescale(rule, state, now)
    level = state.amount - (now - state.since) * rule.drain
    state.amount = level if level > 0 else 0
    state.since = now


def _rescale(rule: Rule, state: State, now: int) -> None:
    """Its limit changed: as much is used as was, but of a lower limit no more than all of it."""
    unit, drain = state.scale
    level = max(0, state.amount - (now - state.since) * drain)
    state.amount = min(-(-level * rule.unit // unit), rule.room)
    state.since, state.scale = now, rule.scale


def _turn(rule: Rule, state: State, now: int) -> None:
    """Begin the window of `now` unless it has begun."""
    start = window_start(now, rule.width)
    if start > state.since:
        state.amount, state.since = 0, start


def _level(rule: Rule, state: State, now: int) -> Level:
    if rule.form is _BUCKET:
        left = (rule.room - state.amount) // rule.unit
        return (left if left > 0 else 0), -(-state.amount // rule.drain)
    left = rule.limit - state.amount
    reset = window_end(state.since, rule.width) - now if rule.form is _WINDOW else 0
    return (left if left > 0 else 0), reset


class Alone:
    """The counter of a gateway that shares its limits with no other process.

    Mutable state: the store; `_live`, the ids of claims that are not settled yet.
    """

    degraded = False

    def __init__(self, now: Callable[[], int]) -> None:
        self._memory = Memory(now)
        self._live: set[str] = set()

    async def decide(self, claim: Claim) -> Decision:
        decision = self._memory.decide(claim)
        if decision.refused is None:
            self._live.add(claim.id)
        return decision

    def settle(self, claim: Claim, lines: Sequence[Settled], since: int) -> None:
        if claim.id in self._live:
            self._live.remove(claim.id)
            self._memory.settle(lines, since)

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        return self._memory.levels(rules)

    async def reset(self, rules: Sequence[Rule]) -> None:
        self._memory.reset(rules)
