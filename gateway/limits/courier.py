"""The way to a shared store: what one turn of the event loop asks goes there in one call.

One call is under way at a time; what comes meanwhile is gathered for the next. So settlements are
applied in their order, before the claims that come after them, and a renewal never brings back a
lease that was given up. The store's calls belong to the worker, never to a request: whoever
leaves, no call is cut short, and what was granted to nobody is given back.

While the store is away, the configured mode decides: `local` by a share of the rules kept here,
`open` grants everything, `closed` refuses. What was used meanwhile is charged when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, TypeVar

from gateway.limits.base import (
    LEASE,
    Claim,
    Close,
    Decision,
    Form,
    Level,
    Rule,
    Settled,
    Settlement,
    Store,
    Unavailable,
)
from gateway.limits.breaker import Breaker
from gateway.limits.memory import Memory
from gateway.limits.owed import Owed
from gateway.logs import told_safely

logger = logging.getLogger("fairgate")

Mode = Literal["local", "open", "closed"]
T = TypeVar("T")
Asked = tuple[Claim, asyncio.Future[Decision]]

#: The most settlements, claims or rules in one call: a shared store serves nobody else meanwhile.
MOST = 128
#: The most settlements that wait for a store that is away.
_MOST_WAITING = 10_000
#: How long a call may take, in seconds: a request waits no longer for its limits.
_CALL = 0.05
#: What a call gets on top where our own timer came late: its answer may be here, unread.
_GRACE = 0.01
_RENEW_EVERY = LEASE / 3
_PROBE_EVERY = 0.5
_PROBE = 0.5


class Shared(Store, Protocol):
    """A store that other workers use too. `workers` is how many were heard of."""

    workers: int

    async def probe(self) -> None: ...
    async def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class Held:
    """A granted claim that is not settled yet.

    `local` where it was granted here; mutable: `stored`, whether the store may have its leases.
    """

    claim: Claim
    local: bool
    stored: bool


class Courier:
    """Decides claims by a shared store, and without it.

    Mutable state: the claims that wait, the settlements that do, the live requests, what was used
    `_owed` while the store was away, and the levels last seen; `degraded`, whether the store's
    last answer did not come; `dropped`, how many settlements were given up; `decided_here`, how
    many claims were decided without the store.

    `workers` is how many share the store at least, should it be away before it can tell.
    """

    def __init__(self, store: Shared, mode: Mode, now: Callable[[], int], workers: int = 1) -> None:
        self.degraded = False
        self.dropped = 0
        self.decided_here = 0
        self._store = store
        self._mode = mode
        self._workers = workers
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._breaker = Breaker()
        self._memory: Memory | None = None
        self._wake = asyncio.Event()
        self._waiting: deque[Asked] = deque()
        self._settlements: deque[Settlement] = deque()
        self._live: dict[str, Held] = {}
        self._owed = Owed(now)
        self._seen: dict[Rule, tuple[Level, int, int, tuple[int, int]]] = {}
        self._renew_at = 0.0

    @property
    def live(self) -> int:
        return len(self._live)

    # What a request asks

    async def decide(self, claim: Claim) -> Decision:
        """Raises Unavailable where nothing can decide and the mode is `closed`."""
        if self._breaker.open:
            return self._without(claim)
        waiting: asyncio.Future[Decision] = self._loop.create_future()
        self._waiting.append((claim, waiting))
        self._wake.set()
        try:
            return await waiting
        except asyncio.CancelledError:
            if claim.id in self._live:  # granted, but nobody came for it
                self._give_back(claim)
            raise

    def settle(self, claim: Claim, lines: Sequence[Settled], since: int) -> None:
        """The end of a granted claim, decided at `since`. Never waits; a second time does nothing.

        `lines` has every line of the claim whose amount changed, and all its slots.
        """
        held = self._live.pop(claim.id, None)
        if held is None:
            return
        if self._memory is not None:
            self._memory.settle(lines, since)
        if held.local:
            self._owed.add(claim, lines, since)
            lines = [line for line in lines if line[0].form is Form.SLOTS] if held.stored else []
        if lines or not held.local:  # its reservation is taken away, where nothing else changes
            self._send(Settlement(claim.id, lines))

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        """What is left of each rule. Raises Unavailable."""
        if self.degraded and (memory := self._stand_in()) is not None:
            return memory.levels(rules)
        levels: list[Level] = []
        for first in range(0, len(rules), MOST):
            asked = self._store.levels(rules[first : first + MOST])
            levels += await self._within(_PROBE, asked)
        return levels

    async def reset(self, rules: Sequence[Rule]) -> None:
        """Forget what was counted. Raises Unavailable."""
        for rule in rules:
            self._seen.pop(rule, None)
        self._owed.forget(rules)
        if self._memory is not None:
            self._memory.reset(rules)
        for first in range(0, len(rules), MOST):
            await self._within(_PROBE, self._store.reset(rules[first : first + MOST]))

    # The worker's task

    async def start(self) -> None:
        """Look whether the store is there, and how many use it. Takes a second at most."""
        try:
            await self._greet()
        except Unavailable as exc:
            self._failed(exc, at_once=True)
        self._renew_at = self._loop.time() + _RENEW_EVERY * random.uniform(0.5, 1)

    async def run(self) -> None:
        """Carry what waits, renew what lives, and look for the store while it is away."""
        while True:
            try:
                await (self._look_for_it() if self._breaker.open else self._go())
            except Exception as exc:  # whatever is wrong: requests must not wait for ever
                logger.error("limits: %s", told_safely(exc))
                self._failed(Unavailable("a fault of our own"), at_once=True)

    async def close(self, within: float) -> None:
        """Deliver what still waits, for at most so many seconds. `run` must have ended."""
        deadline = self._loop.time() + within
        while not self._breaker.open and (self._settlements or self._owed):
            if self._loop.time() > deadline:
                break
            await self._turn()
        left = len(self._settlements) + bool(self._owed)
        if left:
            logger.warning("limits: %d settlements could not be delivered at the end", left)
        with contextlib.suppress(Unavailable):
            await self._within(_PROBE, self._store.close())

    async def _go(self) -> None:
        if not self._wake.is_set():
            await self._sleep(self._renew_at)
        self._wake.clear()
        if self._loop.time() >= self._renew_at:
            await self._renew()
        else:
            await self._turn()
        if self._waiting or self._settlements:
            self._wake.set()

    async def _sleep(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()

    async def _turn(self) -> None:
        """One call: all that waits, as far as one call goes."""
        self._charge_owed()
        settlements = list(islice(self._settlements, MOST))
        asked = self._gathered()
        if not settlements and not asked:
            return
        try:
            turn = self._store.turn(settlements, [claim for claim, _ in asked])
            decisions = await self._within(_CALL, turn)
            self._answered()
            for _ in settlements:
                self._settlements.popleft()
            for decision in decisions:
                self._deliver(*asked[0], decision)
                asked.popleft()
        except Unavailable as exc:
            self._failed(exc)
        finally:
            self._decide_here(asked)
            for claim, _ in asked:
                self._undo(claim)

    def _gathered(self) -> deque[Asked]:
        asked: deque[Asked] = deque()
        while self._waiting and len(asked) < MOST:
            each = self._waiting.popleft()
            if not each[1].cancelled():
                asked.append(each)
        return asked

    def _deliver(self, claim: Claim, waiting: asyncio.Future[Decision], decision: Decision) -> None:
        at = self._now()
        for (rule, _), level in zip(claim.lines, decision.levels, strict=True):
            self._seen[rule] = (level, at, rule.limit, rule.scale)
        if decision.refused is None:
            self._live[claim.id] = Held(claim, local=False, stored=True)
            if waiting.cancelled():
                self._give_back(claim)
        if not waiting.cancelled():
            waiting.set_result(decision)

    def _give_back(self, claim: Claim) -> None:
        self.settle(claim, _nothing_used(claim), self._now())

    async def _renew(self) -> None:
        """Hold what lives, in calls after each of which all that waits has its turn."""
        self._renew_at = self._loop.time() + _RENEW_EVERY
        ids = list(self._live)
        for first in range(0, max(1, len(ids)), MOST):
            held = [self._live[i] for i in ids[first : first + MOST] if i in self._live]
            for each in held:
                each.stored = True  # before it is: what ends meanwhile must be taken out again
            try:
                await self._within(_CALL, self._store.renew([each.claim for each in held]))
            except Unavailable as exc:
                self._failed(exc)
                self._renew_at = self._loop.time() + 1
                return
            self._answered()
            await self._turn()
            if self._breaker.open:
                return

    def _undo(self, claim: Claim) -> None:
        """Nobody knows whether the call that carried it was, or will be, carried out."""
        lines = _nothing_used(claim)
        held = self._live.get(claim.id)
        if held is not None:  # it was granted here meanwhile; it may keep the leases it may have
            held.stored = True
            lines = [line for line in lines if line[0].form is not Form.SLOTS]
        self._send(Settlement(claim.id, lines, Close.UNDO))

    async def _within(self, seconds: float, call: Awaitable[T]) -> T:
        loop = self._loop

        def overdue() -> None:
            late = loop.time() - due > _GRACE / 2
            limit.reschedule(loop.time() + (_GRACE if late else 0))

        due = loop.time() + seconds
        timer = loop.call_at(due, overdue)
        try:
            async with asyncio.timeout(None) as limit:
                return await call
        except TimeoutError:
            raise Unavailable(f"no answer within {seconds * 1000:.0f} ms") from None
        except Unavailable:
            raise
        except Exception as exc:  # whatever a client raises: requests must not wait for ever
            raise Unavailable(told_safely(exc)) from exc
        finally:
            timer.cancel()

    def _send(self, settlement: Settlement) -> None:
        if len(self._settlements) < _MOST_WAITING:
            self._settlements.append(settlement)
            self._wake.set()
        else:
            self.dropped += 1

    # Without the store

    def _answered(self) -> None:
        self._breaker.succeeded()
        if self.degraded:
            self.degraded = False
            self._memory = None
            self._renew_at = 0.0  # what was let in here must count there at once

    def _failed(self, why: Unavailable, at_once: bool = False) -> None:
        self.degraded = True
        if self._breaker.failed(at_once):
            logger.warning("limits: Redis is away (%s); going on as %r", why, self._mode)
        # They have waited for one call already; a second wait would be one too many.
        waiting = list(self._waiting)
        self._waiting.clear()
        self._decide_here(waiting)

    async def _look_for_it(self) -> None:
        await asyncio.sleep(_PROBE_EVERY * random.uniform(0.8, 1.2))
        try:
            await self._greet()
        except Unavailable:
            return
        self._breaker.close()
        self._answered()
        logger.warning("limits: Redis is back; %d settlements go there", len(self._settlements))

    async def _greet(self) -> None:
        """Raises Unavailable unless it answers, takes writes, and is fast enough for a call."""
        # A new connection may take its time; what comes after it may not.
        await self._within(_PROBE, self._store.probe())
        await self._within(_CALL, self._store.renew(()))

    def _decide_here(self, asked: Iterable[Asked]) -> None:
        for claim, waiting in asked:
            if waiting.done():
                continue
            try:
                waiting.set_result(self._without(claim))
            except Exception as exc:  # its request's, whatever it is
                waiting.set_exception(exc)

    def _without(self, claim: Claim) -> Decision:
        self.decided_here += 1
        if self._mode == "closed":
            raise Unavailable("limits cannot be checked")
        memory = self._stand_in()
        decision = Decision(self._now(), ()) if memory is None else memory.decide(claim)
        if decision.refused is None:
            self._live[claim.id] = Held(claim, local=True, stored=False)
        return decision

    def _stand_in(self) -> Memory | None:
        """What decides here in mode `local`: a share of each rule, from the level last seen."""
        if self._memory is None and self._mode == "local":
            self._memory = Memory(self._now, max(self._workers, self._store.workers))
            for rule, ((left, reset), at, limit, scale) in self._seen.items():
                # Where the limit changed since then, what was used stays used.
                self._memory.begin(rule, (left + rule.limit - limit, reset), at, scale)
            for held in self._live.values():
                self._memory.hold(held.claim.lines)
        return self._memory

    def _charge_owed(self) -> None:
        """First of all: claims are not decided before what was used here is counted there."""
        owed = self._owed.taken()
        for first in range(0, len(owed), MOST):
            lines = owed[first : first + MOST]
            charge = Settlement(secrets.token_hex(12), lines, Close.CHARGE)
            self._settlements.appendleft(charge)


def _nothing_used(claim: Claim) -> list[Settled]:
    return [(rule, amount, 0) for rule, amount in claim.lines]
