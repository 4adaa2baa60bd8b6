"""The log of requests on standard output, and diagnostics on standard error.

Lines wait in a bounded queue and a thread writes them: a blocked pipe neither delays nor fails a
request, it costs lines, which are counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from queue import SimpleQueue
from typing import Any

#: A write of at most this size to a pipe is atomic (POSIX `PIPE_BUF`), so that the lines of
#: processes that share a pipe never mix.
ATOMIC = 4096
_GATHER = 0.02


class LineLog:
    """Mutable state: `_lines`, those waiting, and None behind the last; `dropped`, how many were
    not taken.
    """

    def __init__(self, fd: int, capacity: int) -> None:
        self._fd = fd
        self._capacity = capacity
        # It wakes its reader in C. An Event's Python would be most of what a line costs.
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._warned_at = 0.0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="fairgate-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Take one line, its newline included. Never waits."""
        if self._lines.qsize() < self._capacity:
            self._lines.put(line)
        else:
            self.dropped += 1

    def close(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        more = True
        while more:
            line = self._lines.get()
            if line is not None:
                time.sleep(_GATHER)  # what comes meanwhile leaves in the same write
            more = self._drain(line)
            self._warn()

    def _drain(self, line: bytes | None) -> bool:
        """Write `line` and those behind it, as many at once as stay together; False at the end."""
        batch: list[bytes] = []
        size = 0
        while line is not None:
            if batch and size + len(line) > ATOMIC:
                self._put_out(batch, size)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
            if self._lines.empty():
                break
            line = self._lines.get()
        if batch:
            self._put_out(batch, size)
        return line is not None

    def _put_out(self, batch: list[bytes], size: int) -> None:
        if size > ATOMIC:  # one line, longer than may be written in one piece
            self.dropped += 1
            return
        try:
            os.write(self._fd, b"".join(batch))
        except OSError:  # no reader, no disk: requests go on without a log
            self.dropped += len(batch)

    def _warn(self) -> None:
        now = time.monotonic()
        if self.dropped and now - self._warned_at > 60:
            self._warned_at = now
            logging.getLogger("fairgate").warning(
                "%d log lines were dropped: standard output does not keep up", self.dropped
            )


def set_up_diagnostics(level: str) -> None:
    """Send diagnostics to standard error, ours in full and those of libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("fairgate").setLevel(level.upper())


class _Line(logging.Formatter):
    """One line a message. An exception is told by its frames: its text could hold a secret."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatException(self, ei: object) -> str:
        assert isinstance(ei, tuple)
        return told_safely(ei[1]) if isinstance(ei[1], BaseException) else ""


def tell_of_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. Its usual one shows tasks, and with them the text of
    what they raised."""
    exc = context.get("exception")
    told = told_safely(exc) if isinstance(exc, BaseException) else "no exception"
    message, _, _ = context["message"].partition("(")  # a callback's arguments come next
    logging.getLogger("fairgate").error("%s: %s", message, told)


def tell_of_end(task: asyncio.Task[Any]) -> None:
    """For a task that goes on as long as its process: nobody awaits it, to hear of its failure."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        logging.getLogger("fairgate").error("a task of the process failed: %s", told_safely(exc))


def told_safely(exc: BaseException) -> str:
    """The type and the place of an exception, without any value."""
    frames = traceback.extract_tb(exc.__traceback__)
    places = " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in reversed(frames)
    )
    return f"{type(exc).__name__} at {places or 'unknown place'}"
