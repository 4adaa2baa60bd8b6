"""The relay in time: early status, heartbeats, stalls, slow callers; the test moves the clock."""

import orjson
import pytest
from msgspec.structs import replace

from backends.errors import ConnectionBroken, FirstEventTimeout, UpstreamTimeout
from gateway.endpoints.base import ANTHROPIC, OPENAI
from gateway.relay import ClientStalled
from tests.fakes.flight import DEADLINE, DONE, EVENTS, JSON, TIMES, Clock, Stage, clock_of, words
from tests.gateway.wire import chat, messages, parse, recorded

BEAT = OPENAI.heartbeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_of(monkeypatch)


@pytest.fixture
def stream(clock: Clock) -> Stage:
    return Stage(clock, chat(), stream=True)


@pytest.fixture
def plain(clock: Clock) -> Stage:
    return Stage(clock, chat(stream=False), stream=False)


# Timers of a stream


def test_the_status_is_sent_early_when_the_first_event_is_late(stream: Stage, clock: Clock) -> None:
    stream.fly()
    clock.wait(29.9)
    assert not stream.begun()
    clock.wait(0.2)
    assert stream.caller.status == 200
    assert not stream.promised(), "another replica may still be tried"
    assert not parse(stream.sent)


def test_early_commit_counts_from_the_request_not_from_the_attempt(
    stream: Stage, clock: Clock
) -> None:
    stream.fly()
    clock.wait(20)
    stream.flight.fail(ConnectionBroken("gone"))
    stream.fly()
    clock.wait(11)
    assert stream.caller.status == 200


def test_the_status_is_sent_once_for_two_attempts(stream: Stage, clock: Clock) -> None:
    stream.fly()
    clock.wait(31)
    stream.flight.fail(ConnectionBroken("gone"))
    stream.fly()
    stream.data(words("a") + DONE)
    stream.end()
    assert parse(stream.sent) == parse(words("a") + DONE)


def test_a_failure_after_the_early_status_is_told_in_the_stream(
    stream: Stage, clock: Clock
) -> None:
    stream.fly()
    clock.wait(31)
    stream.flight.fail(ConnectionBroken("gone"))
    stream.tell_failure()
    assert stream.caller.status == 200
    ((_, last),) = parse(stream.sent)
    assert "error" in orjson.loads(last)


def test_heartbeats_follow_the_early_status(stream: Stage, clock: Clock) -> None:
    stream.fly()
    clock.wait(30.5)
    before = stream.sent.count(BEAT)
    clock.wait(30)
    assert stream.sent.count(BEAT) == before + 3


def test_heartbeats_come_after_silence_only(stream: Stage, clock: Clock) -> None:
    stream.fly()
    for _ in range(10):
        stream.data(words("a"))
        clock.wait(9.5)
    assert BEAT not in stream.sent
    clock.wait(1)
    assert stream.caller.pieces[-1] == BEAT
    clock.wait(30)
    assert stream.sent.count(BEAT) == 4


