"""What a turn promises: who is asked, how often, and that every count comes back to zero."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from backends.base import Call, Demand, Replica
from backends.errors import BackendError, ConnectionBroken, NoReplica, Refused
from backends.kinds import KINDS
from backends.policies import POLICIES
from backends.pool import Pool
from backends.transport import Transport
from backends.turn import Turn
from tests.backends.sinks import OK, Kept, replica
from tests.fakes.engine import Engine
from tests.fakes.script import Fin, Hang, Send
from tests.gateway.pools import means

CALL = Call("/v1/chat/completions", b"{}", False, "req_1")


class Counting:
    """An observer: what it was told, in order."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str, str]] = []
        self.again: list[tuple[str, str]] = []

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None:
        self.failed.append((pool, replica.url, exc.reason))

    def retried(self, pool: str, reason: str) -> None:
        self.again.append((pool, reason))


class Judging(Kept):
    """A sink that takes a status for a failure as the kind reads it."""

    def end(self) -> None:
        super().end()
        self.failure = Refused(self.status) if self.status >= 400 else None


@pytest.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    async with Engine([Send(OK)]) as a, Engine([Send(OK)]) as b, Engine([Send(OK)]) as c:
        yield [a, b, c]


def pool_of(
    engines: list[Engine], transport: Transport, policy: str = "round_robin"
) -> tuple[Pool, Counting]:
    observer = Counting()
    replicas = [replica(engine.port) for engine in engines]
    kind = KINDS["vllm"]
    return Pool("tiny", kind, replicas, POLICIES[policy](), means(transport, observer)), observer


def at_rest(pool: Pool) -> bool:
    return pool.held == 0 and all(each.in_flight == each.trials == 0 for each in pool.replicas)


def refusal(status: int) -> list[Send]:
    return [Send(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)]


async def sent(pool: Pool, sink: Kept) -> int:
    """Deliver one call; how many attempts it took."""
    with Turn(pool, Demand()) as turn:
        try:
            await turn.send(CALL, sink)
        finally:
            attempts = turn.attempts
    return attempts


@pytest.mark.parametrize("policy", POLICIES)
async def test_equal_replicas_are_used_equally(
    engines: list[Engine], transport: Transport, policy: str
) -> None:
    pool, observer = pool_of(engines, transport, policy)
    for _ in range(9):
        assert await sent(pool, Judging()) == 1
    assert [len(engine.requests) for engine in engines] == [3, 3, 3]
    assert at_rest(pool)
    assert (observer.failed, observer.again) == ([], [])


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_failure_is_tried_once_on_another_replica(
    engines: list[Engine], transport: Transport, status: int
) -> None:
    engines[0].script = refusal(status)
    pool, observer = pool_of(engines, transport)
    sink = Judging()
    assert await sent(pool, sink) == 2
    assert sink.calls == ["begin", "head", "end", "begin", "head", "data", "end"]
    assert [each.url for each in sink.replicas] == [engines[0].url, engines[1].url]
    assert observer.failed == [("tiny", engines[0].url, "status")]
    assert observer.again == [("tiny", "status")]
    assert pool.replicas[0].last_error == f"answered {status}"
    assert at_rest(pool)


async def test_a_replica_that_serves_again_is_not_told_as_failed(
    engines: list[Engine], transport: Transport
) -> None:
    whole, engines[0].script = engines[0].script, refusal(500)
    pool, _ = pool_of(engines[:1], transport)
    with pytest.raises(BackendError):
        await sent(pool, Judging())
    assert pool.replicas[0].last_error
    engines[0].script = whole
    await sent(pool, Judging())
    assert pool.replicas[0].last_error is None


async def test_two_failures_are_enough(engines: list[Engine], transport: Transport) -> None:
    for engine in engines:
        engine.script = refusal(500)
    pool, observer = pool_of(engines, transport)
    with pytest.raises(Refused):
        await sent(pool, Judging())
    assert sum(len(engine.requests) for engine in engines) == 2
    assert len(observer.failed) == 2
    assert len(observer.again) == 1
    assert at_rest(pool)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_a_request_at_fault_is_not_asked_again(
    engines: list[Engine], transport: Transport, status: int
) -> None:
    for engine in engines:
        engine.script = refusal(status)
    pool, observer = pool_of(engines, transport)
    with pytest.raises(Refused):
        await sent(pool, Judging())
    assert sum(len(engine.requests) for engine in engines) == 1
    assert observer.again == []


