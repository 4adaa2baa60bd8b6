"""An admission on counts in memory and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway import config as configuration
from gateway.admit import Admission, Permit
from gateway.errors import GatewayError
from gateway.estimate import Estimates
from gateway.limits.base import Claim, Decision, Level, Settled, Unavailable
from gateway.limits.memory import Alone
from gateway.limits.rulebook import Rulebook
from gateway.route import Route
from gateway.settings import Config
from gateway.terms import Principal, Size, Usage
from tests.fakes.clock import Microseconds
from tests.gateway.pools import route

NAMES = ("ann", "bob")
ANN, BOB = (Principal(name, "search") for name in NAMES)
MODEL = "llama"
#: 09:30:00.25 on a Monday: in no way the beginning of a window, nor a whole second.
START = datetime(2026, 6, 15, 9, 30, 0, 250_000, tzinfo=UTC)
#: At 4 bytes a token, what nobody has learned better yet: 100 tokens, and 50 for the answer.
SIZE = Size(text_bytes=400, output_limit=50)
ESTIMATE = 150


class Kept(Alone):
    """A counter that keeps each claim and each settlement, and may be `away`."""

    def __init__(self, now: Callable[[], int]) -> None:
        super().__init__(now)
        self.claims: list[Claim] = []
        self.settled: list[Sequence[Settled]] = []
        self.away = False

    async def decide(self, claim: Claim) -> Decision:
        self.claims.append(claim)
        if self.away:
            raise Unavailable("no answer within 50 ms")
        return await super().decide(claim)

    def settle(self, claim: Claim, lines: Sequence[Settled], since: int) -> None:
        self.settled.append(lines)
        super().settle(claim, lines, since)


class Desk:
    """An admission with the rules of one configuration, and short ways to ask it.

    Mutable state: the admission's; how many requests there were.
    """

    def __init__(
        self,
        key: str = "{}",
        team: str = "{}",
        gateway: str = "{}",
        model: str = "{}",
        both: str = "{}",
    ) -> None:
        self.clock = Microseconds(START)
        self.counter = Kept(self.clock)
        self.rulebook = Rulebook(_config(key, team, gateway, model, both))
        self.estimates = Estimates()
        self.admission = Admission(self.rulebook, self.estimates, self.counter)
        self.requests = 0

    async def admit(
        self,
        size: Size = SIZE,
        *,
        principal: Principal = ANN,
        tokens: bool = True,
        on: Route | None = None,
    ) -> Permit:
        self.requests += 1
        return await self.admission.admit(
            f"req_{self.requests}", principal, on or route(), size, tokens=tokens
        )

    async def refused(self, size: Size = SIZE, **more: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.admit(size, **more)
        return caught.value

    async def left(self, label: str, *, principal: Principal = ANN) -> int:
        """What is left of a rule, by its label."""
        return (await self.level(label, principal=principal))[0]

    async def level(self, label: str, *, principal: Principal = ANN) -> Level:
        (rule,) = [r for r in self.rulebook.of(principal, MODEL) if r.label == label]
        return (await self.counter.levels([rule]))[0]

    async def all_left(self) -> list[int]:
        rules = self.rulebook.of(ANN, MODEL)
        return [left for left, _ in await self.counter.levels(rules)]


def _config(key: str, team: str, gateway: str, model: str, both: str) -> Config:
    keys = [f"{{name: {n}, team: search, sha256: {n[0] * 64}, limits: {key}}}" for n in NAMES]
    return configuration.load(
        "test.yaml",
        f"limits: {gateway}\n"
        f"keys: [{', '.join(keys)}]\n"
        f"teams: {{search: {{limits: {team}, limits_by_model: {{{MODEL}: {both}}}}}}}\n"
        f"models: {{{MODEL}: {{replicas: [http://gpu1:8000], limits: {model}}}}}\n",
        {},
    )


def used(prompt: int, completion: int = 0, cached: int = 0) -> Usage:
    return Usage(prompt, cached, completion, exact=True)
