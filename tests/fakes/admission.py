"""An admission that keeps what it was asked and what became of each permit it gave."""

from __future__ import annotations

import asyncio

from msgspec import field

from backends.base import Demand
from gateway.admit import Admission, Permit, Plan
from gateway.estimate import Estimates
from gateway.limits.memory import Alone, microseconds
from gateway.limits.rulebook import Rulebook
from gateway.route import Route
from gateway.settings import Config
from gateway.terms import Principal, Size, Usage


class Kept(Permit):
    """A permit whose endings are kept: what was charged, nothing where it was refunded."""

    endings: list[Usage] = field(default_factory=list)

    def settle(self, usage: Usage, events: int) -> Usage:
        first = self._used is None
        used = super().settle(usage, events)
        if first:
            self.endings.append(used)
        return used

    def refund(self) -> None:
        if self._used is None:
            self.endings.append(Usage())
        super().refund()


class Counting(Admission):
    """Admits everyone, nobody while it is `closed`; raises `refusal`, where it is set.

    Mutable state: that, how many are `waiting`, what was `asked`, and the permits `given`.
    """

    def __init__(self) -> None:
        super().__init__(Rulebook(Config()), Estimates(), Alone(microseconds()))
        self.closed = False
        self.refusal: Exception | None = None
        self.waiting = 0
        self.asked: list[tuple[Principal, Route, Size]] = []
        self.given: list[Kept] = []

    async def admit(
        self, request_id: str, principal: Principal, route: Route, size: Size, *, tokens: bool
    ) -> Kept:
        self.asked.append((principal, route, size))
        if self.refusal is not None:
            raise self.refusal
        if self.closed:
            self.waiting += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.waiting -= 1
        permit = Kept(self, principal.key, route, size, Plan(()), Demand())
        self.given.append(permit)
        return permit

    @property
    def settled(self) -> list[list[Usage]]:
        """The endings of each permit given; one each, if all is right."""
        return [permit.endings for permit in self.given]
