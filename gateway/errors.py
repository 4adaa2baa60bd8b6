"""Every way a request is refused or fails, and what a caller may do about it.

GatewayError
├── InvalidRequest          400   the request itself
│   ├── RequestTooLarge     413
│   ├── UnsupportedMedia    415
│   ├── RequestTimeout      408   it did not arrive in time
│   ├── HeadersTooLarge     431
│   └── TooLargeForLimit    400   a limit of the caller's own is smaller than this one request
├── Unauthorized            401   no key, or not one of ours
│   └── TwoKeys             401   two that differ: neither is looked up
├── NotFound                404   no such path
│   └── ModelNotFound       404   no such model, or not for this key: the same answer
├── MethodNotAllowed        405
├── RateLimited             429   a limit of the caller's own has no room now
│   └── QuotaSpent          429   and will have none for long
├── Overloaded              503   no room now (Anthropic: 529)
│   ├── Draining            503   the gateway is stopping
│   ├── PoolFull            503   a limit of the model has no room now
│   └── LimitsUnavailable   503   limits cannot be checked, and the operator wants them checked
├── UpstreamFailed          502   an engine broke
│   └── UpstreamMisconfigured 502 our own credential or name was refused: no retry helps
├── UpstreamSlow            504
├── InternalError           500
├── Quarantined             500   engines died while they had this very request
└── ClientGone              499   in the log only

The class says the status, the codes of both dialects and what a retry is worth; only an endpoint
knows how an error looks to its callers. Statuses and types follow what the official SDKs map to
exceptions (openai-python `_exceptions.py`, anthropic `_exceptions.py`).
"""

from __future__ import annotations

from typing import ClassVar

from backends.errors import (
    ABOUT_THE_REQUEST,
    BackendError,
    ConnectFailed,
    KillsEngines,
    Refused,
    StreamFailed,
    UpstreamTimeout,
)
from gateway.terms import UNLIMITED, Standings


class GatewayError(Exception):
    """Base of the tree. The text is the message a caller reads."""

    status: ClassVar[int] = 500
    anthropic_status: ClassVar[int | None] = None
    type: ClassVar[str] = "server_error"
    anthropic_type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = None
    #: The log's word for how the request ended.
    outcome: ClassVar[str] = "refused"
    #: What `x-should-retry` says: None leaves it to the SDK's own rule for the status.
    should_retry: ClassVar[bool | None] = None
    retry_after: float | None = None
    #: The request field at fault, where one is.
    param: str | None = None
    #: More header fields for this answer, such as `allow`.
    headers: tuple[tuple[bytes, bytes], ...] = ()
    #: The rule that refused, by its label, and how the caller stands with its limits.
    limited_by: str = ""
    standings: Standings = UNLIMITED


class InvalidRequest(GatewayError):
    """Raised when the request cannot be served as it stands; `param` is the field at fault."""

    status = 400
    type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code  # type: ignore[misc]  # one instance may be more precise


#: How deep a body may nest: more than any request needs, less than any JSON reader gives up at.
DEEPEST = 200


class TooDeep(InvalidRequest):
    def __init__(self) -> None:
        super().__init__(f"The body nests deeper than {DEEPEST} levels.", code="invalid_json")


class RequestTooLarge(InvalidRequest):
    """Raised when the body passes its cap."""

    status = 413
    anthropic_type = "request_too_large"
    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    """Raised for a body that is not plain `application/json`."""

    status = 415
    code = "unsupported_media_type"


class RequestTimeout(InvalidRequest):
    """Raised when head or body did not arrive in time."""

    status = 408
    anthropic_type = "timeout_error"
    code = "request_timeout"
    should_retry = False


class HeadersTooLarge(InvalidRequest):
    """Raised when the head passes its caps."""

    status = 431
    code = "headers_too_large"


class TooLargeForLimit(InvalidRequest):
    """Raised when a limit can never have room for a request: waiting would not help."""

    code = "request_too_large_for_limit"
    outcome = "limited"
    should_retry = False


class Unauthorized(GatewayError):
    """Raised for a missing, malformed or unknown key: one answer for all three."""

    status = 401
    type = "invalid_request_error"
    anthropic_type = "authentication_error"
    code = "invalid_api_key"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "No valid API key. Send one of this gateway's keys as `Authorization: Bearer KEY` "
            "or `x-api-key: KEY`."
        )


class TwoKeys(Unauthorized):
    """Raised for two keys that differ. Says nothing of either: neither was looked up."""

    def __init__(self) -> None:
        super().__init__(
            "Two different keys were sent: `Authorization` and `x-api-key` do not agree. Send one "
            "of them only. Of ANTHROPIC_AUTH_TOKEN and ANTHROPIC_API_KEY, unset one."
        )


