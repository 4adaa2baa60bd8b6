"""The OpenAI dialect: usage asked for and taken out again, failures inside a stream, the end."""

import json
from typing import Any

import orjson
import pytest
from msgspec import Raw

from backends.errors import StreamFailed
from gateway.errors import NOT_ACCEPTED, InvalidRequest, Overloaded, UpstreamFailed
from gateway.terms import Ask, Standing, Usage
from gateway.wire import openai
from gateway.wire.openai import OpenAITranslator
from tests.gateway.wire import NAME, chat, cut, parse, play, raw, recorded, single

DONE = b"data: [DONE]\n\n"


def event(**document: Any) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def delta(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **more}
    return event(model=NAME, choices=[choice])


def sent_upstream(wire: OpenAITranslator) -> Any:
    return orjson.loads(wire.request("tiny")).get("stream_options")


def test_usage_is_asked_for_in_a_stream() -> None:
    assert sent_upstream(chat()) == {"include_usage": True}


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_usage_is_asked_for_though_the_caller_did_not(options: object) -> None:
    assert sent_upstream(chat(stream_options=options)) == {"include_usage": True}


def test_other_stream_options_of_the_caller_stay() -> None:
    sent = {"include_usage": False, "x": 1}
    assert sent_upstream(chat(stream_options=sent)) == {"include_usage": True, "x": 1}


@pytest.mark.parametrize("value", [b"1e400", b"123456789012345678901234567890", b"1.0"])
def test_a_stream_option_stays_as_it_was_written(value: bytes) -> None:
    options = Raw(b'{"x":%b}' % value)
    fields = {"stream": Raw(b"true"), "stream_options": options}
    wire = OpenAITranslator(Ask(NAME, True, dict(fields)), fields)
    assert b'"stream_options":{"x":%b,"include_usage":true}' % value in wire.request("tiny")


def test_a_caller_who_asked_keeps_its_own_options() -> None:
    sent = {"include_usage": True, "continuous_usage_stats": True}
    assert sent_upstream(chat(wants_usage=True, stream_options=sent)) == sent


def test_a_plain_request_and_a_server_that_must_not_be_asked_are_left_alone() -> None:
    assert sent_upstream(chat(stream=False)) is None
    ask = Ask(NAME, True, raw(stream=True))
    assert sent_upstream(OpenAITranslator(ask, raw(stream=True), ask_for_usage=False)) is None


def test_a_dropped_field_is_counted_and_an_added_one_is_not() -> None:
    ask = Ask(NAME, True, raw(model="m", stream=True, odd=1))
    assert OpenAITranslator(ask, raw(model="m", stream=True)).dropped == 1


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}


def test_a_caller_who_did_not_ask_never_sees_the_usage() -> None:
    wire = chat()
    told = play(wire, [delta("a") + delta("b"), event(choices=[], usage=USAGE) + DONE])
    assert b"".join(told) == delta("a") + delta("b") + DONE
    assert wire.usage == Usage(prompt=7, cached=5, completion=2, exact=True)


def test_a_read_with_nothing_but_usage_says_nothing() -> None:
    assert play(chat(), [event(choices=[], usage=USAGE)]) == []


def test_usage_beside_a_choice_stays_and_the_last_one_counts() -> None:
    wire = chat(wants_usage=True)
    first = event(choices=[{"index": 0}], usage={"prompt_tokens": 7, "completion_tokens": 1})
    last = event(choices=[{"index": 0}], usage=USAGE)
    assert b"".join(play(wire, [first + last])) == first + last
    assert wire.usage == Usage(prompt=7, cached=5, completion=2)
    play(wire, [b"data: [DONE]\n\n"])
    assert wire.usage == Usage(prompt=7, cached=5, completion=2, exact=True)


def test_usage_of_one_choice_is_not_what_all_of_them_used() -> None:
    """With `continuous_usage_stats` each choice's last event has it, and another goes on."""
    wire = chat(wants_usage=True)
    ended = event(
        model=NAME,
        choices=[{"index": 0, "finish_reason": "stop"}],
        usage={"prompt_tokens": 7, "completion_tokens": 1},
    )
    play(wire, [delta("a"), ended, *[delta("b", index=1)] * 500])
    assert not wire.usage.exact
    assert (wire.usage.prompt, wire.events) == (7, 502)