def test_a_heartbeat_never_falls_inside_an_event(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    for piece in (words("b")[n : n + 1] for n in range(len(words("b")))):
        clock.wait(11)
        stream.data(piece)
    assert stream.sent.count(BEAT) > 1
    assert parse(stream.sent) == parse(words("a") + words("b"))
    assert stream.sent.replace(BEAT, b"") == words("a") + words("b")


def test_events_the_caller_does_not_see_do_not_count_as_spoken(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    for _ in range(4):
        clock.wait(6)
        stream.data(b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n')
    assert stream.sent.count(BEAT) == 2


def test_an_anthropic_caller_hears_pings(clock: Clock) -> None:
    stage = Stage(clock, messages(), stream=True, speech=ANTHROPIC)
    stage.fly()
    stage.data(recorded("messages_stream")[:300])
    clock.wait(11)
    assert stage.caller.pieces[-1] == ANTHROPIC.heartbeat


def test_a_silent_engine_stalls_and_each_byte_keeps_it_alive(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    clock.wait(59)
    stream.data(b"d")
    clock.wait(59)
    assert stream.failed() is None
    clock.wait(2)
    assert isinstance(stream.failed(), UpstreamTimeout)
    assert not isinstance(stream.failed(), FirstEventTimeout)
    assert stream.flight.over


@pytest.mark.parametrize("head", [True, False])
def test_the_first_event_has_its_time_whatever_else_came(
    stream: Stage, clock: Clock, head: bool
) -> None:
    stream.take_off()
    if head:
        stream.relay.head(200, EVENTS)
        stream.data(b"data: ")
    clock.wait(99)
    assert stream.failed() is None
    clock.wait(2)
    failure = stream.failed()
    assert isinstance(failure, FirstEventTimeout)
    assert failure.elsewhere


def test_the_callers_own_time_ends_the_wait_for_a_first_event(clock: Clock) -> None:
    stage = Stage(clock, chat(), stream=True)
    clock.wait(DEADLINE - 50)
    stage.fly()
    clock.wait(49)
    assert stage.failed() is None
    clock.wait(2)
    failure = stage.failed()
    assert isinstance(failure, UpstreamTimeout)
    assert not failure.elsewhere


def test_a_stream_that_flows_may_last_longer_than_any_timer(stream: Stage, clock: Clock) -> None:
    stream.fly()
    for _ in range(200):
        stream.data(words("a"))
        clock.wait(9)
    assert (stream.failed(), stream.flight.over) == (None, False)


# A caller who does not read


def test_a_slow_caller_holds_the_engine_back(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    stream.relay.pause()
    clock.wait(19)
    stream.relay.resume()
    assert stream.flight.doings == ["pause", "resume"]
    assert stream.failed() is None


def test_a_caller_who_does_not_read_at_all_is_given_up(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    stream.relay.pause()
    clock.wait(19.9)
    assert stream.failed() is None
    clock.wait(0.2)
    failure = stream.failed()
    assert isinstance(failure, ClientStalled)
    assert not failure.elsewhere


def test_nothing_is_written_to_a_caller_who_does_not_read(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    stream.relay.pause()
    clock.wait(19)
    assert stream.sent == words("a")


def test_a_pause_is_not_the_engines_silence(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    for _ in range(5):
        stream.relay.pause()
        clock.wait(19)
        stream.relay.resume()
    clock.wait(59)
    assert stream.failed() is None
    clock.wait(2)
    assert isinstance(stream.failed(), UpstreamTimeout)


def test_heartbeats_go_on_at_once_after_a_pause(stream: Stage, clock: Clock) -> None:
    stream.fly()
    stream.data(words("a"))
    clock.wait(5)
    stream.relay.pause()
    stream.relay.resume()
    clock.wait(6)
    assert stream.sent.count(BEAT) == 1


@pytest.mark.parametrize("client_write", [20.0, 4.0])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_pause_before_the_first_attempt_counts(
    clock: Clock, client_write: float, streamed: bool
) -> None:
    times = replace(TIMES, client_write=client_write)
    stage = Stage(clock, chat(stream=streamed), stream=streamed, times=times)
    stage.relay.pause()
    stage.fly(EVENTS if streamed else JSON)
    clock.wait(client_write - 1)
    assert stage.failed() is None
    clock.wait(2)
    assert isinstance(stage.failed(), ClientStalled)


def test_a_resume_before_the_first_attempt_changes_nothing(stream: Stage) -> None:
    stream.relay.pause()
    stream.relay.resume()
    stream.fly()
    stream.data(words("a") + DONE)
    assert stream.caller.ended == "finished"


# Letting go


@pytest.mark.parametrize("begun", [False, True])
def test_no_alarm_outlives_the_request(stream: Stage, clock: Clock, begun: bool) -> None:
    if begun:
        stream.fly()
        stream.data(words("a") + DONE)
        stream.end()
    alarm = stream.relay._alarm
    stream.relay.close()
    assert not alarm.is_set
    assert stream.alarms.take() is alarm, "the next one has its timer"
    clock.wait(1000)
    assert stream.failed() is None
    assert clock.armed == 0


def test_only_one_timer_runs_at_a_time(stream: Stage, clock: Clock) -> None:
    for _ in range(3):
        stream.fly()
        stream.data(words("a"))
        stream.relay.pause()
        stream.relay.resume()
        clock.wait(12)
        assert clock.armed == 1
        stream.relay.failure = ConnectionBroken("gone")


def test_an_engine_that_stays_after_its_end_is_let_go_of_quietly(
    stream: Stage, clock: Clock
) -> None:
    stream.fly()
    stream.data(words("a") + DONE)
    clock.wait(59)
    assert clock.calls < 20
    clock.wait(2)
    assert stream.flight.over
    assert stream.sent == words("a") + DONE
    assert stream.failed() is None


def test_a_plain_answer_has_until_the_deadline_and_no_early_status(
    plain: Stage, clock: Clock
) -> None:
    plain.fly(JSON)
    plain.data(b"{")
    clock.wait(DEADLINE - 1)
    assert (plain.failed(), plain.caller.status) == (None, None)
    clock.wait(2)
    assert isinstance(plain.failed(), UpstreamTimeout)
    assert plain.flight.over
