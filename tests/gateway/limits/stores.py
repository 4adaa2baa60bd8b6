"""Both stores behind one face, with a clock that tests move: what the contract suite drives."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol, TypeVar

from redis.asyncio import Redis as Client

from gateway.limits.base import Claim, Close, Decision, Form, Level, Rule, Settlement
from gateway.limits.memory import Memory
from gateway.limits.redis import Redis, Script

T = TypeVar("T")
CLOCK = "{fairgate}:clock"


class Face(Protocol):
    """One store. `worker` is which of two that share it asks."""

    leases_end: bool
    now: int

    def move(self, to: int) -> None: ...
    def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim], worker: int
    ) -> Sequence[Decision]: ...
    def renew(self, claims: Sequence[Claim], worker: int) -> None: ...
    def levels(self, rules: Sequence[Rule]) -> Sequence[Level]: ...
    def reset(self, rules: Sequence[Rule]) -> None: ...
    def flush(self) -> None: ...
    def check(self) -> None: ...


class InMemory:
    """Memory leaves it to its owner to settle a claim once, which this one does.

    Mutable state: `now`, the store, the claims that are granted and those that are over.
    """

    leases_end = False

    def __init__(self) -> None:
        self.now = 0
        self.flush()

    def flush(self) -> None:
        self._memory = Memory(lambda: self.now)
        self._open: dict[str, int] = {}
        self._closed: set[str] = set()

    def move(self, to: int) -> None:
        self.now = to

    def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim], worker: int
    ) -> Sequence[Decision]:
        for settlement in settlements:
            self._settle(settlement)
        return [self._decide(claim) for claim in claims]

    def _decide(self, claim: Claim) -> Decision:
        if claim.id in self._open or claim.id in self._closed:
            return Decision(self.now, self._memory.levels([rule for rule, _ in claim.lines]))
        decision = self._memory.decide(claim)
        if decision.refused is None:
            self._open[claim.id] = decision.at
        return decision

    def _settle(self, settlement: Settlement) -> None:
        since = self._open.pop(settlement.id, None)
        if settlement.close is Close.CHARGE and settlement.id not in self._closed:
            since = self.now
        if settlement.close is not Close.SETTLE:
            self._closed.add(settlement.id)
        if since is not None:
            self._memory.settle(settlement.lines, since)

    def renew(self, claims: Sequence[Claim], worker: int) -> None:
        """Its slots do not expire."""

    def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        return self._memory.levels(rules)

    def reset(self, rules: Sequence[Rule]) -> None:
        self._memory.reset(rules)

    def check(self) -> None:
        """It has nothing that could outlive its use."""


def clocked(script: Script) -> Script:
    """The script, told the time by a test; its keys live longer than any test."""
    changed = copy.copy(script)
    for was, becomes in (
        ("redis.call('TIME')", f"redis.call('LRANGE', '{CLOCK}', 0, 1)"),
        ("LONGER = 1000", "LONGER = 3600000"),
    ):
        assert changed.text.count(was) == 1, was
        changed.text = changed.text.replace(was, becomes)
    changed.sha = sha1(changed.text.encode()).hexdigest()
    return changed


class Clocked(Redis):
    """The store with scripts that ask the test for the time."""

    turning = clocked(Redis.turning)
    renewing = clocked(Redis.renewing)
    looking = clocked(Redis.looking)


class InRedis:
    """Two workers with a connection of their own, in an event loop that runs when it is asked.

    Mutable state: `now`, the event loop, the connections.
    """

    leases_end = True

    def __init__(self, url: str) -> None:
        self.now = 0
        self._runner = asyncio.Runner()
        self._client: Any = self._made(Client.from_url, url)
        self._workers = [self._made(Clocked, url, "{fairgate}") for _ in range(2)]

    def close(self) -> None:
        for worker in self._workers:
            self._runner.run(worker.close())
        self._runner.run(self._client.aclose())
        self._runner.close()

    def _made(self, make: Any, *args: Any) -> Any:
        async def made() -> Any:
            return make(*args)

        return self._runner.run(made())

    def move(self, to: int) -> None:
        async def moved() -> None:
            await self._client.delete(CLOCK)
            await self._client.rpush(CLOCK, *divmod(to, 10**6))

        self.now = to
        self._runner.run(moved())

    def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim], worker: int
    ) -> Sequence[Decision]:
        decisions: Sequence[Decision] = self._runner.run(
            self._workers[worker].turn(settlements, claims)
        )
        return decisions

    def renew(self, claims: Sequence[Claim], worker: int) -> None:
        self._runner.run(self._workers[worker].renew(claims))

    def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        levels: Sequence[Level] = self._runner.run(self._workers[0].levels(rules))
        return levels

    def reset(self, rules: Sequence[Rule]) -> None:
        self._runner.run(self._workers[0].reset(rules))

    def flush(self) -> None:
        async def flushed() -> None:
            await self._client.flushall()
            await self._client.script_flush()

        self._runner.run(flushed())
        self.move(self.now)

    def check(self) -> None:
        """Every key has the one hash tag, and ends some day."""

        async def keys() -> list[tuple[bytes, int]]:
            return [(key, await self._client.pttl(key)) for key in await self._client.keys()]

        for key, ttl in self._runner.run(keys()):
            assert key.startswith(b"{fairgate}:")
            assert ttl > 0 or key == CLOCK.encode(), key


def slots(claim: Claim) -> list[tuple[Rule, int, int]]:
    """What ends a claim's leases."""
    return [(rule, amount, 0) for rule, amount in claim.lines if rule.form is Form.SLOTS]