@pytest.mark.parametrize("ends", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("telling", ["error", "usage", "abort"])
def test_what_one_event_of_a_run_tells_is_seen_beside_ordinary_ones(
    telling: str, ends: bytes
) -> None:
    told = {
        "error": event(error={"message": "x", "code": 500}),
        "usage": event(model=NAME, choices=[], usage=USAGE),
        "abort": delta("", finish_reason="abort"),
    }[telling].replace(b"\n\n", ends)
    ordinary = delta("a", index=1).replace(b"\n\n", ends)
    for run in (told + ordinary, ordinary + told + ordinary):
        wire = chat()
        passed = b"".join(play(wire, [ordinary, run]))
        assert told not in passed
        if telling == "usage":
            assert wire.usage.exact
        else:
            assert wire.failed is not None


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_comment_is_no_part_of_an_answer(ends: bytes) -> None:
    comment = b": ping - 2026" + ends + b":" + ends + ends
    done, word = (each.replace(b"\n", ends) for each in (b"data: [DONE]\n\n", delta("a")))
    wire = chat()
    assert play(wire, [comment]) == []
    assert wire.events == 0
    assert play(wire, [comment + word, comment, word]) == [word, word]
    assert (wire.events, wire.done) == (2, False)
    play(wire, [done + comment])
    assert wire.done


def test_a_comment_inside_an_event_passes_with_it() -> None:
    told = b": of this one\n" + delta("a")
    assert play(chat(), [told]) == [told]


def test_a_stream_that_broke_has_its_events_and_no_word_of_the_engines() -> None:
    wire = chat()
    play(wire, [delta("a"), delta("b") + delta("c")])
    assert (wire.usage, wire.events) == (Usage(), 3)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_what_is_counted_does_not_depend_on_how_the_stream_was_cut(end: bytes) -> None:
    stream = b"".join(b'data: {"x":1}' + end for _ in range(5)) + b"data: [DONE]" + end
    for pieces in ([stream], single(stream), cut(stream, [20, 33])):
        wire = chat()
        play(wire, pieces)
        assert wire.done
        assert (wire.usage, wire.events) == (Usage(), 5)


def test_a_null_usage_on_every_event_costs_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(_: bytes) -> None:
        raise AssertionError("an event was decoded")

    monkeypatch.setattr("orjson.loads", decoded)
    events = [b'data: {"model":"tiny","choices":[{"delta":{}}],"usage":null}\n\n'] * 20
    told = b"".join(play(chat(wants_usage=True), [b"".join(events), *events, DONE]))
    assert told.count(b'"usage":null') == 40
    assert told.endswith(DONE)


ERROR = {"message": "no", "type": "Internal", "code": 500}


def test_an_error_first_says_nothing_so_that_another_server_may_answer() -> None:
    wire = chat()
    assert play(wire, [event(error=ERROR) + DONE]) == []
    assert wire.failed is not None
    assert wire.failed.elsewhere
    assert not wire.done
    assert (wire.usage, wire.events) == (Usage(), 0)


@pytest.mark.parametrize("together", [True, False])
def test_an_error_after_some_words_ends_the_stream_behind_them(together: bool) -> None:
    wire = chat()
    events = [delta("a"), delta("b"), event(error=ERROR), delta("never"), DONE]
    told = play(wire, [b"".join(events)] if together else events)
    assert b"".join(told) == delta("a") + delta("b")
    assert wire.failed is not None
    assert not wire.done
    assert str(wire.failed) == "error frame"


@pytest.mark.parametrize("shape", [{"error": "boom"}, {"error": ["x"]}, {"error": {"code": "x"}}])
def test_an_error_of_another_shape_is_one_too(shape: dict[str, Any]) -> None:
    wire = chat()
    assert play(wire, [event(**shape)]) == []
    assert wire.failed is not None
    assert wire.failed.status == 500


@pytest.mark.parametrize("code", [400, 413, 422])
def test_an_error_about_the_request_keeps_the_engines_sentence(code: int) -> None:
    wire = chat()
    play(wire, [event(error={"message": "too long", "code": code})])
    assert wire.failed is not None
    assert (str(wire.failed), wire.failed.status, wire.failed.elsewhere) == (
        "too long",
        code,
        False,
    )


@pytest.mark.parametrize("code", [401, 402, 403, 404, 429, 499, 500])
def test_an_error_of_the_servers_own_is_never_repeated(code: int) -> None:
    wire = chat()
    play(wire, [event(error={"message": "at 10.0.0.1", "code": code})])
    assert wire.failed is not None
    assert (str(wire.failed), wire.failed.status) == ("error frame", code)


@pytest.mark.parametrize("message", [7, None, ""])
def test_an_error_about_the_request_that_says_nothing_is_told_as_one(message: object) -> None:
    wire = chat()
    play(wire, [event(error={"message": message, "code": 400})])
    assert str(wire.failed) == NOT_ACCEPTED


@pytest.mark.parametrize("code", [200, 399, 600, 1000, None, True])
def test_a_code_that_is_no_error_status_counts_as_a_server_error(code: object) -> None:
    wire = chat()
    play(wire, [event(error={"message": "x", "code": code})])
    assert wire.failed is not None
    assert wire.failed.status == 500


@pytest.mark.parametrize("error", [None, {}, "", []])
def test_an_error_that_is_empty_is_none(error: object) -> None:
    wire = chat()
    passing = event(error=error, choices=[])
    assert play(wire, [passing]) == [passing]
    assert wire.failed is None


@pytest.mark.parametrize("index", [0, 1])
def test_an_aborted_choice_fails_the_stream(index: int) -> None:
    choices = [{"index": n, "finish_reason": None} for n in (0, 1)]
    choices[index]["finish_reason"] = "abort"  # type: ignore[assignment]  # JSON
    wire = chat()
    assert play(wire, [delta("a"), event(choices=choices) + DONE]) == [delta("a")]
    assert wire.failed is not None
    assert not wire.done


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"error"\n\n',
        b'data: ["error"]\n\n',
        b'data: {"choices":["abort"]}\n\n',
        b'data: {"choices":"abort","x":"error"}\n\n',
    ],
)
def test_what_cannot_be_read_passes_as_it_is(odd: bytes) -> None:
    wire = chat()
    assert play(wire, [odd]) == [odd]
    assert wire.failed is None


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "x"},
        {"prompt_tokens_details": 1},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": 2**31 + 1},
    ],
)
def test_a_usage_of_another_shape_is_not_believed(usage: dict[str, Any]) -> None:
    wire = chat()
    play(wire, [delta("a") + event(choices=[], usage=usage)])
    assert (wire.usage, wire.events) == (Usage(), 1)


