"""Whoever blocks the event loop is named: a thread that looks whether the loop still turns.

A coroutine that computes for long, or a call that waits, stops every stream of the process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger("fairgate")

_TICK = 0.1
#: Seconds the loop may stand still before it is told of.
BLOCKED = 0.4
#: The innermost frames are those that block.
_FRAMES = 8


class Watchdog:
    """Mutable state: `_beat`, when the loop last turned, and `_told`, of which beat that is told
    already; `_over`, set when the thread is to end.
    """

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self._told = 0.0
        self._over = threading.Event()

    async def run(self, lag: Callable[[float], None]) -> None:
        """Watch the running loop until cancelled; `lag` is told how late it woke, in seconds."""
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="watchdog", daemon=True
        )
        thread.start()
        try:
            while True:
                self._beat = time.monotonic()
                await asyncio.sleep(_TICK)
                lag(max(0.0, time.monotonic() - self._beat - _TICK))
        finally:
            self._over.set()
            thread.join()

    def _look(self, loop_thread: int) -> None:
        while not self._over.wait(_TICK):
            beat = self._beat
            if beat != self._told and time.monotonic() - beat >= BLOCKED + _TICK:
                self._told = beat
                frame = sys._current_frames().get(loop_thread)
                places = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
                # Places only: a line of code may hold what a caller sent.
                where = " < ".join(f"{p.filename}:{p.lineno} {p.name}" for p in reversed(places))
                logger.warning("the event loop stands still for %.1f s: %s", BLOCKED, where)
