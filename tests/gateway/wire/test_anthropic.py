"""The Anthropic dialect: its sums, its failures, its end."""

import json
from typing import Any

import orjson
import pytest

from backends.errors import StreamFailed
from gateway.errors import NOT_ACCEPTED, InvalidRequest, Overloaded, UpstreamFailed
from gateway.terms import Standing, Usage
from gateway.wire import anthropic
from tests.gateway.wire import NAME, messages, parse, play, recorded, single


def event(kind: str, **document: Any) -> bytes:
    return (
        f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **document}) + b"\n\n"
    )


def start(**usage: int) -> bytes:
    return event("message_start", message={"model": NAME, "usage": usage})


def words(text: str) -> bytes:
    return event("content_block_delta", delta={"type": "text_delta", "text": text}, index=0)


STOP = event("message_stop")


def test_a_prompt_is_the_sum_of_its_three_parts() -> None:
    wire = messages()
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 40, "cache_read_input_tokens": 500}
    play(
        wire, [start(input_tokens=543), event("message_delta", usage={**usage, "output_tokens": 6})]
    )
    assert wire.usage == Usage(prompt=543, cached=500, completion=6, exact=True)


def test_a_cached_prompt_of_a_recorded_stream_is_counted_whole() -> None:
    wire = messages()
    play(wire, [recorded("messages_tools_stream")])
    assert wire.usage == Usage(prompt=151, cached=128, completion=10, exact=True)


def test_a_delta_without_the_prompt_keeps_what_the_start_said() -> None:
    wire = messages()
    play(wire, [start(input_tokens=9), event("message_delta", usage={"output_tokens": 4})])
    assert wire.usage == Usage(prompt=9, completion=4, exact=True)


@pytest.mark.parametrize("lost", [-1, 2**31 + 1])
def test_a_count_that_cannot_be_is_not_believed(lost: int) -> None:
    wire = messages()
    play(wire, [start(input_tokens=9), event("message_delta", usage={"output_tokens": lost})])
    assert wire.usage == Usage(prompt=9)


def test_a_stream_that_broke_has_its_prompt_and_counted_words() -> None:
    wire = messages()
    play(wire, [start(input_tokens=9), words("a"), words("b") + words("c")])
    assert (wire.usage, wire.events) == (Usage(prompt=9), 3)


def test_words_are_counted_alike_however_they_arrive() -> None:
    stream = start(input_tokens=9) + words("a") + words("b")
    for pieces in ([stream], single(stream)):
        wire = messages()
        play(wire, pieces)
        assert wire.events == 2


def test_what_the_start_told_of_the_prompt_stands_where_the_end_tells_nothing_of_it() -> None:
    wire = messages()
    end = event("message_delta", delta={}, usage={"output_tokens": 3})
    play(wire, [start(input_tokens=9, cache_read_input_tokens=90), words("a"), end, STOP])
    assert wire.usage == Usage(prompt=99, cached=90, completion=3, exact=True)


ERROR = {"type": "api_error", "message": "at 10.0.0.1"}


def test_an_error_first_says_nothing_so_that_another_server_may_answer() -> None:
    wire = messages()
    assert play(wire, [event("error", error=ERROR)]) == []
    assert wire.failed is not None
    assert wire.failed.elsewhere


@pytest.mark.parametrize("together", [True, False])
def test_an_error_after_some_words_ends_the_stream_behind_them(together: bool) -> None:
    wire = messages()
    events = [start(input_tokens=1), words("a"), event("error", error=ERROR), words("b"), STOP]
    told = play(wire, [b"".join(events)] if together else events)
    assert b"".join(told) == events[0] + events[1]
    assert wire.failed is not None
    assert str(wire.failed) == "error frame"
    assert not wire.done


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request_error", 400),
        ("BadRequestError", 400),
        ("NotFoundError", 404),
        ("rate_limit_error", 429),
        ("overloaded_error", 503),
        ("internal_error", 500),
        (None, 500),
    ],
)
def test_a_type_of_error_stands_for_its_status(kind: object, status: int) -> None:
    wire = messages()
    play(wire, [event("error", error={"type": kind, "message": "said"})])
    assert wire.failed is not None
    assert wire.failed.status == status
    assert str(wire.failed) == ("said" if status == 400 else "error frame")


def test_an_error_of_no_shape_is_one_too() -> None:
    for error in ("boom", {"type": "invalid_request_error", "message": 7}):
        wire = messages()
        assert play(wire, [event("error", error=error)]) == []
        assert str(wire.failed) == ("error frame" if error == "boom" else NOT_ACCEPTED)


