"""What the transport promises of connections: which is used, how often, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from backends.connection import Limits
from backends.errors import (
    BackendError,
    BadAnswer,
    ConnectFailed,
    ConnectionBroken,
)
from backends.transport import Transport
from tests.backends.sinks import OK, REQUEST, Kept, ended, replica, told
from tests.fakes.deaf import deaf
from tests.fakes.engine import Engine
from tests.fakes.gateway import until
from tests.fakes.script import Fin, Hang, Received, Rst, Send, Step, Wait, stream


@pytest.fixture
async def faults() -> list[dict[str, Any]]:
    """What the event loop was told of exceptions that nobody caught."""
    caught: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    return caught


@pytest.fixture
def unconnectable() -> Iterator[int]:
    """The port of a listener that connecting to hangs."""
    with deaf() as port:
        yield port


async def test_an_answer_is_told_in_order_and_once(transport: Transport, engine: Engine) -> None:
    sink = await told(transport, engine.port)
    assert sink.calls == ["begin", "head", "data", "end"]
    assert (sink.status, bytes(sink.body), sink.failure) == (200, b"ok", None)
    assert engine.requests[0].body == b"{}"


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1])
async def test_a_large_body_is_sent_as_it_is_and_a_small_one_with_its_head(
    transport: Transport, engine: Engine, size: int
) -> None:
    head = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size
    body, sink = b"x" * size, Kept()
    transfer = transport.send(replica(engine.port), head, sink, body)
    pieces = transfer._request
    assert (len(pieces) == 1) is (size <= 64 * 1024)
    assert b"".join(pieces) == head + body
    await ended(transfer)
    assert engine.requests[0].body == body


# Keeping connections


@pytest.mark.parametrize("last", [0, 1])
async def test_the_connection_used_last_is_used_next(
    transport: Transport, engine: Engine, last: int
) -> None:
    waits = [Wait(), Wait()]
    engine.script = lambda request: [*waits[request.connection - 1 :][:1], Send(OK)]
    exchanges = [transport.send(replica(engine.port), REQUEST, Kept()) for _ in waits]
    await engine.until(lambda: len(engine.requests) == 2)
    by_connection = [r.connection for r in engine.requests]
    first = by_connection[1 - last]
    waits[first - 1].event.set()
    await until(lambda: any(e.done.done() for e in exchanges))
    waits[by_connection[last] - 1].event.set()
    await asyncio.gather(*map(ended, exchanges))
    await told(transport, engine.port)
    assert engine.requests[-1].connection == by_connection[last]


async def test_a_connection_idle_for_too_long_is_closed(engine: Engine) -> None:
    transport = Transport(Limits(idle=0.05))
    await told(transport, engine.port)
    await told(transport, engine.port)
    assert engine.connections == transport.open_connections == 1
    await engine.until_closed(1)
    assert transport.open_connections == 0


async def test_a_connection_idle_for_too_long_is_not_used_though_nobody_swept(
    engine: Engine,
) -> None:
    transport = Transport(Limits(idle=0.05))
    await told(transport, engine.port)
    time.sleep(0.1)  # the event loop is busy elsewhere: the sweep is late
    await told(transport, engine.port)
    assert engine.connections == 2
    await transport.close()


async def test_the_sweep_passes_over_connections_in_use(
    engine: Engine, faults: list[dict[str, Any]]
) -> None:
    transport = Transport(Limits(idle=0.05))
    await told(transport, engine.port)
    wait = Wait()
    engine.script = [wait, Send(OK)]
    exchange = transport.send(replica(engine.port), REQUEST, Kept())
    await until(lambda: transport._sweep is None)
    wait.event.set()
    await ended(exchange)
    assert engine.connections == transport.open_connections == 1
    await until(lambda: transport.open_connections == 0)
    assert faults == []


async def test_an_idle_server_that_talks_is_left(transport: Transport, engine: Engine) -> None:
    talk = Wait()
    engine.script = [Send(OK), talk, Send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")]
    await told(transport, engine.port)
    assert transport.open_connections == 1
    talk.event.set()
    await engine.until_closed()
    assert transport.open_connections == 0


async def test_a_connection_the_server_closes_while_idle_is_forgotten(
    transport: Transport, engine: Engine
) -> None:
    close = Wait()
    engine.script = [Send(OK), close, Fin()]
    await told(transport, engine.port)
    close.event.set()
    await until(lambda: transport.open_connections == 0)
    assert (await told(transport, engine.port)).failure is None


async def test_an_answer_that_says_close_is_not_kept(transport: Transport, engine: Engine) -> None:
    engine.script = [Send(OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))]
    await told(transport, engine.port)
    assert transport.open_connections == 0


@pytest.mark.parametrize("surplus", [OK, b"\x00\x01garbage", b"HTTP/1.1 500 Oops\r\n\r\n", b"\r\n"])
async def test_bytes_after_an_answer_are_nobodys(
    transport: Transport, engine: Engine, surplus: bytes
) -> None:
    engine.script = [Send(OK + surplus)]
    sink = await told(transport, engine.port)
    assert sink.calls == ["begin", "head", "data", "end"]
    assert (sink.status, bytes(sink.body)) == (200, b"ok")
    engine.script = [Send(OK)]
    sink = await told(transport, engine.port)
    assert (sink.status, bytes(sink.body)) == (200, b"ok")
    if surplus.strip():
        assert engine.connections == 2


# One more try on a fresh connection


def _dying(*death: Step, of: Iterable[int] = (1,)) -> Any:
    """Answers the very first request; from then on the connections `of` die so."""
    seen: list[Received] = []

    def answer(request: Received) -> list[Step]:
        seen.append(request)
        return list(death) if len(seen) > 1 and request.connection in of else [Send(OK)]

    return answer


@pytest.mark.parametrize("death", [Fin(), Rst()])
async def test_a_stale_connection_costs_the_request_nothing(
    transport: Transport, engine: Engine, death: Step
) -> None:
    engine.script = _dying(death)
    await told(transport, engine.port)
    sink = await told(transport, engine.port)
    assert sink.calls == ["begin", "head", "data", "end"]
    assert sink.sends == 2, "the engine may have had it twice"
    assert [r.connection for r in engine.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    "said", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1]]
)
async def test_a_connection_that_said_a_byte_was_not_stale(
    transport: Transport, engine: Engine, said: bytes
) -> None:
    engine.script = _dying(Send(said), Fin())
    await told(transport, engine.port)
    sink = await told(transport, engine.port)
    assert isinstance(sink.failure, ConnectionBroken)
    assert len(engine.requests) == 2


async def test_a_request_the_server_may_have_begun_is_not_sent_again(engine: Engine) -> None:
    transport = Transport(Limits(stale_within=0.0))
    engine.script = _dying(Fin())
    await told(transport, engine.port)
    sink = await told(transport, engine.port)
    assert isinstance(sink.failure, ConnectionBroken)
    assert len(engine.requests) == 2


async def test_there_is_no_second_free_try(transport: Transport, engine: Engine) -> None:
    engine.script = _dying(Fin(), of=range(1, 9))
    await told(transport, engine.port)
    sink = await told(transport, engine.port)
    assert isinstance(sink.failure, ConnectionBroken)
    assert sink.calls == ["begin", "broken"]
    assert len(engine.requests) == 3


async def test_a_fresh_connection_that_dies_is_not_tried_again(
    transport: Transport, engine: Engine
) -> None:
    engine.script = [Fin()]
    sink = await told(transport, engine.port)
    assert isinstance(sink.failure, ConnectionBroken)
    assert len(engine.requests) == 1


# Connecting


async def test_a_refused_connection_is_told_as_such(transport: Transport, engine: Engine) -> None:
    await engine.stop()
    sink = await told(transport, engine.port)
    assert isinstance(sink.failure, ConnectFailed)
    assert sink.sends == 0
    assert transport.open_connections == 0


async def test_a_name_that_cannot_be_one_is_told_as_such(transport: Transport) -> None:
    sink = Kept()
    await ended(transport.send(replica(80, "a..b"), REQUEST, sink))
    assert isinstance(sink.failure, ConnectFailed)


async def test_connecting_ends_in_time(unconnectable: int) -> None:
    transport = Transport(Limits(connect=0.1))
    sink = await told(transport, unconnectable)
    assert isinstance(sink.failure, ConnectFailed)
    assert transport.open_connections == 0


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10])
async def test_leaving_while_connecting_leaves_nothing(
    transport: Transport, unconnectable: int, turns: int
) -> None:
    before = asyncio.all_tasks()
    sink = Kept()
    exchange = transport.send(replica(unconnectable), REQUEST, sink)
    for _ in range(turns):
        await asyncio.sleep(0)
    exchange.close()
    assert exchange.done.done()
    await until(lambda: not transport._connecting)
    assert asyncio.all_tasks() == before
    assert transport.open_connections == 0
    assert sink.calls == ["begin"]


async def test_leaving_at_any_moment_leaves_nothing(transport: Transport, engine: Engine) -> None:
    for turns in range(30):
        exchange = transport.send(replica(engine.port), REQUEST, sink := Kept())
        for _ in range(turns):
            await asyncio.sleep(0)
        exchange.close()
        calls = list(sink.calls)
        await until(lambda: not transport._connecting)
        assert sink.calls == calls, "the sink was called after its exchange had ended"
        assert transport.open_connections <= 1
    await transport.close()
    await engine.until_closed()


async def test_sockets_send_at_once_and_notice_a_vanished_server(
    transport: Transport, engine: Engine
) -> None:
    engine.script = [Hang()]
    exchange = transport.send(replica(engine.port), REQUEST, Kept())
    await engine.until(lambda: bool(engine.requests))
    assert exchange._connection is not None
    sock = exchange._connection.transport.get_extra_info("socket")
    tcp = socket.IPPROTO_TCP
    assert sock.getsockopt(tcp, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 30_000
        probes = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(tcp, name) for name in probes] == [30, 10, 3]


# Holding back


async def test_a_paused_sink_stops_the_server(transport: Transport, engine: Engine) -> None:
    piece = bytes(1 << 20)
    engine.script = stream([piece] * 50)
    sink = Kept()
    exchange = transport.send(replica(engine.port), REQUEST, sink)
    exchange.pause()  # before there is a connection: it must hold for the one to come
    await engine.until(lambda: engine.sent > 0)
    sent = -1
    while sent != engine.sent:
        sent = engine.sent
        await asyncio.sleep(0.1)
    assert sent < 20 << 20, "more than the sockets' own buffers"
    assert sink.body == b""
    exchange.resume()
    await until(lambda: len(sink.body) > 8 << 20)
    exchange.pause()
    held = len(sink.body)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(sink.body) == held
    exchange.resume()
    await ended(exchange)
    assert len(sink.body) == 50 << 20
    assert sink.calls == ["begin", "head", "data", "end"]


async def test_a_connection_paused_at_its_end_reads_for_the_next_request(
    transport: Transport, engine: Engine
) -> None:
    class Pausing(Kept):
        def data(self, piece: bytes) -> None:
            super().data(piece)
            assert self.flight is not None
            self.flight.pause()

    for _ in range(3):
        sink = await told(transport, engine.port, Pausing())
        assert sink.calls[-1] == "end"
    assert engine.connections == 1


# Ending


@pytest.mark.parametrize("where", ["head", "data"])
async def test_a_sink_may_end_it_from_within(
    transport: Transport, engine: Engine, where: str
) -> None:
    class Failing(Kept):
        def fail(self) -> None:
            assert self.flight is not None
            self.flight.fail(BadAnswer("enough"))
            self.flight.fail(BadAnswer("twice"))

        def head(self, status: int, headers: Any) -> None:
            super().head(status, headers)
            if where == "head":
                self.fail()

        def data(self, piece: bytes) -> None:
            super().data(piece)
            if where == "data":
                self.fail()

    engine.script = [*stream([b"one", b"two"], end=False), Hang()]
    sink = await told(transport, engine.port, Failing())
    told_of = ["begin", "head"] if where == "head" else ["begin", "head", "data"]
    assert sink.calls == [*told_of, "broken"]
    assert str(sink.failure) == "enough"
    await engine.until_closed()
    assert transport.open_connections == 0


async def test_closing_breaks_off_what_is_under_way(engine: Engine, unconnectable: int) -> None:
    transport = Transport()
    await told(transport, engine.port)
    engine.script = [*stream([b"data: 1\n\n"], end=False), Hang()]
    sinks = [Kept() for _ in range(4)]
    carried = [transport.send(replica(engine.port), REQUEST, sink) for sink in sinks[:2]]
    connecting = transport.send(replica(unconnectable), REQUEST, sinks[2])
    await until(lambda: all(sink.body for sink in sinks[:2]))
    just_sent = transport.send(replica(unconnectable), REQUEST, sinks[3])
    await transport.close()
    assert transport.open_connections == 0
    await asyncio.gather(*map(ended, [*carried, connecting, just_sent]))
    assert all(isinstance(sink.failure, BackendError) for sink in sinks)
    await engine.until_closed()


async def test_a_server_that_lives_is_reached_and_one_that_is_gone_is_not(
    transport: Transport,
) -> None:
    async with Engine() as engine:
        at = replica(engine.port)
        assert await transport.reaches(at.origin)
        await engine.until_closed()
        await engine.stop()
        assert not await transport.reaches(at.origin)


async def test_a_server_that_is_dying_takes_connections_and_is_not_reached(
    transport: Transport,
) -> None:
    def let_go(wire: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(let_go, "127.0.0.1", 0) as dying:
        port = dying.sockets[0].getsockname()[1]
        assert not await transport.reaches(replica(port).origin)
