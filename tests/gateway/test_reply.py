"""The answer as a state: each ending in each state, and never a second one."""

import json

import pytest

from gateway.endpoints.base import ANTHROPIC, OPENAI
from gateway.errors import (
    ClientGone,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RequestTimeout,
    UpstreamFailed,
    UpstreamMisconfigured,
)
from gateway.reply import Reply, State
from tests.fakes.caller import FakeCaller
from tests.gateway.wire import parse

FAILED = UpstreamFailed("It failed.")


@pytest.fixture
def caller() -> FakeCaller:
    return FakeCaller()


@pytest.fixture
def reply(caller: FakeCaller) -> Reply:
    return Reply(caller, OPENAI, "req_1")


def test_nothing_is_sent_by_itself(caller: FakeCaller, reply: Reply) -> None:
    assert (caller.status, reply.state, reply.bytes_out) == (None, State.NONE, 0)


def test_a_stream_goes_through_its_states(caller: FakeCaller, reply: Reply) -> None:
    states = []
    reply.start_stream(b"x-more: 1\r\n")
    states.append(reply.state)
    reply.data(b"data: 1\n\n")
    states.append(reply.state)
    reply.end(b"data: [DONE]\n\n")
    assert [*states, reply.state] == [State.STATUS, State.CONTENT, State.ENDED]
    assert caller.pieces == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    assert (caller.status, caller.length, caller.ended) == (200, None, "finished")
    assert (reply.status, reply.stream, reply.bytes_out) == (200, True, len(caller.body))
    assert caller.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-more": "1",
        "x-request-id": "req_1",
        "request-id": "req_1",
    }


def test_a_whole_answer_tells_its_length(caller: FakeCaller, reply: Reply) -> None:
    reply.whole(b'{"a":1}', b"x-more: 1\r\n")
    assert (caller.status, caller.length, caller.body) == (200, 7, b'{"a":1}')
    assert caller.ended == "finished"
    assert caller.headers["content-type"] == "application/json"
    assert caller.headers["cache-control"] == "no-store"
    assert caller.headers["x-more"] == "1"
    assert (reply.state, reply.stream, reply.bytes_out) == (State.ENDED, False, 7)


def test_an_empty_answer_is_one(caller: FakeCaller, reply: Reply) -> None:
    reply.empty(204)
    assert (caller.status, caller.length, caller.body, caller.ended) == (204, 0, b"", "finished")


def test_a_heartbeat_is_no_content(caller: FakeCaller, reply: Reply) -> None:
    reply.start_stream()
    reply.heartbeat()
    assert caller.body == OPENAI.heartbeat
    assert (reply.state, reply.bytes_out) == (State.STATUS, 0)


@pytest.mark.parametrize("speech", [OPENAI, ANTHROPIC])
def test_a_refusal_before_anything_is_a_whole_error(caller: FakeCaller, speech: type) -> None:
    reply = Reply(caller, speech, "req_1")  # type: ignore[arg-type]  # an instance of it
    reply.more_headers = b"vary: origin\r\n"
    reply.refuse(InvalidRequest("Bad.", "n"))
    assert (caller.status, caller.ended) == (400, "finished")
    assert json.loads(caller.body)["error"]["message"] == "Bad. (request id: req_1)"
    assert caller.headers["x-request-id"] == "req_1"
    assert caller.headers["vary"] == "origin"
    assert "x-should-retry" not in caller.headers
    assert reply.bytes_out == len(caller.body)


@pytest.mark.parametrize(
    ("exc", "told"),
    [
        (RequestTimeout("Slow."), {"x-should-retry": "false"}),
        (UpstreamMisconfigured("No."), {"x-should-retry": "false"}),
        (Overloaded("Full."), {"retry-after": "1", "retry-after-ms": "1000"}),
        (MethodNotAllowed("PUT", "POST"), {"allow": "POST"}),
    ],
)
def test_a_refusal_tells_what_a_retry_is_worth(
    caller: FakeCaller, reply: Reply, exc: GatewayError, told: dict[str, str]
) -> None:
    reply.refuse(exc)
    assert told.items() <= caller.headers.items()


@pytest.mark.parametrize(
    ("seconds", "header", "ms"), [(0.25, "1", "250"), (7.4, "8", "7400"), (2.0001, "3", "2001")]
)
def test_a_wait_is_rounded_up_to_seconds_and_to_milliseconds(
    caller: FakeCaller, reply: Reply, seconds: float, header: str, ms: str
) -> None:
    exc = Overloaded("Full.")
    exc.retry_after = seconds
    reply.refuse(exc)
    assert (caller.headers["retry-after"], caller.headers["retry-after-ms"]) == (header, ms)


def test_a_retry_may_be_encouraged(caller: FakeCaller, reply: Reply) -> None:
    exc = UpstreamFailed("It failed.")
    exc.should_retry = True  # type: ignore[misc]  # one instance may be more precise
    reply.refuse(exc)
    assert caller.headers["x-should-retry"] == "true"


def test_the_dialect_names_the_status(caller: FakeCaller) -> None:
    Reply(caller, ANTHROPIC, "req_1").refuse(Overloaded("Full."))
    assert caller.status == 529


@pytest.mark.parametrize("said", [b"", b"data: 1\n\n"])
def test_a_refusal_inside_a_stream_is_its_last_words(
    caller: FakeCaller, reply: Reply, said: bytes
) -> None:
    reply.start_stream()
    if said:
        reply.data(said)
    reply.refuse(FAILED)
    assert (caller.status, caller.ended, reply.state) == (200, "finished", State.ENDED)
    *before, (_, last) = parse(caller.body)
    assert len(before) == bool(said)
    assert json.loads(last)["error"]["code"] == "upstream_error"
    assert b"[DONE]" not in caller.body
    assert reply.bytes_out == len(caller.body)


@pytest.mark.parametrize("said", [b"", b'{"a":'])
def test_a_refusal_inside_a_plain_answer_cuts_it(
    caller: FakeCaller, reply: Reply, said: bytes
) -> None:
    reply.start_plain()
    if said:
        reply.data(said)
    reply.refuse(FAILED)
    assert (caller.ended, caller.body, reply.state) == ("cut", said, State.ENDED)


def test_a_refusal_after_the_end_says_nothing(caller: FakeCaller, reply: Reply) -> None:
    reply.whole(b"{}")
    reply.refuse(FAILED)
    assert (caller.status, caller.body, caller.ended) == (200, b"{}", "finished")


def test_a_second_refusal_says_nothing(caller: FakeCaller, reply: Reply) -> None:
    reply.refuse(InvalidRequest("Bad."))
    before = caller.body
    reply.refuse(FAILED)
    assert (caller.status, caller.body) == (400, before)


@pytest.mark.parametrize("begun", [False, True])
def test_a_caller_who_left_is_told_nothing(caller: FakeCaller, reply: Reply, begun: bool) -> None:
    if begun:
        reply.start_stream()
    caller.gone = True
    reply.refuse(ClientGone())
    assert (caller.body, caller.ended, reply.state) == (b"", None, State.ENDED)