class NotFound(GatewayError):
    """Raised for a path this gateway does not have."""

    status = 404
    type = "invalid_request_error"
    anthropic_type = "not_found_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """Raised for a model that does not exist or that this key may not use."""

    code = "model_not_found"
    param = "model"

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= 128 and name.isprintable() else "(not shown)"
        super().__init__(
            f"The model `{shown}` does not exist or your key has no access to it. "
            "GET /v1/models lists the models it has."
        )


class MethodNotAllowed(GatewayError):
    """Raised for a known path asked with another method; `allow` says which it takes."""

    status = 405
    type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method} is not allowed here; use {allow}.")
        self.headers = ((b"allow", allow.encode()),)


class RateLimited(GatewayError):
    """Raised when one of the caller's own limits has no room. `type` says of what."""

    status = 429
    type = "requests"
    anthropic_type = "rate_limit_error"
    code = "rate_limit_exceeded"
    outcome = "limited"

    def __init__(self, message: str, of: str | None = None) -> None:
        super().__init__(message)
        if of is not None:
            self.type = of  # type: ignore[misc]  # what this one has too little of


class QuotaSpent(RateLimited):
    """Raised when the budget of a day or a month is used up."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class Overloaded(GatewayError):
    """Raised when there is no room for the request now."""

    status = 503
    anthropic_status = 529
    anthropic_type = "overloaded_error"
    code = "overloaded"
    retry_after = 1.0


class Draining(Overloaded):
    """Raised while the gateway is stopping: another instance, or the next one, will serve it."""

    outcome = "drained"


class PoolFull(Overloaded):
    """Raised when a limit of the model itself, which all callers share, has no room."""

    outcome = "limited"


class LimitsUnavailable(Overloaded):
    """Raised while limits cannot be checked and nothing may pass unchecked."""

    headers = ((b"x-fairgate-limits", b"degraded"),)

    def __init__(self) -> None:
        super().__init__("Limits cannot be checked at the moment; please try again.")


class UpstreamFailed(GatewayError):
    """Raised when a model server failed. Says nothing of where it is or what it said."""

    status = 502
    code = "upstream_error"
    outcome = "upstream_failed"


class UpstreamMisconfigured(UpstreamFailed):
    """Raised when a model server refuses the gateway itself: a retry would be refused as well."""

    should_retry = False


class UpstreamSlow(GatewayError):
    """Raised when a model server did not answer within the timeouts."""

    status = 504
    anthropic_type = "timeout_error"
    code = "timeout"
    outcome = "timed_out"


class InternalError(GatewayError):
    """Raised for a fault of the gateway's own. The diagnostics have it under the request's id."""

    code = "internal_error"
    outcome = "refused"

    def __init__(self) -> None:
        super().__init__("The gateway failed to handle this request.")


class Quarantined(GatewayError):
    """Raised for a request that two engines had when they died: it is not sent to a third."""

    code = "request_quarantined"
    should_retry = False

    def __init__(self) -> None:
        super().__init__(
            "This request is not sent again for ten minutes: the servers that had it died. "
            "Its operator can find it in the log."
        )


class ClientGone(GatewayError):
    """Raised when the caller left; nobody is there to be told."""

    status = 499
    outcome = "client_gone"


#: Of an engine that says no more than that.
NOT_ACCEPTED = "The model server does not accept this request."


def from_backend(exc: BackendError) -> GatewayError:
    """What a caller is told of a failure on the model servers' side."""
    match exc:
        case Refused(status=status) if status in ABOUT_THE_REQUEST:
            return InvalidRequest(exc.message or NOT_ACCEPTED, exc.param)
        case StreamFailed(status=status) if status in ABOUT_THE_REQUEST:
            return InvalidRequest(str(exc))
        case KillsEngines():
            return Quarantined()
        case BackendError(busy=True):
            busy = Overloaded("The model is busy: no server has room for this request now.")
            busy.retry_after = exc.retry_after or busy.retry_after
            return busy
        case Refused(status=status) | StreamFailed(status=status) if status < 500:
            return UpstreamMisconfigured(
                "The model server refuses the gateway. Its operator has to look into this."
            )
        case UpstreamTimeout():
            return UpstreamSlow("The model server did not answer in time.")
        case ConnectFailed():
            return UpstreamFailed("The model server cannot be reached: it never had this request.")
        case _:
            return UpstreamFailed("The model server failed while it handled this request.")
