"""How fast requests leave a pool, so that whoever finds no room hears when there will be some."""

from __future__ import annotations

#: Seconds over which ends and refusals are counted.
_WINDOW = 1.0
#: How much the newest window says of the rate.
_WEIGHT = 0.3
_LEAST, _LONGEST = 1.0, 60.0


class Pace:
    """Mutable state: `_rate`, requests ended a second, None before the first; `_ended` and
    `_refused` since `_since`.
    """

    __slots__ = ("_ended", "_rate", "_refused", "_since")

    def __init__(self) -> None:
        self._rate: float | None = None
        self._ended = 0
        self._refused = 0
        self._since = 0.0

    def ended(self, now: float) -> None:
        """A request left."""
        if now - self._since >= _WINDOW:
            self._roll(now)
        self._ended += 1

    def wait(self, now: float) -> float:
        """Seconds until there may be room for one who is refused now: 1 to 60.

        All who were refused lately will come back, and they find room one after the other.
        """
        if now - self._since >= _WINDOW:
            self._roll(now)
        self._refused += 1
        if not self._rate:
            return _LEAST
        return min(_LONGEST, max(_LEAST, self._refused / self._rate))

    def _roll(self, now: float) -> None:
        if self._since:
            rate = self._ended / (now - self._since)
            old = rate if self._rate is None else self._rate
            self._rate = old + _WEIGHT * (rate - old)
        self._since = now
        self._ended = self._refused = 0
