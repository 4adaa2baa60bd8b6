"""What was used while the shared store was away, until it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.limits.base import Claim, Form, Rule, Settled, window_end, window_start


class Owed:
    """Mutable state: how much of each rule was used, and of a window in which: when it began."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._amounts: Counter[tuple[Rule, int]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def add(self, claim: Claim, lines: Sequence[Settled], since: int) -> None:
        """What a claim used that was granted here at `since`, ended by `lines`."""
        used = {rule: amount for rule, _, amount in lines}
        for rule, amount in claim.lines:
            if rule.form is not Form.SLOTS:
                began = window_start(since, rule.width) if rule.form is Form.WINDOW else 0
                self._amounts[rule, began] += used.get(rule, amount)

    def forget(self, rules: Iterable[Rule]) -> None:
        forgotten = set(rules)
        for owed in [owed for owed in self._amounts if owed[0] in forgotten]:
            del self._amounts[owed]

    def taken(self) -> list[Settled]:
        """All of it, which is owed no more. A window that is over has nothing left to charge: the
        one after it would be short of what was never used in it.
        """
        now, amounts = self._now(), self._amounts
        self._amounts = Counter()
        return [
            (rule, 0, amount)
            for (rule, began), amount in amounts.items()
            if amount and not (rule.form is Form.WINDOW and window_end(began, rule.width) <= now)
        ]
