"""Step 7: what is told of a request when it is over: one log line, and the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import floor

import msgspec

from gateway.logs import LineLog, told_safely
from gateway.metrics import Metrics
from gateway.reply import Reply
from gateway.terms import Record, milliseconds

logger = logging.getLogger("fairgate")

#: A line tells at most so much of a model's name: it has to fit into one write.
_LONGEST_NAME = 128
#: How a time of day ends, by its milliseconds.
_FRACTIONS = [f".{n:03d}Z" for n in range(1000)]


class Account:
    """Where every request ends, whatever its outcome."""

    def __init__(self, metrics: Metrics, log: LineLog, clock: Callable[[], float]) -> None:
        self.metrics = metrics
        self._log = log
        self._clock = clock
        self._encoder = msgspec.json.Encoder()
        self._second = -1.0
        self._stamp = ""

    def close(self, record: Record, reply: Reply, began: float) -> None:
        """End a request that came at `began`, on this account's clock."""
        record.status = reply.status or record.status
        record.bytes_out = reply.bytes_out
        record.total_ms = milliseconds(self._clock() - began)
        self.metrics.close(record)
        if len(record.model) > _LONGEST_NAME:
            record.model = record.model[:_LONGEST_NAME]
        record.time = self._time()
        self._log.write(self._encoder.encode_lines((record,)))

    def fault(self, record: Record, exc: Exception) -> None:
        """Diagnose a fault of our own, with no value in it: it could be a prompt or a key."""
        logger.error("%s: %s", record.request_id, told_safely(exc))

    def _time(self) -> str:
        """RFC 3339 in UTC; the part up to the second is made once a second."""
        now = time.time()
        fraction = now - self._second
        if not 0.0 <= fraction < 1.0:
            self._second = float(int(now))
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._second))
            fraction = now - self._second
        return self._stamp + _FRACTIONS[floor(fraction * 1000.0)]