def test_usage_with_nothing_in_it_is_nothing_used() -> None:
    wire = chat()
    play(wire, [delta("a") + event(choices=[], usage={"prompt_tokens_details": {}})])
    assert wire.usage == Usage(exact=True)


@pytest.mark.parametrize("last", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
def test_the_end_is_seen_alone_and_behind_other_events(last: bytes) -> None:
    for before in (b"", delta("a")):
        wire = chat()
        assert wire.feed(before + last) == before + last
        assert wire.done


@pytest.mark.parametrize(
    "last", [b"data: [DONE] x\n\n", b"xdata: [DONE]\n\n", b"data: x[DONE]\n\n"]
)
def test_what_only_resembles_the_end_is_none(last: bytes) -> None:
    wire = chat()
    wire.feed(last)
    assert not wire.done


@pytest.mark.parametrize("name", ["chat_stream", "chat_stream_n2", "completions_stream"])
def test_a_stream_without_its_end_is_not_done(name: str) -> None:
    stream = recorded(name)
    for at in (len(stream) - 1, len(stream) - len(DONE), len(stream) // 2):
        wire = chat()
        play(wire, [stream[:at]])
        assert not wire.done


def test_what_is_said_to_a_caller_has_openais_shape() -> None:
    exc = InvalidRequest("Bad.", "n", "over")
    document = openai.error_object(exc, "req_1")
    assert document == {
        "error": {
            "message": "Bad. (request id: req_1)",
            "type": "invalid_request_error",
            "param": "n",
            "code": "over",
        }
    }


@pytest.mark.parametrize("exc", [UpstreamFailed("a\nb\n\n"), Overloaded("é")])
def test_the_last_words_are_one_event_and_no_end(exc: Exception) -> None:
    assert isinstance(exc, UpstreamFailed | Overloaded)
    frame = openai.error_frame(exc, "req_1")
    ((kind, data),) = parse(frame)
    assert kind == "message"
    assert json.loads(data) == openai.error_object(exc, "req_1")
    assert parse(openai.HEARTBEAT) == []


def test_a_plain_answer_the_engine_gave_up_on_is_a_failure() -> None:
    told = b'{"model":"m","choices":[{"index":0,"finish_reason":"abort","message":{}}]}'
    with pytest.raises(StreamFailed):
        chat().whole(told)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b'{"message":"at 10.0.0.1","code":502}', 502),
        (b'{"message":"too long","code":400}', 400),
        (b'"boom"', 500),
        (b"1e400", 500),
    ],
)
def test_a_plain_answer_that_is_an_error_is_a_failure(error: bytes, status: int) -> None:
    for more in (b"", b',"choices":null', b',"choices":7'):
        with pytest.raises(StreamFailed) as caught:
            chat().whole(b'{"error":%b%b}' % (error, more))
        assert caught.value.status == status
        assert "10.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("error", [b"null", b"{}", b'""'])
