"""What callers are told: statuses and codes of both dialects, and nothing of the inside."""

import pytest

from backends import errors as backend
from gateway import errors
from gateway.errors import GatewayError, ModelNotFound, from_backend

SECRET = "http://10.0.0.7:8000 said sk-secret"


def every(root: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [root, *(each for child in root.__subclasses__() for each in every(child))]


#: status, Anthropic's own status, OpenAI type, Anthropic type
TABLE = {
    errors.InvalidRequest: (400, 400, "invalid_request_error", "invalid_request_error"),
    errors.TooDeep: (400, 400, "invalid_request_error", "invalid_request_error"),
    errors.RequestTooLarge: (413, 413, "invalid_request_error", "request_too_large"),
    errors.UnsupportedMedia: (415, 415, "invalid_request_error", "invalid_request_error"),
    errors.RequestTimeout: (408, 408, "invalid_request_error", "timeout_error"),
    errors.HeadersTooLarge: (431, 431, "invalid_request_error", "invalid_request_error"),
    errors.TooLargeForLimit: (400, 400, "invalid_request_error", "invalid_request_error"),
    errors.Unauthorized: (401, 401, "invalid_request_error", "authentication_error"),
    errors.TwoKeys: (401, 401, "invalid_request_error", "authentication_error"),
    errors.NotFound: (404, 404, "invalid_request_error", "not_found_error"),
    errors.ModelNotFound: (404, 404, "invalid_request_error", "not_found_error"),
    errors.MethodNotAllowed: (405, 405, "invalid_request_error", "invalid_request_error"),
    errors.RateLimited: (429, 429, "requests", "rate_limit_error"),
    errors.QuotaSpent: (429, 429, "insufficient_quota", "rate_limit_error"),
    errors.Overloaded: (503, 529, "server_error", "overloaded_error"),
    errors.Draining: (503, 529, "server_error", "overloaded_error"),
    errors.PoolFull: (503, 529, "server_error", "overloaded_error"),
    errors.LimitsUnavailable: (503, 529, "server_error", "overloaded_error"),
    errors.UpstreamFailed: (502, 502, "server_error", "api_error"),
    errors.UpstreamMisconfigured: (502, 502, "server_error", "api_error"),
    errors.UpstreamSlow: (504, 504, "server_error", "timeout_error"),
    errors.InternalError: (500, 500, "server_error", "api_error"),
    errors.Quarantined: (500, 500, "server_error", "api_error"),
    errors.ClientGone: (499, 499, "server_error", "api_error"),
}


@pytest.mark.parametrize("kind", every()[1:], ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_in_both_dialects(kind: type[GatewayError]) -> None:
    told = (kind.status, kind.anthropic_status or kind.status, kind.type, kind.anthropic_type)
    assert told == TABLE[kind]
    assert kind.code is not None or kind is errors.ClientGone


@pytest.mark.parametrize(
    ("exc", "kind", "outcome"),
    [
        (backend.NoReplica(SECRET), errors.Overloaded, "refused"),
        (backend.KillsEngines(SECRET), errors.Quarantined, "refused"),
        (backend.EngineDied(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.EngineStuck(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.DeadlinePassed(SECRET), errors.UpstreamSlow, "timed_out"),
        (backend.ConnectFailed(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.ConnectionBroken(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.BadAnswer(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.StreamTruncated(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.StreamFailed(SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.StreamFailed(SECRET, 503), errors.Overloaded, "refused"),
        (backend.StreamFailed(SECRET, 429), errors.Overloaded, "refused"),
        (backend.StreamFailed("error frame", 401), errors.UpstreamMisconfigured, "upstream_failed"),
        (backend.StreamFailed("error frame", 404), errors.UpstreamMisconfigured, "upstream_failed"),
        (backend.UpstreamTimeout(SECRET), errors.UpstreamSlow, "timed_out"),
        (backend.FirstEventTimeout(SECRET), errors.UpstreamSlow, "timed_out"),
        (backend.Refused(400), errors.InvalidRequest, "refused"),
        (backend.Refused(401, SECRET), errors.UpstreamMisconfigured, "upstream_failed"),
        (backend.Refused(403, SECRET), errors.UpstreamMisconfigured, "upstream_failed"),
        (backend.Refused(404, SECRET), errors.UpstreamMisconfigured, "upstream_failed"),
        (backend.Refused(429, SECRET), errors.Overloaded, "refused"),
        (backend.Refused(500, SECRET), errors.UpstreamFailed, "upstream_failed"),
        (backend.Refused(503, SECRET), errors.Overloaded, "refused"),
        (backend.BackendError(SECRET), errors.UpstreamFailed, "upstream_failed"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else None,
)
def test_a_failure_of_a_server_is_told_without_a_word_of_it(
    exc: backend.BackendError, kind: type[GatewayError], outcome: str
) -> None:
    told = from_backend(exc)
    assert type(told) is kind
    assert told.outcome == outcome
    assert str(told)
    assert "10.0.0.7" not in str(told)
    assert "sk-" not in str(told)


def test_a_server_that_never_had_a_request_did_not_fail_while_it_handled_it() -> None:
    told = from_backend(backend.ConnectFailed(SECRET))
    assert str(told) == "The model server cannot be reached: it never had this request."
    assert (told.status, told.retry_after, told.should_retry) == (502, None, None)
    assert "failed while it handled" in str(from_backend(backend.ConnectionBroken(SECRET)))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_an_engine_says_of_the_request_itself_is_passed_on(status: int) -> None:
    told = from_backend(backend.Refused(status, "the prompt is too long", "messages"))
    assert type(told) is errors.InvalidRequest
    assert (str(told), told.param, told.status) == ("the prompt is too long", "messages", 400)


def test_a_refusal_inside_a_stream_is_the_requests_own_fault() -> None:
    told = from_backend(backend.StreamFailed("the grammar is broken", 400))
    assert (type(told), str(told)) == (errors.InvalidRequest, "the grammar is broken")


@pytest.mark.parametrize("name", ["a\nb", "x" * 129, "\x1b[2J", "a\x00"])
def test_a_name_that_would_harm_a_terminal_or_fill_a_log_is_not_shown(name: str) -> None:
    assert name not in str(ModelNotFound(name))
    assert "(not shown)" in str(ModelNotFound(name))
    assert "`gpt-4o`" in str(ModelNotFound("gpt-4o"))


def test_one_error_can_be_more_precise_without_changing_its_class() -> None:
    assert errors.InvalidRequest("x", "n", code="invalid_json").code == "invalid_json"
    assert errors.InvalidRequest("x").code == "invalid_request"


def test_a_refused_method_says_which_is_taken() -> None:
    told = errors.MethodNotAllowed("PUT", "GET, HEAD")
    assert told.headers == ((b"allow", b"GET, HEAD"),)


def test_only_what_a_retry_may_help_says_when() -> None:
    waiting = {kind for kind in every() if kind.retry_after is not None}
    assert waiting == set(every(errors.Overloaded))
    hopeless = {kind for kind in every() if kind.should_retry is False}
    assert hopeless == {
        errors.UpstreamMisconfigured,
        errors.RequestTimeout,
        errors.TooLargeForLimit,
        errors.Quarantined,
    }


def test_a_busy_pool_says_when_it_may_have_room() -> None:
    exc = backend.NoReplica("full")
    assert from_backend(exc).retry_after == 1.0
    exc.retry_after = 7.5
    assert from_backend(exc).retry_after == 7.5


def test_a_limit_says_of_what_there_is_too_little_and_whose_it_is() -> None:
    assert errors.RateLimited("Full.").type == "requests"
    assert errors.RateLimited("Full.", "tokens").type == "tokens"
    assert errors.RateLimited.type == "requests"
    limited = {kind for kind in every() if kind.outcome == "limited"}
    assert limited == {
        errors.TooLargeForLimit,
        errors.RateLimited,
        errors.QuotaSpent,
        errors.PoolFull,
    }


def test_limits_that_cannot_be_checked_say_so_without_a_word_of_redis() -> None:
    told = errors.LimitsUnavailable()
    assert told.headers == ((b"x-fairgate-limits", b"degraded"),)
    assert "redis" not in str(told).lower()


def test_a_missing_and_an_unknown_key_are_one_answer_that_says_what_to_send() -> None:
    assert "Authorization: Bearer" in str(errors.Unauthorized())
    assert "x-api-key" in str(errors.Unauthorized())


def test_a_fault_of_our_own_is_told_in_one_sentence_without_a_value() -> None:
    assert str(errors.InternalError()) == "The gateway failed to handle this request."
