"""Whoever blocks the event loop is named: a thread that looks whether the loop still turns.

A coroutine that computes for long, or a call that waits, stops every stream of the process.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import PurePath

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
                logger.warning("the event loop stands still for %.1f s: %s", BLOCKED, told(places))


def told(places: Sequence[traceback.FrameSummary]) -> str:
    """Who blocks, by the stack of the loop's thread, the innermost frame last."""
    if not places or _of_the_loop(places[-1].filename):
        return (
            "nothing of ours was running: the machine was busy, or the process was stopped, or a "
            "library's C code worked for long"
        )
    # Places only: a line of code may hold what a caller sent.
    return " < ".join(f"{p.filename}:{p.lineno} {p.name}" for p in reversed(places))


def _of_the_loop(file: str) -> bool:
    return file == selectors.__file__ or PurePath(file).parent.name in ("asyncio", "uvloop")
