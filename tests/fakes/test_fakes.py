"""The fakes do to the wire what their names say: other tests stand on that."""

import asyncio
import json
import signal
from collections.abc import Iterable

import pytest

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine, named
from tests.fakes.http1 import End
from tests.fakes.posting import ASKED, CHAT, post
from tests.fakes.process import EngineProcess
from tests.fakes.script import (
    Chunk,
    EndChunks,
    Fin,
    Hang,
    Head,
    Received,
    Rst,
    Send,
    Sleep,
    Step,
    Wait,
    cut_after,
    in_turn,
    plain,
    render,
    stream,
)

EVENTS = [b"data: %d\n\n" % number for number in range(5)]
BODY = b"".join(EVENTS)


async def test_requests_are_kept_as_they_came(engine: Engine) -> None:
    async with await Client.open(engine.port) as client:
        await client.send(
            b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two:  2 \r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert (await client.read_head())[0] == 404
    (came,) = engine.requests
    assert (came.method, came.target, came.path, came.body) == ("POST", "/a?b=c", "/a", b"abcde")
    assert came.headers[:3] == [(b"host", b"x"), (b"x-two", b"1"), (b"x-two", b"2")]
    assert came.headers.all("X-Two") == ["1", "2"]


async def test_a_connection_serves_pipelined_requests_in_order(engine: Engine) -> None:
    async with await Client.open(engine.port) as client:
        await client.send(
            b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        assert (await client.read_head())[0] == 200
        assert await client.read_body() == b""
        await client.read_head()
        assert json.loads(await client.read_body())["data"][0]["id"] == "tiny"
    assert [came.connection for came in engine.requests] == [1, 1]
    assert engine.connections == 1


async def test_connection_close_is_honoured_on_both_sides(engine: Engine) -> None:
    close = [("connection", "close")]
    answer = await request(engine.port, "GET", "/health", close)
    assert (answer.complete, answer.closed) == (True, None)
    async with await Client.open(engine.port) as client:
        await client.send(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        await client.read_head()
        await client.read_until_close()
        assert client.ended == "fin"
    engine.script = plain(200, b"{}", close) + [Fin()]
    answer = await post(engine, CHAT, ASKED)
    assert (answer.complete, answer.closed) == (True, "fin")


async def test_what_is_not_http_gets_a_400_and_the_end(engine: Engine) -> None:
    async with await Client.open(engine.port) as client:
        await client.send(b"NOT HTTP\r\n\r\n")
        assert (await client.read_until_close()).startswith(b"HTTP/1.1 400 ")
        assert client.ended == "fin"
    assert engine.requests == []


async def test_metrics_show_what_runs_and_its_progress() -> None:
    hold = Wait()
    async with Engine([*stream(EVENTS, end=False), hold, EndChunks()]) as engine:
        async with await Client.open(engine.port) as client:
            await client.post(CHAT, ASKED)
            await engine.until(lambda: engine.sent > len(BODY))
            shown = (await request(engine.port, "GET", "/metrics")).body
            assert b'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0\n' in shown
            hold.event.set()
            await client.read_head()
            assert await client.read_body() == BODY
        await engine.until_closed()
        assert engine.vllm.metrics["vllm:num_requests_running"] == 0
        assert engine.vllm.metrics["vllm:iteration_tokens_total_count"] == 5


async def test_steps_are_sent_as_they_are_written() -> None:
    row: list[Step] = [Head(200, [("transfer-encoding", "chunked")]), Chunk(b"abc")]
    row += [Sleep(0), Send(b"2\r\nde\r\n"), EndChunks()]
    async with Engine(row) as engine:
        async with await Client.open(engine.port) as client:
            await client.post(CHAT, ASKED)
            wire = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n"
            await client.read_head()
            assert await client.read_body() == b"abcde"
        assert render(row) == wire + b"0\r\n\r\n"
        assert engine.sent == len(render(row))


async def test_each_piece_is_a_write_of_its_own() -> None:
    gates = [Wait(), Wait()]
    row = [*stream(EVENTS[:1], end=False), gates[0], Chunk(EVENTS[1]), gates[1], EndChunks()]
    async with Engine(row) as engine, await Client.open(engine.port) as client:
        await client.post(CHAT, ASKED)
        await client.read_head()
        assert await client.read(999) == b"9\r\ndata: 0\n\n\r\n"
        gates[0].event.set()
        assert await client.read(999) == b"9\r\ndata: 1\n\n\r\n"
        gates[1].event.set()
        assert await client.read(999) == b"0\r\n\r\n"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_stream_breaks_at_the_exact_byte_and_in_the_way_asked(how: End) -> None:
    for offset in (0, 1, 9, 13, len(BODY)):
        async with Engine(cut_after(BODY, offset, how)) as engine:
            answer = await post(engine, CHAT, ASKED)
            assert (answer.body, answer.complete) == (BODY[:offset], False)
            assert answer.closed == how
            await engine.until_closed()
            assert engine.aborts == []


@pytest.mark.parametrize(("end", "error"), [(Fin(), EOFError), (Rst(), ConnectionResetError)])
async def test_an_end_before_the_head_is_no_answer(end: Step, error: type[Exception]) -> None:
    async with Engine([end]) as engine:
        with pytest.raises(error):
            await post(engine, CHAT, ASKED)


async def test_a_cut_inside_the_framing_leaves_the_rendered_bytes() -> None:
    wire = render(stream(EVENTS))
    async with Engine([Send(wire[:-3]), Fin()]) as engine, await Client.open(engine.port) as client:
        await client.post(CHAT, ASKED)
        assert await client.read_until_close() == wire[:-3]


@pytest.mark.parametrize("how", ["fin", "rst", "close"])
@pytest.mark.parametrize("started", [True, False])
async def test_a_peer_that_leaves_early_is_noticed_with_how(how: str, started: bool) -> None:
    rows: list[Step] = stream(EVENTS, end=False) if started else []
    async with Engine([*rows, Hang()]) as engine, await Client.open(engine.port) as client:
        await client.post(CHAT, ASKED)
        await engine.until(lambda: engine.sent == len(render(rows)) and len(engine.requests) == 1)
        if started:
            await client.read_head()
            assert await anext(client.read_events()) == EVENTS[0]
            await client.read(999)
        getattr(client, how)()
        await engine.until_closed(n=1)
        (abort,) = engine.aborts
        assert abort.how == ("rst" if how == "rst" else "fin")
        assert (abort.request, abort.sent) == (engine.requests[0], len(render(rows)))


async def test_leaving_after_the_whole_answer_is_no_abort(engine: Engine) -> None:
    await post(engine, CHAT, {**ASKED, "stream": True})
    await engine.until_closed()
    assert (engine.aborts, engine.open, engine.closed) == ([], 0, 1)


async def test_a_reader_that_pauses_stops_the_engine() -> None:
    def pour(came: Received) -> Iterable[Step]:
        yield from stream((), end=False)
        while True:
            yield Chunk(b"x" * 65536)

    async with Engine(pour) as engine, await Client.open(engine.port, rcvbuf=4096) as client:
        await client.post(CHAT, ASKED)
        before = -1
        async with asyncio.timeout(10):
            while engine.sent != before:
                before = engine.sent
                await asyncio.sleep(0.2)
        assert 0 < engine.sent < 64 << 20
        while engine.sent == before:
            await client.read(1 << 16)


async def test_rows_in_turn_then_the_defaults() -> None:
    async with Engine(in_turn([Rst()], None, plain(503, b"{}"))) as engine:
        assert (await request(engine.port, "GET", "/health")).status == 200
        with pytest.raises(ConnectionResetError):
            await post(engine, CHAT, ASKED)
        assert [(await post(engine, CHAT, ASKED)).status for _ in range(3)] == [200, 503, 200]


async def test_a_stopped_engine_refuses_and_comes_back_on_its_port(engine: Engine) -> None:
    async with await Client.open(engine.port) as client:
        await engine.until(lambda: engine.open == 1)
        await engine.stop()
        assert await client.read_until_close() == b""
    with pytest.raises(ConnectionRefusedError):
        await request(engine.port, "GET", "/health")
    engine.start()
    assert (await request(engine.port, "GET", "/health")).status == 200


async def test_what_a_script_raises_fails_the_test_that_wrote_it() -> None:
    def broken(came: Received) -> Iterable[Step]:
        raise LookupError("mine")

    engine = Engine(broken)
    engine.start()
    with pytest.raises(EOFError):
        await post(engine, CHAT, ASKED)
    with pytest.raises(LookupError, match="mine"):
        await engine.stop()


async def test_a_read_that_gets_nothing_times_out() -> None:
    async with Engine([Hang()]) as engine, await Client.open(engine.port, patience=0.05) as client:
        await client.post(CHAT, ASKED)
        with pytest.raises(TimeoutError):
            await client.read_head()


async def test_a_killed_process_breaks_its_stream_and_refuses() -> None:
    async with EngineProcess("slow_stream") as process:
        async with await Client.open(process.port) as client:
            await client.post(CHAT, {**ASKED, "stream": True})
            await client.read_head()
            events = client.read_events()
            for _ in range(3):
                assert (await anext(events)).startswith(b"data: ")
            await process.kill()
            with pytest.raises((EOFError, ConnectionResetError)):
                async for _ in events:
                    pass
        with pytest.raises(ConnectionRefusedError):
            await request(process.port, "GET", "/health")


async def test_a_process_stops_at_its_offset_and_hangs_when_stopped() -> None:
    async with EngineProcess("after_offset:100") as process:
        async with await Client.open(process.port, patience=0.3) as client:
            await client.post(CHAT, {**ASKED, "stream": True})
            await client.read_head()
            assert len(await anext(client.read_pieces())) == 100
            with pytest.raises(TimeoutError):
                await client.read(1)
        process.signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await request(process.port, "GET", "/health", patience=0.3)
        process.signal(signal.SIGCONT)
        assert (await request(process.port, "GET", "/health")).status == 200


def test_an_unknown_script_is_refused() -> None:
    with pytest.raises(ValueError, match="no script 'fast'"):
        named("fast")
