"""Tasks whose first step is taken at once, as those are that Python 3.12 starts eagerly.

Between the read that brought a request and its task's first step a busy event loop does all else
that has come by then. The first request of a turn need not wait for that; those that come with it
do, and then take each step together (docs/decisions/0010).
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from typing import Any


class Eager(Coroutine[Any, Any, None]):
    """A coroutine whose first step is taken before its task's.

    Mutable state: `_waits_for`, what that step left to its task to wait for, in a list that is
    empty once the task has it; `_ended`, what it ended with.
    """

    __slots__ = ("_coroutine", "_ended", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._waits_for: list[asyncio.Future[Any] | None] = []
        self._ended: BaseException | None = None

    def begin(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        """Take the first step, as if `task` did."""
        outer = asyncio.current_task(loop)
        if outer is not None:
            _leave_task(loop, outer)
        _enter_task(loop, task)
        try:
            self._waits_for.append(self._coroutine.send(None))
        except BaseException as exc:  # the task's, whatever it is
            self._ended = exc
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)

    def send(self, value: Any) -> Any:
        if self._ended is not None:
            raise self._ended
        if self._waits_for:
            return self._waits_for.pop()
        return self._coroutine.send(value)

    def throw(self, *exc: Any) -> Any:
        if self._ended is not None:
            raise self._ended  # it was over before it was cancelled
        if self._waits_for:
            waits_for = self._waits_for.pop()
            if waits_for is not None:
                waits_for.cancel()  # as its task would have
        return self._coroutine.throw(*exc)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coroutine.__await__()


class Starts:
    """Mutable state: `_begun`, whether a task was begun at once in this turn of the loop."""

    def __init__(self) -> None:
        self._begun = False

    def is_first(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether nobody else asked in this turn of the loop."""
        if self._begun:
            return False
        self._begun = True
        loop.call_soon(self._turned)
        return True

    def _turned(self) -> None:
        self._begun = False