def test_a_plain_answer_that_is_an_error_is_a_failure() -> None:
    with pytest.raises(StreamFailed, match="error frame"):
        messages().whole(orjson.dumps({"type": "error", "error": ERROR}))


@pytest.mark.parametrize(
    "odd",
    [
        b'event: error\ndata: {"type":\n\n',
        b'event: error\ndata: ["error"]\n\n',
        b"event: error\n\n",
        b'event: x\ndata: {"message":{"usage":null},"usage":1}\n\n',
        b'event: x\ndata: {"message":"m","usage":[]}\n\n',
    ],
)
def test_what_cannot_be_read_passes_as_it_is(odd: bytes) -> None:
    wire = messages()
    assert play(wire, [odd]) == [odd]
    assert wire.failed is None
    assert not wire.usage.exact


@pytest.mark.parametrize(
    "last", [STOP, b'event: message_stop\ndata: { "type" : "message_stop" }\n\n']
)
def test_the_end_is_seen_alone_and_behind_other_events(last: bytes) -> None:
    for before in (b"", words("a")):
        wire = messages()
        assert wire.feed(before + last) == before + last
        assert wire.done


def test_a_stream_without_its_end_is_not_done() -> None:
    stream = recorded("messages_stream")
    for at in (len(stream) - 1, len(stream) - len(STOP), len(stream) // 2):
        wire = messages()
        play(wire, [stream[:at]])
        assert not wire.done


def test_only_the_start_names_the_model_and_nothing_else_is_touched() -> None:
    wire = messages()
    tool = event("content_block_start", content_block={"input": {"model": "tiny"}})
    begun = event("message_start", message={"model": "tiny"})
    assert play(wire, [begun, tool]) == [begun.replace(b"tiny", NAME.encode()), tool]


def test_a_tool_that_comes_with_the_start_is_not_touched_either() -> None:
    tool = event("content_block_start", content_block={"input": {"model": "other"}})
    begun = event("message_start", message={"model": "tiny"})
    assert play(messages(), [begun + tool]) == [begun.replace(b"tiny", NAME.encode()) + tool]


def test_tokens_are_counted_without_an_answer_of_words() -> None:
    wire = messages(stream=False)
    wire.whole(b'{"input_tokens":14,"context_management":{"original_input_tokens":14}}')
    assert wire.usage == Usage(prompt=14, exact=True)


def test_what_is_said_to_a_caller_has_anthropics_shape() -> None:
    assert anthropic.error_object(InvalidRequest("Bad.", "n"), "req_1") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "Bad. (request id: req_1)"},
        "request_id": "req_1",
    }


@pytest.mark.parametrize("exc", [UpstreamFailed("a\nb\n\n"), Overloaded("é")])
def test_the_last_words_are_one_named_event(exc: Overloaded) -> None:
    ((kind, data),) = parse(anthropic.error_frame(exc, "req_1"))
    assert kind == "error"
    assert json.loads(data) == anthropic.error_object(exc, "req_1")


def test_a_heartbeat_is_a_ping_with_data() -> None:
    assert parse(anthropic.HEARTBEAT) == [("ping", '{"type": "ping"}')]


# Limits

#: Resets at 2026-06-15T09:31:00Z and a day's end.
REQUESTS, TOKENS = Standing(60, 59, 1000, 1_781_515_860), Standing(40_000, 0, 1, 1_781_567_999)


def test_limits_are_told_in_anthropics_header_lines() -> None:
    assert anthropic.limit_lines((REQUESTS, TOKENS)) == (
        b"anthropic-ratelimit-requests-limit: 60\r\n"
        b"anthropic-ratelimit-requests-remaining: 59\r\n"
        b"anthropic-ratelimit-requests-reset: 2026-06-15T09:31:00Z\r\n"
        b"anthropic-ratelimit-tokens-limit: 40000\r\n"
        b"anthropic-ratelimit-tokens-remaining: 0\r\n"
        b"anthropic-ratelimit-tokens-reset: 2026-06-15T23:59:59Z\r\n"
    )


def test_a_limit_there_is_not_has_no_lines() -> None:
    both = anthropic.limit_lines((REQUESTS, TOKENS))
    one = anthropic.limit_lines((REQUESTS, None))
    assert one + anthropic.limit_lines((None, TOKENS)) == both
    assert one.count(b"\r\n") == 3
    assert anthropic.limit_lines((None, None)) == b""
