"""Step 7: what is told of a request when it is over: one log line, and the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from gateway.logs import LineLog, told_safely
from gateway.metrics import Metrics
from gateway.reply import Reply
from gateway.terms import Record

logger = logging.getLogger("fairgate")


class Line(msgspec.Struct):
    """One line of the log: the fields that users rely on, in their order. Times in milliseconds."""

    time: str
    request_id: str
    client_request_id: str
    trace_id: str
    key: str
    team: str
    endpoint: str
    model: str
    pool: str
    replica: str
    stream: bool
    status: int
    outcome: str
    attempts: int
    admit_ms: float
    first_event_ms: float
    total_ms: float
    bytes_in: int
    bytes_out: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_are: str
    limited_by: str


class Account:
    """Where every request ends, whatever its outcome."""

    def __init__(self, metrics: Metrics, log: LineLog, clock: Callable[[], float]) -> None:
        self.metrics = metrics
        self._log = log
        self._clock = clock
        self._encoder = msgspec.json.Encoder()
        self._second = -1
        self._stamp = ""

    def close(self, record: Record, reply: Reply) -> None:
        now = self._clock()
        record.status = reply.status or record.status
        record.bytes_out = reply.bytes_out
        self.metrics.close(record, now - record.began)
        self._log.write(self._encoder.encode(self._line(record, now)) + b"\n")

    def fault(self, record: Record, exc: Exception) -> None:
        """Diagnose a fault of our own, with no value in it: it could be a prompt or a key."""
        logger.error("%s: %s", record.request_id, told_safely(exc))

    def _line(self, record: Record, now: float) -> Line:
        usage = record.usage
        began = record.began
        return Line(
            self._time(),
            record.request_id,
            record.client_request_id,
            record.trace_id,
            record.key,
            record.team,
            record.endpoint,
            record.model[:128],
            record.pool,
            record.replica,
            record.stream,
            record.status,
            record.outcome,
            record.attempts,
            _milliseconds(record.admitted - began) if record.admitted else 0.0,
            _milliseconds(record.first_event - began) if record.first_event else 0.0,
            _milliseconds(now - began),
            record.bytes_in,
            record.bytes_out,
            usage.prompt,
            usage.cached,
            usage.completion,
            "exact" if usage.exact else "counted",
            record.limited_by,
        )

    def _time(self) -> str:
        """RFC 3339 in UTC; the part up to the second is made once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