def test_a_plain_answer_with_an_empty_error_is_a_good_one(error: bytes) -> None:
    told = b'{"model":"%b","choices":[],"error":%b}' % (NAME.encode(), error)
    assert chat().whole(told) == told


def test_a_plain_answer_about_an_abort_is_a_good_one() -> None:
    told = b'{"model":"m","choices":[{"finish_reason":"stop","message":{"content":"abort"}}]}'
    assert b'"content":"abort"' in chat().whole(told)


def test_ordinary_events_are_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = chat()
    run = delta("a").replace(NAME.encode(), b"tiny") * 3
    assert wire.feed(run)
    monkeypatch.setattr(wire, "_look", None)
    assert wire.feed(run) == delta("a") * 3
    assert wire.events == 6


def test_a_failure_among_ordinary_events_is_seen() -> None:
    wire = chat()
    wire.feed(delta("a"))
    told = wire.feed(delta("b") + event(error={"message": "broke", "code": 500}) + delta("c"))
    assert wire.failed is not None
    assert b'"b"' in told
    assert b'"c"' not in told


def test_an_abort_that_ends_a_run_of_ordinary_events_is_seen() -> None:
    wire = chat()
    wire.feed(delta("a"))
    told = wire.feed(delta("b") + delta("", finish_reason="abort"))
    assert wire.failed is not None
    assert b'"b"' in told
    assert b"abort" not in told


def test_another_attempt_may_be_of_another_server() -> None:
    wire = chat()
    wire.feed(delta("a"))
    wire.restart()
    other = delta("b").replace(NAME.encode(), b"other")
    assert b'"other"' not in wire.feed(other) + wire.feed(other)


# Limits

#: Of a limit of 60 requests and one of 40,000 tokens.
REQUESTS, TOKENS = Standing(60, 59, 1000, 1), Standing(40_000, 39_150, 1275, 1)


def test_limits_are_told_in_openais_header_lines() -> None:
    assert openai.limit_lines((REQUESTS, TOKENS)) == (
        b"x-ratelimit-limit-requests: 60\r\n"
        b"x-ratelimit-remaining-requests: 59\r\n"
        b"x-ratelimit-reset-requests: 1s\r\n"
        b"x-ratelimit-limit-tokens: 40000\r\n"
        b"x-ratelimit-remaining-tokens: 39150\r\n"
        b"x-ratelimit-reset-tokens: 1.275s\r\n"
    )


def test_a_limit_there_is_not_has_no_lines() -> None:
    both = openai.limit_lines((REQUESTS, TOKENS))
    one = openai.limit_lines((REQUESTS, None))
    assert one + openai.limit_lines((None, TOKENS)) == both
    assert one.count(b"\r\n") == 3
    assert openai.limit_lines((None, None)) == b""


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "0s"),
        (1, "1ms"),
        (120, "120ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1010, "1.01s"),
        (1500, "1.5s"),
        (10_000, "10s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (60_001, "1m1s"),
        (119_001, "2m0s"),
        (360_000, "6m0s"),
        (3_599_000, "59m59s"),
        (3_599_001, "1h0m0s"),
        (3_600_000, "1h0m0s"),
        (86_399_999, "24h0m0s"),
    ],
)
def test_a_reset_is_a_duration_as_go_writes_it_and_never_too_short(
    milliseconds: int, shown: str
) -> None:
    lines = openai.limit_lines((Standing(1, 0, milliseconds, 1), None)).decode()
    assert lines.endswith(f"reset-requests: {shown}\r\n")
