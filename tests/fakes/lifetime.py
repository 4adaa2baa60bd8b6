"""What serves in this event loop until the test says so: a worker, a supervisor."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tests.fakes.gateway import until


class Serves(Protocol):
    def serving(self) -> AbstractAsyncContextManager[list[str]]: ...


class Lifetime:
    """Its start and its end may take `patience` seconds each.

    Mutable state: `addresses`, once it serves; the task that it serves in.
    """

    def __init__(self, serves: Serves, patience: float) -> None:
        self._patience = patience
        self.addresses: list[str] = []
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._live(serves))

    async def _live(self, serves: Serves) -> None:
        async with serves.serving() as addresses:
            self.addresses = addresses
            await self._end.wait()

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    async def started(self) -> None:
        """Once it serves; what kept it from serving is raised."""
        await until(lambda: bool(self.addresses) or self._task.done(), self._patience)
        if self._task.done():
            self._task.result()

    def end(self) -> None:
        self._end.set()

    async def ended(self) -> None:
        self.end()
        await asyncio.wait_for(self._task, self._patience)
