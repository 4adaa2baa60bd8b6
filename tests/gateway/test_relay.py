"""The relay over scripted flights: what is sent of each answer, and what of a broken one."""

from typing import Any

import orjson
import pytest

from backends.errors import (
    BadAnswer,
    ConnectionBroken,
    FirstEventTimeout,
    Refused,
    StreamFailed,
    StreamTruncated,
)
from gateway.relay import LARGEST_HELD
from gateway.reply import State
from gateway.terms import Usage
from tests.fakes.flight import DONE, EVENTS, JSON, Clock, Stage, clock_of, words
from tests.gateway.wire import NAME, chat, document, parse


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_of(monkeypatch)


@pytest.fixture
def stream(clock: Clock) -> Stage:
    return Stage(clock, chat(), stream=True)


@pytest.fixture
def plain(clock: Clock) -> Stage:
    return Stage(clock, chat(stream=False), stream=False)


# Streams


def test_nothing_is_sent_before_the_first_whole_event(stream: Stage) -> None:
    stream.fly()
    stream.data(b'data: {"x":', b'"a"}\n')
    assert not stream.begun()
    assert not stream.promised()
    stream.data(b"\n")
    assert (stream.caller.status, stream.sent) == (200, words("a"))
    assert stream.promised()
    assert stream.relay.first_event > 0


def test_whole_events_leave_one_write_a_read(stream: Stage) -> None:
    stream.fly()
    stream.data(words("a") + words("b"), words("c")[:5], words("c")[5:] + words("d")[:3])
    assert stream.caller.pieces == [words("a") + words("b"), words("c")]
    stream.data(words("d")[3:] + DONE)
    stream.end()
    assert stream.sent == words("a") + words("b") + words("c") + words("d") + DONE
    assert (stream.caller.ended, stream.failed()) == ("finished", None)
    assert stream.caller.headers["x-fairgate-model"] == "tiny"


def test_the_answer_ends_with_its_last_event_not_with_the_connection(stream: Stage) -> None:
    stream.fly()
    stream.data(words("a") + DONE)
    assert stream.caller.ended == "finished"
    stream.data(b": more\n\n")
    stream.relay.broken(ConnectionBroken("after the end"))
    assert stream.failed() is None
    assert stream.sent == words("a") + DONE


def test_an_answer_with_nothing_but_its_end_is_one(stream: Stage) -> None:
    stream.fly()
    stream.data(DONE)
    stream.end()
    assert (stream.caller.status, stream.sent, stream.failed()) == (200, DONE, None)


@pytest.mark.parametrize("missing", [1, 2])
def test_the_last_line_end_may_be_missing(stream: Stage, missing: int) -> None:
    stream.fly()
    stream.data(words("a") + DONE[:-missing])
    stream.end()
    assert parse(stream.sent) == parse(words("a") + DONE)
    assert (stream.caller.ended, stream.failed()) == ("finished", None)


@pytest.mark.parametrize("said", [b"", words("a")])
@pytest.mark.parametrize("rest", [b"", words("b")[:7], words("b")[:-1], DONE[:9]])
def test_a_clean_end_without_the_terminator_is_a_failure(
    stream: Stage, said: bytes, rest: bytes
) -> None:
    stream.fly()
    stream.data(said + rest)
    stream.end()
    assert isinstance(stream.failed(), StreamTruncated)
    assert stream.sent == said, "half an event was sent"
    assert stream.promised() == bool(said)


def test_a_truncated_stream_ends_in_an_error_and_no_done(stream: Stage) -> None:
    stream.fly()
    stream.data(words("a"))
    stream.end()
    stream.tell_failure()
    (first, (_, last)) = parse(stream.sent)
    assert first == ("message", '{"x":"a"}')
    assert orjson.loads(last)["error"]["type"] == "server_error"
    assert b"[DONE]" not in stream.sent
    assert stream.caller.ended == "finished"


def test_an_error_without_its_last_line_end_is_still_that_error(stream: Stage) -> None:
    stream.fly()
    stream.data(b'data: {"error":{"code":400,"message":"too long"}}\n')
    stream.end()
    failure = stream.failed()
    assert isinstance(failure, StreamFailed)
    assert failure.status == 400


@pytest.mark.parametrize("said", [b"", words("a")])
def test_an_error_in_the_stream_fails_the_flight_behind_what_was_said(
    stream: Stage, said: bytes
) -> None:
    stream.fly()
    stream.data(said + b'data: {"error":{"message":"x","code":500}}\n\n' + DONE)
    assert isinstance(stream.failed(), StreamFailed)
    assert stream.flight.over
    assert stream.sent == said
    assert stream.promised() == bool(said)


def test_an_event_over_the_limit_fails_the_flight(stream: Stage) -> None:
    stream.fly()
    stream.data(words("a"), b"x" * 1001)
    assert isinstance(stream.failed(), BadAnswer)
    assert stream.flight.over
    assert stream.sent == words("a")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, JSON),
        (200, ()),
        (200, ((b"content-type", b"text/html"),)),
        (204, EVENTS),
        (201, EVENTS),
    ],
)
def test_an_answer_of_another_kind_is_bad(stream: Stage, status: int, headers: Any) -> None:
    stream.fly(headers, status)
    assert isinstance(stream.failed(), BadAnswer)
    assert stream.flight.over
    assert not stream.begun()


def test_the_letter_case_of_a_content_type_does_not_matter(stream: Stage) -> None:
    stream.fly(((b"content-type", b"Text/Event-Stream"),))
    stream.data(words("a"))
    assert stream.failed() is None


