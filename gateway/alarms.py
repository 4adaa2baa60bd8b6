"""Timers that are set and stopped for every request, and hardly ever ring.

To make and to end a timer of the event loop costs more than a hundred steps of Python. So an alarm
that is stopped leaves its timer where it is: whoever sets it next mostly wants to be called later
than that, and when the timer comes it looks whether it is time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls one function at one time. Mutable state: these, None while it is not set; the timer
    and when that comes, a millisecond after the time that is set at most.
    """

    __slots__ = ("_at", "_call", "_loop", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._call: Callable[[], None] | None = None
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def is_set(self) -> bool:
        return self._call is not None

    def set(self, at: float, call: Callable[[], None]) -> None:
        """Call it once, at a time of the event loop's clock, and nothing that was set before."""
        self._at = at
        self._call = call
        if self._timer is None:
            self._start()
        elif at < self._timer_at:
            self._timer.cancel()
            self._start()

    def stop(self) -> None:
        self._call = None

    def end(self) -> None:
        """Stop it for good, its timer too."""
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        # uvloop counts whole milliseconds and may come early; at once again, it would spin.
        soonest = self._loop.time() + 0.001
        self._timer_at = self._at if self._at > soonest else soonest
        self._timer = self._loop.call_at(self._timer_at, self._look)

    def _look(self) -> None:
        self._timer = None
        call = self._call
        if call is None:
            return
        if self._at > self._loop.time():
            self._start()
            return
        self._call = None
        call()


class Alarms:
    """Those of one process. Mutable state: the ones nobody has, most with a timer that runs on."""

    def __init__(self) -> None:
        #: To ask asyncio each time asks the system for the process each time.
        self.loop = asyncio.get_running_loop()
        self._free: list[Alarm] = []

    def take(self) -> Alarm:
        return self._free.pop() if self._free else Alarm(self.loop)

    def give(self, alarm: Alarm) -> None:
        alarm.stop()
        self._free.append(alarm)
