"""A request's first steps, taken within the read that brought it.

A task takes its first step in the next turn of the event loop: after everything else that this one
has to do, and after the system was asked once more what there is to read. Most requests wait for
nothing until they are sent on, so they are begun at once, and a task is made of what is left.

Up to its first wait such a coroutine has no task: `asyncio.timeout` and `asyncio.TaskGroup` refuse
to work there. (Python 3.12 has tasks that begin so themselves.)
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any


def begin(coroutine: Coroutine[Any, Any, None]) -> Begun | None:
    """Run it up to its first wait: what a task is to go on with, None where it is over."""
    try:
        pending = coroutine.send(None)
    except StopIteration:
        return None
    return Begun(coroutine, pending)


class Begun(Coroutine[Any, Any, None]):
    """A coroutine that waits already. The task that takes it over is told at its first step what
    for, as if it had come there by that.

    Mutable state: `_pending`, what it waits for, and whether its task still has to be `_told`.
    """

    __slots__ = ("_coroutine", "_pending", "_told")

    def __init__(self, coroutine: Coroutine[Any, Any, None], pending: Any) -> None:
        self._coroutine = coroutine
        self._pending = pending
        self._told = False

    def send(self, value: None) -> Any:
        if self._told:
            return self._coroutine.send(value)
        self._told = True
        pending, self._pending = self._pending, None
        return pending

    def throw(
        self,
        typ: Any,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """As its task does to cancel it. Before the first step it knows nothing of the wait that it
        would have ended first (`asyncio.Task.cancel`).
        """
        if not self._told:
            self._told = True
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.cancel()
        return self._coroutine.throw(typ) if val is None else self._coroutine.throw(typ, val, tb)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("it is for a task of its own")
