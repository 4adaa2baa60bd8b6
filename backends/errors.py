"""What can go wrong on the model servers' side.

BackendError
├── NoReplica              no replica of the pool can be tried (again)
├── ConnectFailed          no connection: refused, unreachable, too slow, TLS not trusted
├── ConnectionBroken       the connection ended, or was reset, before the answer was whole
├── BadAnswer              what came back is not HTTP, JSON or an event stream as asked for
├── StreamTruncated        a clean end without the terminator: never a finished answer
├── StreamFailed           the engine told of its failure inside the stream
├── Refused                the engine answered with a status of 400 or more
└── UpstreamTimeout        the engine was too slow: first event, stall or total
    └── FirstEventTimeout
"""

from __future__ import annotations

from typing import ClassVar


class BackendError(Exception):
    """Base of the tree. `reason` is a metric label; the text is for operators, never callers."""

    reason: ClassVar[str] = "backend"
    #: Whether another replica may do better with the same request.
    elsewhere: bool = True
    #: Whether it speaks against the replica: a bad request and a slow caller do not.
    blames: bool = True


class NoReplica(BackendError):
    """Raised when every replica of a pool is down, full or already tried."""

    reason = "no_replica"
    elsewhere = False


class ConnectFailed(BackendError):
    """Raised when no connection to the replica could be made within `connect` (and `tls`)."""

    reason = "connect"


class ConnectionBroken(BackendError):
    """Raised when the connection ended or was reset before the answer was whole."""

    reason = "broken"


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
        self.elsewhere = self.blames = status >= 500


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
        self.blames = status not in (400, 413, 422)


class UpstreamTimeout(BackendError):
    """Raised when the engine took longer than `stall` or `total` allows."""

    reason = "timeout"
    elsewhere = False


class FirstEventTimeout(UpstreamTimeout):
    """Raised when nothing whole arrived within `first_event`."""

    reason = "first_event"
    elsewhere = True
