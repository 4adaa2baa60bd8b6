"""What can go wrong on the model servers' side.

BackendError
├── NoReplica              no replica of the pool can be tried (again)
├── KillsEngines           the request was in flight when engines died: it is not sent again
├── ConnectFailed          no connection: refused, unreachable, too slow, TLS not trusted
├── ConnectionBroken       the connection ended, or was reset, before the answer was whole
│   └── EngineDied         and no new one can be made
├── EngineStuck            the engine was judged to make no progress while the request waited
├── BadAnswer              what came back is not HTTP, JSON or an event stream as asked for
├── StreamTruncated        a clean end without the terminator: never a finished answer
├── StreamFailed           the engine told of its failure inside the stream
├── Refused                the engine answered with a status of 400 or more
└── UpstreamTimeout        the engine was too slow: it stalled
    ├── FirstEventTimeout  nothing came within `first_event`
    └── DeadlinePassed     `total`, or the time the caller gave, is over
"""

from __future__ import annotations

from typing import ClassVar

#: What a server says that has no room now: vLLM's full queue, others' own limits.
_BUSY = (429, 503)
#: What it says of the caller's request, so that its own sentence is of use to the caller.
ABOUT_THE_REQUEST = frozenset({400, 413, 422})


class BackendError(Exception):
    """Base of the tree. `reason` is a metric label; the text is for operators, never callers."""

    reason: ClassVar[str] = "backend"
    #: Whether another replica may do better with the same request.
    elsewhere: bool = True
    #: Whether it speaks against the replica: a bad request and a slow caller do not.
    blames: bool = True
    #: Whether the metrics count it as a failed attempt.
    counts: bool = True
    #: Whether it only says that there is no room now.
    busy: bool = False
    #: In how many seconds there may be room, where that is known.
    retry_after: float | None = None


class NoReplica(BackendError):
    """Raised when every replica of a pool is full, drained or already tried."""

    reason = "no_replica"
    elsewhere = False
    busy = True


class KillsEngines(BackendError):
    """Raised for a request that was in flight at two engine deaths within ten minutes."""

    reason = "quarantined"
    elsewhere = False
    blames = counts = False


class ConnectFailed(BackendError):
    """Raised when no connection to the replica could be made within `connect` (and `tls`)."""

    reason = "connect"


class ConnectionBroken(BackendError):
    """Raised when the connection ended or was reset before the answer was whole."""

    reason = "broken"


class EngineDied(ConnectionBroken):
    """Raised when the connection ended before the answer was whole, and no other can be made."""

    reason = "died"


class EngineStuck(BackendError):
    """Raised to requests that wait for a first event at an engine that makes no progress."""

    reason = "stuck"


class BadAnswer(BackendError):
    """Raised when an answer breaks HTTP, its caps, or is of another type than was asked for."""

    reason = "bad_answer"


class StreamTruncated(BackendError):
    """Raised when a stream ends cleanly without `[DONE]` or `message_stop`."""

    reason = "truncated"


class StreamFailed(BackendError):
    """Raised for an error frame, or an abort, inside a stream.

    `status` is what the engine would have answered had it known before, where it says so.
    """

    reason = "error_frame"

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status
        self.elsewhere = self.blames = self.counts = status >= 500
        self.busy = status in _BUSY


class Refused(BackendError):
    """Raised when the engine answered with an error status instead of an answer.

    `message` is the engine's own sentence, kept only where it is about the caller's request
    (status 400, 413 or 422), and `param` the request field it names.
    """

    reason = "status"

    def __init__(self, status: int, message: str = "", param: str | None = None) -> None:
        super().__init__(f"answered {status}")
        self.status = status
        self.message = message
        self.param = param
        self.elsewhere = status >= 500 or status == 429
        self.blames = self.counts = status not in ABOUT_THE_REQUEST
        self.busy = status in _BUSY


class UpstreamTimeout(BackendError):
    """Raised when the engine was silent in the middle of its answer for longer than `stall`."""

    reason = "timeout"
    elsewhere = False


class FirstEventTimeout(UpstreamTimeout):
    """Raised when nothing whole arrived within `first_event`."""

    reason = "first_event"
    elsewhere = True


class DeadlinePassed(UpstreamTimeout):
    """Raised when `total`, or the time that the caller gave, is over before the answer is whole."""

    reason = "deadline"