def test_a_caller_who_leaves_is_reported(stream: Stage) -> None:
    stream.relay.gone()
    assert stream.left == 1


# Another attempt


def test_another_attempt_begins_anew(clock: Clock) -> None:
    stage = Stage(clock, chat(), stream=True)
    stage.fly()
    usage = b'data: {"model":"small","choices":[],"usage":{"prompt_tokens":5}}\n\n'
    stage.data(usage, b'data: {"model":"sm')
    assert stage.translator.usage == Usage(prompt=5, exact=True)
    stage.flight.fail(ConnectionBroken("gone"))
    assert not stage.promised()
    stage.fly()
    assert stage.failed() is None
    assert stage.translator.usage == Usage()
    stage.data(b'data: {"model":"large"}\n\n', DONE)
    stage.end()
    assert stage.sent == b"data: " + orjson.dumps({"model": NAME}) + b"\n\n" + DONE


def test_an_error_answer_is_followed_by_a_good_one(stream: Stage) -> None:
    stream.fly(JSON, 503)
    stream.data(b"busy")
    stream.end()
    assert isinstance(stream.failed(), Refused)
    stream.fly()
    stream.data(words("a") + DONE)
    stream.end()
    assert (stream.caller.status, stream.failed()) == (200, None)
    assert stream.sent == words("a") + DONE


def test_another_attempt_has_its_own_time_to_the_first_event(stream: Stage, clock: Clock) -> None:
    stream.fly()
    clock.wait(99)
    stream.flight.fail(ConnectionBroken("gone"))
    stream.fly()
    clock.wait(99)
    assert stream.failed() is None
    clock.wait(2)
    assert isinstance(stream.failed(), FirstEventTimeout)


# Plain answers


def test_a_plain_answer_is_sent_as_a_whole_when_it_is_whole(plain: Stage) -> None:
    body = document("chat_plain")
    plain.fly(JSON)
    plain.data(body[:100], body[100:])
    assert not plain.begun()
    assert not plain.promised()
    plain.end()
    assert plain.promised()
    assert (plain.caller.status, plain.caller.ended) == (200, "finished")
    assert plain.caller.length == len(plain.sent)
    assert orjson.loads(plain.sent) == {**orjson.loads(body), "model": NAME}
    assert plain.translator.usage == Usage(20, 0, 8, exact=True)
    assert plain.relay.first_event > 0


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a":'])
def test_a_plain_answer_that_is_none_is_bad(plain: Stage, body: bytes) -> None:
    plain.fly(JSON)
    plain.data(body)
    plain.end()
    assert isinstance(plain.failed(), BadAnswer)
    assert not plain.begun()
    assert not plain.promised()


def test_a_stream_for_a_plain_request_is_bad(plain: Stage) -> None:
    plain.fly(EVENTS)
    assert isinstance(plain.failed(), BadAnswer)


def large(size: int) -> bytes:
    """A plain answer of exactly `size` bytes."""
    head, tail = b'{"model":"tiny","data":"', b'","usage":{"prompt_tokens":7}}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


@pytest.mark.parametrize("step", [10_007, 65_536, 3 << 20])
def test_a_large_plain_answer_leaves_as_it_comes(plain: Stage, step: int) -> None:
    body = large(3 << 20)
    plain.fly(JSON)
    plain.data(*(body[n : n + step] for n in range(0, len(body), step)))
    assert plain.promised()
    assert (plain.caller.status, plain.caller.length) == (200, None)
    assert plain.relay.first_event > 0
    plain.end()
    assert plain.sent == body.replace(b'"tiny"', orjson.dumps(NAME), 1)
    assert plain.translator.usage == Usage(prompt=7, exact=True)
    assert (plain.caller.ended, plain.failed()) == ("finished", None)


def test_an_answer_is_held_up_to_its_size_and_not_beyond(clock: Clock) -> None:
    for size, held in ((LARGEST_HELD, True), (LARGEST_HELD + 1, False)):
        stage = Stage(clock, chat(stream=False), stream=False)
        stage.fly(JSON)
        stage.data(large(size))
        assert stage.begun() != held
        stage.end()
        assert stage.translator.usage == Usage(prompt=7, exact=True)


def test_a_large_answer_that_breaks_is_cut_not_ended(plain: Stage) -> None:
    plain.fly(JSON)
    plain.data(large(2 << 20)[:-1])
    plain.flight.fail(ConnectionBroken("gone"))
    plain.tell_failure()
    assert plain.caller.ended == "cut"
    assert plain.reply.state is State.ENDED


# Error statuses


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
@pytest.mark.parametrize("headers", [JSON, EVENTS, ()])
def test_an_error_status_is_a_refusal_and_nothing_is_sent(
    stream: Stage, status: int, headers: Any
) -> None:
    stream.fly(headers, status)
    stream.data(b'{"error":{"message":"mes', b'sage","param":"n"}}')
    stream.end()
    failure = stream.failed()
    assert isinstance(failure, Refused)
    assert failure.status == status
    assert failure.message == ("message" if status == 400 else "")
    assert not stream.begun()
    assert not stream.promised()


def test_a_huge_error_page_is_not_kept(plain: Stage) -> None:
    plain.fly(JSON, 400)
    plain.data(*[b"x" * 1024] * 1000)
    plain.end()
    failure = plain.failed()
    assert isinstance(failure, Refused)
    assert failure.message == ""
