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

    Mutable state, until its task has it: `_left`, alone in a tuple, what that step left to wait
    for; `_ended`, what it ended with.
    """

    __slots__ = ("_coroutine", "_ended", "_left")

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._left: tuple[asyncio.Future[Any] | None] | None = None
        self._ended: BaseException | None = None

    def begin(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        """Take the first step, as if `task` did, but in the context of who calls.

        A context variable set there would be the connection's; nothing here has any.
        """
        outer = asyncio.current_task(loop)
        if outer is not None:
            _leave_task(loop, outer)
        _enter_task(loop, task)
        try:
            self._left = (self._coroutine.send(None),)
        except BaseException as exc:  # the task's, whatever it is
            self._ended = exc
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)

    def send(self, value: Any) -> Any:
        self._end()
        left, self._left = self._left, None
        if left is not None:
            return left[0]
        return self._coroutine.send(value)

    def throw(self, *exc: Any) -> Any:
        self._end()  # it may have been over before it was cancelled
        left, self._left = self._left, None
        if left is not None and left[0] is not None:
            left[0].cancel()  # as its task would have
        return self._coroutine.throw(*exc)

    def _end(self) -> None:
        """Raise what it ended with, if it did, and keep it no longer: its traceback leads here."""
        if self._ended is not None:
            try:
                raise self._ended
            finally:
                self._ended = None

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
