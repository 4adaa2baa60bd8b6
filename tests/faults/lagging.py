"""The command with a finer watch: `python -m tests.faults.lagging FILE serve --config ...`.

Its own watchdog looks whether the event loop turns, ten times a second, and keeps the last lag.
Here it looks every 5 ms, and each line of FILE is a lag worth telling: when the loop woke
(`time.monotonic`), how late, for how much of that its thread computed, and for how much the machine
gave the core to somebody else; or what the watchdog says of who blocks the loop.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gateway import watchdog, worker
from gateway.cli import main

#: Seconds between two looks, from which on a lag is told, and from which on whose it is.
EVERY = 0.005
TOLD = 0.005
BLOCKED = 0.03


class Witness(logging.Handler):
    """Mutable state: `_waited` and `_computed`, how long the loop's thread did either so far."""

    def __init__(self, out: IO[str]) -> None:
        super().__init__(logging.WARNING)
        self._out = out
        self._waited = self._computed = 0.0

    def lagged(self, seconds: float) -> None:
        """Called in the loop's thread, each time it woke."""
        computed, waited = time.thread_time(), _waited_for_a_core()
        if seconds >= TOLD:
            others = min(seconds, waited - self._waited)
            self._tell(late=seconds, computed=computed - self._computed, others=others)
        self._computed, self._waited = computed, waited

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(where=record.getMessage())

    def _tell(self, **told: float | str) -> None:
        self._out.write(json.dumps({"at": time.monotonic(), **told}) + "\n")
        self._out.flush()


class Finer(watchdog.Watchdog):
    """A watchdog whose lags the witness hears of. Mutable state: as the watchdog's."""

    witness: Witness

    async def run(self, lag: Callable[[float], None]) -> None:
        def both(seconds: float) -> None:
            self._beat = time.monotonic()  # what the witness does blocks nothing
            lag(seconds)
            self.witness.lagged(seconds)

        await super().run(both)


def _waited_for_a_core() -> float:
    """Seconds that this thread was ready to run and did not (`/proc/PID/schedstat`)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


if __name__ == "__main__":
    with Path(sys.argv.pop(1)).open("a") as _out:
        Finer.witness = Witness(_out)
        logging.getLogger("fairgate").addHandler(Finer.witness)
        watchdog._TICK, watchdog.BLOCKED = EVERY, BLOCKED
        worker.Watchdog = Finer  # type: ignore[attr-defined]
        main()
