"""What goes first: answers that begin, and then what follows of those that have begun.

Engines send the events of all their streams at once, after each of their steps, and it takes the
gateway longer to pass on all of these than any caller should wait for a first one. So what follows
of an answer is held when it was read, and one is passed on in each turn of the event loop, which
looks in between for requests and for first events. Nothing waits for more to come: a loop that has
nothing else to do passes on all there is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

#: Seconds after which all that waits is passed on, whatever begins meanwhile: under a load that has
#: no end, those who began would else stand still for those who begin.
PATIENCE = 0.005


class Holder(Protocol):
    def pass_on(self) -> None:
        """Pass on what is held, if that is still wanted. Never raises."""


class Precedence:
    """Mutable state: `_waiting`, who holds something, in the order they came."""

    def __init__(self) -> None:
        self._waiting: deque[Holder] = deque()

    def defer(self, holder: Holder, loop: asyncio.AbstractEventLoop) -> None:
        """Have `holder` pass on what it holds, behind all that begins meanwhile."""
        if not self._waiting:
            loop.call_soon(self._turn, loop)
        self._waiting.append(holder)

    def _turn(self, loop: asyncio.AbstractEventLoop, until: float = 0.0) -> None:
        """`until` says when those who wait have waited for long enough; 0 in their first turn."""
        waiting = self._waiting
        overdue = until and loop.time() >= until
        for _ in range(len(waiting) if overdue else 1):
            waiting[0].pass_on()
            waiting.popleft()  # only now: who is deferred meanwhile needs no turn of its own
            if not waiting:
                return
        loop.call_soon(self._turn, loop, until or loop.time() + PATIENCE)
