"""How many requests a pool may send again, so that retries cannot make an overload bigger.

A fifth of its recent requests, as Envoy's retry budget has it; the callers' own retries are paid
from the same purse (Site Reliability Engineering, chapter 22: retries at one level only).
"""

from __future__ import annotations

#: So many requests earn one retry.
_PRICE = 5
#: What there is before any request came, and what is saved at most: a fifth of the last hundred.
_FIRST = 3 * _PRICE
_MOST = 20 * _PRICE


class RetryBudget:
    """Mutable state: `_saved`, in requests that earned something and were not used up."""

    __slots__ = ("_saved",)

    def __init__(self) -> None:
        self._saved = _FIRST

    def request(self, again: bool) -> None:
        """A caller asked; `again` where it says that this is a retry of its own."""
        if again:
            self._saved = max(0, self._saved - _PRICE)
        elif self._saved < _MOST:
            self._saved += 1

    def take(self) -> bool:
        """Whether one more try may be made; it is used up then."""
        if self._saved < _PRICE:
            return False
        self._saved -= _PRICE
        return True