async def test_what_was_promised_is_not_asked_again(
    engines: list[Engine], transport: Transport
) -> None:
    class Promising(Judging):
        def data(self, piece: bytes) -> None:
            super().data(piece)
            self.promised = True

    engines[0].script = [Send(OK[:-1]), Fin()]
    pool, observer = pool_of(engines, transport)
    with pytest.raises(ConnectionBroken):
        await sent(pool, Promising())
    assert sum(len(engine.requests) for engine in engines) == 1
    assert observer.again == []
    assert at_rest(pool)


async def test_the_only_replica_is_not_asked_twice(
    engines: list[Engine], transport: Transport
) -> None:
    engines[0].script = refusal(503)
    pool, _ = pool_of(engines[:1], transport)
    with pytest.raises(Refused):
        await sent(pool, Judging())
    assert len(engines[0].requests) == 1


async def test_a_full_replica_is_passed_over(engines: list[Engine], transport: Transport) -> None:
    pool, _ = pool_of(engines, transport)
    pool.replicas[0].concurrency = 1
    pool.replicas[0].in_flight = 1
    for _ in range(4):
        await sent(pool, Judging())
    assert [len(engine.requests) for engine in engines] == [0, 2, 2]


async def test_where_all_are_full_no_turn_is_given(
    engines: list[Engine], transport: Transport
) -> None:
    pool, _ = pool_of(engines, transport)
    for each in pool.replicas:
        each.concurrency = each.in_flight = 1
    with pytest.raises(NoReplica):
        await sent(pool, Judging())
    assert pool.held == 0


async def test_a_caller_that_leaves_frees_everything(
    engines: list[Engine], transport: Transport
) -> None:
    engines[0].script = [Hang()]
    pool, observer = pool_of(engines[:1], transport)
    for turns in (0, 1, 3, 50):
        task = asyncio.create_task(sent(pool, Judging()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert at_rest(pool)
    await engines[0].until_closed()
    assert transport.open_connections == 0
    assert observer.failed == []


async def test_what_a_sink_raises_frees_everything(
    engines: list[Engine], transport: Transport
) -> None:
    class Raising(Kept):
        def begin(self, flight: object, replica: Replica) -> None:
            raise ZeroDivisionError

    pool, _ = pool_of(engines, transport)
    with pytest.raises(ZeroDivisionError):
        await sent(pool, Raising())
    assert at_rest(pool)


async def test_a_long_stream_of_before_keeps_no_replica_from_coming_back(
    engines: list[Engine], transport: Transport
) -> None:
    pool, _ = pool_of(engines[:1], transport)
    one = pool.replicas[0]
    engines[0].script = [Hang()]
    before = asyncio.create_task(sent(pool, Judging()))
    await engines[0].until(lambda: bool(engines[0].requests))
    for _ in range(5):
        one.health.failed(time.monotonic() - 7, "status")
    assert one.choosable(time.monotonic()), "its ejection is over"
    trial = asyncio.create_task(sent(pool, Judging()))
    await engines[0].until(lambda: len(engines[0].requests) == 2)
    assert not one.choosable(time.monotonic()), "one request at a time finds out"
    trial.cancel()
    await asyncio.wait([trial])
    assert one.choosable(time.monotonic())
    before.cancel()
    await asyncio.wait([before])
    assert at_rest(pool)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_is_wrong_speaks_against_no_replica(
    engines: list[Engine], transport: Transport, status: int
) -> None:
    engines[0].script = refusal(status)
    pool, observer = pool_of(engines[:1], transport)
    with pytest.raises(BackendError):
        await sent(pool, Judging())
    assert pool.replicas[0].last_error is None
    assert observer.failed == []
