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
_SLOT_WAIT = SLOT_WAIT * SECOND


def microseconds() -> Callable[[], int]:
    """Microseconds since the epoch that never jump: later steps of the host's clock are ignored."""
    began = time.time_ns() - time.monotonic_ns()
    return lambda: (began + time.monotonic_ns()) // 1000


class State:
    """What one rule has counted.

    Mutable state: `amount`, a bucket's level as of `since`, a window's count, or the slots taken;
    `since`, of a window its beginning; `scale`, a bucket's unit and drain that its level is by;
    `emptied`, when that bucket was empty last.
    """

    __slots__ = ("amount", "emptied", "scale", "since")

    def __init__(self, rule: Rule) -> None:
        self.amount = 0
        self.since = 0
        self.emptied = 0
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
        """Grant a claim on every rule, or change nothing.

        Nearly all are granted: each line is taken as it comes, and where one refuses, all of them
        are given back.
        """
        now, share, states = self._now(), self._share, self._states
        levels: list[Level] = []
        refused: int | None = None
        wait = 0
        for rule, amount in claim.lines:
            try:
                state = states[rule.key]
            except KeyError:
                state = states[rule.key] = State(rule)
            amount *= share
            form = rule.form
            delay = 0
            if form is _BUCKET:
                drain, unit, room = rule.drain, rule.unit, rule.room
                level = _drained(rule, state, now)
                state.amount = taken = level + amount * unit
                if taken > room:
                    over = taken - room
                    # More than all the room waits until the bucket is empty, and no longer.
                    delay = -(-(over if over < level else level) // drain)
                left, reset = (room - taken) // unit, -(-taken // drain)
            elif form is _WINDOW:
                _turn(rule, state, now)
                before = state.amount
                state.amount = taken = before + amount
                left, reset = rule.limit - taken, window_end(state.since, rule.width) - now
                if before and left < 0:
                    delay = reset
            else:
                before = state.amount
                state.amount = taken = before + amount
                left, reset = rule.limit - taken, 0
                # A share of a few slots is never less than one.
                if left < 0 and (before or amount > rule.limit * share):
                    delay = _SLOT_WAIT
            if delay > wait:
                wait = delay
                refused = len(levels)
            levels.append((left if left > 0 else 0, reset))
        if refused is not None:
            levels = self._given_back(claim, now)
        return Decision(now, levels, refused, wait)

    def _given_back(self, claim: Claim, now: int) -> list[Level]:
        """Undo what `decide` took just now; the levels there were before."""
        levels: list[Level] = []
        for rule, amount in claim.lines:
            state = self._states[rule.key]
            state.amount -= amount * self._share * (rule.unit if rule.form is _BUCKET else 1)
            levels.append(_level(rule, state, now))
        return levels

    def settle(self, lines: Sequence[Settled], since: int) -> None:
        """Charge what was used instead of what was reserved at `since`, and free the slots."""
        now, share, states = self._now(), self._share, self._states
        for rule, reserved, used in lines:
            try:
                state = states[rule.key]
            except KeyError:
                state = states[rule.key] = State(rule)
            form = rule.form
            if form is _SLOTS:
                amount = state.amount - reserved * share
            elif used == reserved:
                continue
            elif form is _BUCKET:
                amount = _drained(rule, state, now)
                if used > reserved or since >= state.emptied:
                    amount += (used - reserved) * share * rule.unit
                # else it has drained, and what is in the bucket now is of others
                if amount <= 0:
                    state.emptied = now
            else:
                _turn(rule, state, now)
                if since < state.since:
                    continue  # its window is over, and with it what it counted
                amount = state.amount + (used - reserved) * share
            state.amount = amount if amount > 0 else 0

    def begin(self, rule: Rule, level: Level, at: int, scale: tuple[int, int]) -> None:
        """Go on from what was left of a rule `at` a time (microseconds of this store's clock), when
        its unit and drain were `scale`.
        """
        state = self._states[rule.key] = State(rule)
        left, reset = level
        if rule.form is _BUCKET:
            state.amount, state.since, state.scale = reset * scale[1], at, scale
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
            state.amount = _drained(rule, state, now)
        elif rule.form is _WINDOW:
            _turn(rule, state, now)
        return _level(rule, state, now)

    def reset(self, rules: Sequence[Rule]) -> None:
        """Forget what was counted. Slots stay: their requests are still there."""
        for rule in rules:
            if rule.form is not _SLOTS:
                self._states.pop(rule.key, None)


def _drained(rule: Rule, state: State, now: int) -> int:
    """The level of a bucket `now`, from when on it counts: the caller sets the amount."""
    if state.scale is not rule.scale:
        _rescale(rule, state, now)
    level = state.amount - (now - state.since) * rule.drain
    state.since = now
    if level > 0:
        return level
    state.emptied = now
    return 0


def _rescale(rule: Rule, state: State, now: int) -> None:
    """Its limit changed: as much is used as was, but of a lower limit no more than all of it."""
    if state.scale != rule.scale:  # each reload makes it anew, whether or not it differs
        unit, drain = state.scale
        level = max(0, state.amount - (now - state.since) * drain)
        state.amount = min(-(-level * rule.unit // unit), rule.room)
        state.since = now
    state.scale = rule.scale


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
