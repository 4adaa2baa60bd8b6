"""What `/events` tells: the newest status, asked for once for all who listen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson

#: How often the status is asked for, and how long nothing new is told at most, in seconds.
EVERY = 0.5
SILENCE = 10.0
MOST_LISTENERS = 16


class Feed:
    """Nobody works for it while nobody listens: a listener who needs the next document asks for
    it, and the others who wait have it too.

    Mutable state: `listeners`, how many there are; `_newest`, the document told last, and
    `_number`, its number; `_told_at` and `_asked_at`, when it was told and last asked for; `_turn`,
    held by the listener who asks.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[dict[str, Any]]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.listeners = 0
        self._status = status
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._newest = b""
        self._number = 0
        self._told_at = self._asked_at = float("-inf")

    @property
    def full(self) -> bool:
        return self.listeners >= MOST_LISTENERS

    async def documents(self) -> AsyncGenerator[bytes, None]:
        """The status now, then whenever it is another one, and at least every 10 s."""
        seen = -1
        while True:
            await self._another(seen)
            seen = self._number
            yield self._newest

    async def _another(self, seen: int) -> None:
        """Until there is a document of another number than `seen`, and not an old one."""
        while self._is_old(seen):
            async with self._turn:  # for one question: who comes late is not to wait for a change
                if self._is_old(seen):
                    await self._sleep(max(0.0, self._asked_at + EVERY - self._clock()))
                    await self._ask()

    def _is_old(self, seen: int) -> bool:
        return seen == self._number or self._clock() - self._asked_at >= EVERY

    async def _ask(self) -> None:
        told = orjson.dumps(await self._status())
        self._asked_at = self._clock()
        if told != self._newest or self._asked_at - self._told_at >= SILENCE:
            self._newest, self._told_at = told, self._asked_at
            self._number += 1
