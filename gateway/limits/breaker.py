"""Whether a store is asked at all: not once it failed often, until a probe says that it is back."""

from __future__ import annotations

from collections import deque

_IN_A_ROW = 3
_OF_LAST = 20


class Breaker:
    """Opens after 3 failures in a row, or when half of the last 20 calls failed.

    Mutable state: `open`, whether calls are kept away; how the last calls went.
    """

    def __init__(self) -> None:
        self.open = False
        self._last: deque[bool] = deque(maxlen=_OF_LAST)
        self._in_a_row = 0

    def succeeded(self) -> None:
        self._in_a_row = 0
        self._last.append(True)

    def failed(self, at_once: bool = False) -> bool:
        """Whether that opened it; `at_once` it does, whatever was before."""
        self._in_a_row += 1
        self._last.append(False)
        half = 2 * self._last.count(False) >= _OF_LAST
        if self.open or not (at_once or half or self._in_a_row >= _IN_A_ROW):
            return False
        self.open = True
        return True

    def close(self) -> None:
        """A probe came back. What was before it is forgotten."""
        self.open = False
        self._in_a_row = 0
        self._last.clear()
