"""A shared store that does what a test tells it, a courier at work on it, and what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from gateway.limits.base import Claim, Decision, Level, Rule, Settled, Settlement, Unavailable
from gateway.limits.courier import Courier, Mode
from gateway.limits.memory import microseconds

REQUESTS = Rule("key", ("ann",), "requests", "minute", 60)
TOKENS = Rule("team", ("search",), "tokens", "day", 1000)
SLOTS = Rule("team", ("search",), "concurrency", None, 8)
LINES = ((REQUESTS, 1), (TOKENS, 100), (SLOTS, 1))


@dataclass
class Call:
    """One call as it came."""

    kind: Literal["turn", "renew"]
    claims: list[Claim]
    settlements: list[Settlement] = field(default_factory=list)


class Scripted:
    """Grants every claim but those in `refused`, at `level` on every line.

    Mutable state, for tests to set: `away` fails every call, `hangs` leaves it without an answer,
    `gate` keeps it until it is set, `broken` is raised, `wrong` answers with one decision too few;
    `on_answer` is called as the answer comes; `workers`.
    For tests to read: `calls`, and `together`, the most calls that were under way at once.
    """

    def __init__(self) -> None:
        self.away = False
        self.hangs = False
        self.gate: asyncio.Event | None = None
        self.broken: Exception | None = None
        self.on_answer: Callable[[], object] = lambda: None
        self.wrong = False
        self.refused: set[str] = set()
        self.level: Level = (1000, 0)
        self.workers = 1
        self.calls: list[Call] = []
        self.probes = 0
        self.together = 0
        self.closed = False
        self._under_way = 0

    @property
    def turns(self) -> list[Call]:
        return [call for call in self.calls if call.kind == "turn"]

    @property
    def renewals(self) -> list[list[Claim]]:
        """Those that carried claims."""
        return [call.claims for call in self.calls if call.kind == "renew" and call.claims]

    @property
    def settlements(self) -> list[Settlement]:
        """All that came, in their order, with those that came again."""
        return [each for call in self.calls for each in call.settlements]

    async def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim]
    ) -> Sequence[Decision]:
        await self._answer(Call("turn", list(claims), list(settlements)))
        decisions = [
            Decision(
                0,
                [self.level] * len(claim.lines),
                *((0, 1_000_000) if claim.id in self.refused else ()),
            )
            for claim in claims
        ]
        return decisions[1:] if self.wrong else decisions

    async def renew(self, claims: Sequence[Claim]) -> None:
        await self._answer(Call("renew", list(claims)))

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        return [self.level] * len(rules)

    async def reset(self, rules: Sequence[Rule]) -> None:
        pass

    async def probe(self) -> None:
        self.probes += 1
        if self.away or self.hangs:
            raise Unavailable("gone")

    async def close(self) -> None:
        self.closed = True

    async def _answer(self, call: Call) -> None:
        self.calls.append(call)
        self._under_way += 1
        self.together = max(self.together, self._under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.hangs:
                await asyncio.Event().wait()
            self.on_answer()
            if self.broken is not None:
                raise self.broken
            if self.away:
                raise Unavailable("gone")
        finally:
            self._under_way -= 1


@asynccontextmanager
async def carried(
    store: Scripted, mode: Mode = "local", workers: int = 1
) -> AsyncIterator[Courier]:
    """A courier at work on a store that was there at its start."""
    courier = Courier(store, mode, microseconds(), workers)
    await courier.start()
    store.calls.clear()
    task = asyncio.create_task(courier.run())
    try:
        yield courier
    finally:
        assert not task.done(), "nobody carries any more"
        await ended(task)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def claim(name: object, lines: Sequence[tuple[Rule, int]] = LINES) -> Claim:
    return Claim(str(name), tuple(lines))


def spent(tokens: int = 100) -> list[Settled]:
    return [(TOKENS, 100, tokens), (SLOTS, 1, 0)]


def nothing(*rules: Rule) -> list[Settled]:
    return [(rule, amount, 0) for rule, amount in LINES if rule in rules]


def ids(of: Iterable[object]) -> list[str]:
    return [each.id for each in of]  # type: ignore[attr-defined]


def ask(courier: Courier, *names: object) -> list[asyncio.Task[Decision]]:
    return [asyncio.create_task(courier.decide(claim(name))) for name in names]


async def gone(courier: Courier, store: Scripted) -> None:
    """Make the store go away, and wait until the courier knows."""
    store.away = True
    while not courier._breaker.open:
        await courier.decide(claim("lost", [(TOKENS, 0)]))
        courier.settle(claim("lost", [(TOKENS, 0)]), [], 0)
