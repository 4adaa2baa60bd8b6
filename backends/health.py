"""Whether a replica may be chosen, judged by its own traffic and by what probes saw of it.

Pure: the clock comes in with each call, in seconds of a monotonic clock, and nothing is sent.

    UP ── 3 connections or 5 requests failed in a row, a stall, or a probe's word ──→ EJECTED
    EJECTED ── 5 s × 2^n and jitter are over, no probe speaks against it ──→ PROBATION
    PROBATION ── one request at a time: served ──→ SLOW_START, failed ──→ EJECTED, for longer
    EJECTED ── served all the same, and no probe speaks against it ──→ SLOW_START
    SLOW_START ── 10 s ──→ UP; it is ejected as one that is up

A probe's word stands against all that requests do: an engine that shuts down still finishes what it
had, and what fails at one that is known to be gone says nothing of the one that will come.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

#: Failures in a row that eject: of connections, and of requests that were sent.
_CONNECTS = 3
_ERRORS = 5
#: Seconds of the first ejection, how often they are doubled, the longest, and the jitter's share.
_FIRST = 5.0
_DOUBLED = 4
_LONGEST = 60.0
_JITTER = 0.2
#: How long a replica that returned is spared, in seconds, and the share it begins with.
_RAMP = 10.0
_LEAST_SHARE = 0.1


class Standing(Enum):
    """What a pool may do with a replica now."""

    UP = "up"
    SLOW_START = "slow start"
    PROBATION = "probation"
    EJECTED = "ejected"


class Health:
    """Mutable state: failures in a row of connections and of requests; `_ejections` in a row,
    `_until` when the last one ends (0: not ejected) and `_why`; `_since`, when it returned; `down`,
    why probes say that nothing can be served there now, empty where they do not.
    """

    __slots__ = (
        *("_connects", "_ejections", "_errors", "_random", "_since", "_until", "_why"),
        "down",
    )

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.down = ""
        self._connects = 0
        self._errors = 0
        self._ejections = 0
        self._until = 0.0
        self._why = ""
        self._since = -_RAMP
        self._random = draw

    def standing(self, now: float) -> Standing:
        if self.down or now < self._until:
            return Standing.EJECTED
        if self._until:
            return Standing.PROBATION
        return Standing.SLOW_START if now < self._since + _RAMP else Standing.UP

    @property
    def sound(self) -> bool:
        """Whether nothing at all speaks against it: the usual case, known without a clock."""
        return not (self._until or self.down)

    def share(self, now: float) -> float:
        """How much of its weight it is to have, above 0 and at most 1."""
        grown = (now - self._since) / _RAMP
        return 1.0 if grown >= 1 else max(_LEAST_SHARE, grown)

    def ends(self) -> float:
        """When its ejection ends, for choosing the least bad; a replica that is down comes last."""
        return float("inf") if self.down else self._until

    def why(self, now: float) -> str:
        """Why it is not chosen as any other is, for people; empty where it is."""
        if self.down:
            return self.down
        if now < self._until:
            return f"ejected for {self._until - now:.0f} s more: {self._why}"
        if self._until:
            return f"on probation: {self._why}"
        return "slow start" if now < self._since + _RAMP else ""

    # What happened

    def served(self, now: float) -> bool:
        """It answered a request well; whether it is back by that."""
        self._connects = self._errors = 0
        if self.down:
            return False
        if self._until:
            self._until = 0.0
            self._since = now
            return True
        if self._ejections and now >= self._since + _LONGEST:
            self._ejections = 0  # it has been well for as long as an ejection lasts
        return False

    def connect_failed(self, now: float) -> bool:
        """No connection could be made; whether it is ejected by that."""
        if self.standing(now) is Standing.EJECTED:
            return False
        self._connects += 1
        if self._until or self._connects >= _CONNECTS:
            self._eject(now, _row(self._connects, "connection"))
            return True
        return False

    def failed(self, now: float, reason: str) -> bool:
        """A request failed there by its doing; whether it is ejected by that."""
        if self.standing(now) is Standing.EJECTED:
            return False
        self._connects = 0
        self._errors += 1
        if self._until or self._errors >= _ERRORS:
            self._eject(now, _row(self._errors, "request", reason))
            return True
        return False

    def stalled(self, now: float, why: str) -> bool:
        """It stopped answering in the middle of its work; whether it is ejected by that."""
        if self.standing(now) is Standing.EJECTED:
            return False
        self._eject(now, why)
        return True

    def told(self, now: float, down: str) -> bool:
        """What a probe says: why nothing can be served there, empty where something can.

        Whether that is news, and what waits there should move.
        """
        before, self.down = self.down, down
        if not down or before:
            return False
        if now >= self._until:
            self._eject(now, down)
        return True

    def _eject(self, now: float, why: str) -> None:
        seconds = min(_LONGEST, _FIRST * 2 ** min(self._ejections, _DOUBLED))
        self._until = now + seconds * (1 + _JITTER * self._random())
        self._ejections += 1
        self._why = why
        self._connects = self._errors = 0


def _row(failed: int, what: str, last: str = "") -> str:
    if failed == 1:
        return f"a {what} failed" + (last and f": {last}")
    return f"{failed} {what}s in a row failed" + (last and f", the last one: {last}")
