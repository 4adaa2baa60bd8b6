"""What the transport takes for an answer, and what it refuses: caps, framing, garbage, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from backends.base import Origin, Replica
from backends.connection import LARGEST_READ, Limits
from backends.errors import (
    BackendError,
    BadAnswer,
    ConnectFailed,
    ConnectionBroken,
    UpstreamTimeout,
)
from backends.transport import Transport
from tests.backends.sinks import OK, REQUEST, Kept, ended, replica, told
from tests.fakes.certificates import self_signed
from tests.fakes.engine import Engine
from tests.fakes.script import Chunk, Fin, Hang, Rst, Send, Sleep, Step, stream

LENGTHLESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def answered(transport: Transport, *steps: Step) -> Kept:
    """What a sink is told when an engine does this."""
    async with Engine(list(steps)) as engine:
        return await told(transport, engine.port)


async def test_interim_answers_are_passed_over(transport: Transport) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    sink = await answered(transport, Send(interim + OK))
    assert sink.calls == ["begin", "head", "data", "end"]
    assert sink.status == 200
    assert [name for name, _ in sink.headers] == [b"content-length"]


async def test_an_answer_in_single_bytes_is_the_same_answer(transport: Transport) -> None:
    whole = CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\ntrailer: t\r\n\r\n"
    steps: list[Step] = []
    for byte in whole:
        steps += [Send(bytes([byte])), Sleep(0)]
    sink = await answered(transport, *steps)
    assert sink.calls == ["begin", "head", "data", "end"]
    assert bytes(sink.body) == b"abcde"
    assert [name for name, _ in sink.headers] == [b"transfer-encoding"]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        CHUNKED + b"0\r\n\r\n",
    ],
)
async def test_an_empty_answer_ends_without_data(transport: Transport, head: bytes) -> None:
    sink = await answered(transport, Send(head))
    assert sink.calls == ["begin", "head", "end"]


async def test_without_length_or_chunks_the_close_is_the_end(transport: Transport) -> None:
    sink = await answered(transport, Send(LENGTHLESS + b"on"), Sleep(0), Send(b"e"), Fin())
    assert sink.calls == ["begin", "head", "data", "end"]
    assert bytes(sink.body) == b"one"
    assert transport.open_connections == 0


async def test_without_length_or_chunks_a_reset_is_no_end(transport: Transport) -> None:
    sink = await answered(transport, Send(LENGTHLESS + b"on"), Sleep(0.05), Rst())
    assert sink.calls[-1] == "broken"
    assert isinstance(sink.failure, ConnectionBroken)


@pytest.mark.parametrize(
    "cut",
    [
        OK[:-1],
        CHUNKED,
        CHUNKED + b"5\r\nab",
        CHUNKED + b"2\r\nab\r\n",
        CHUNKED + b"2\r\nab\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nconten",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab",
    ],
)
@pytest.mark.parametrize("how", [Fin(), Rst()])
async def test_an_answer_cut_short_is_broken(transport: Transport, cut: bytes, how: Step) -> None:
    sink = await answered(transport, Send(cut), how)
    assert sink.calls[-1] == "broken"
    assert isinstance(sink.failure, ConnectionBroken | BadAnswer)
    assert transport.open_connections == 0


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nbad header: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello",
        CHUNKED + b"zz\r\nab\r\n",
        CHUNKED + b"1\r\nabc\r\n",
        CHUNKED + b"ffffffffffffffffff\r\n",
    ],
)
async def test_what_is_not_http_is_refused(transport: Transport, said: bytes) -> None:
    sink = await answered(transport, Send(said), Sleep(5))
    assert isinstance(sink.failure, BadAnswer)
    assert sink.calls.count("broken") == 1
    assert transport.open_connections == 0


async def test_a_head_has_a_cap_in_bytes() -> None:
    transport = Transport(Limits(header=2_000))
    lines = [Send(b"x%d: %b\r\n" % (i, b"v" * 80)) for i in range(50)]
    paced = [step for line in lines for step in (line, Sleep(0))]
    sink = await answered(transport, Send(OK[:17]), *paced, Sleep(5))
    assert isinstance(sink.failure, BadAnswer)
    assert sink.calls == ["begin", "broken"]


async def test_a_single_field_without_end_meets_the_cap() -> None:
    transport = Transport(Limits(header=2_000))
    sink = await answered(transport, Send(OK[:17] + b"x: "), *[Send(bytes(b"v" * 999))] * 9)
    assert isinstance(sink.failure, BadAnswer)


@pytest.mark.parametrize(("fields", "good"), [(19, True), (20, False)])
async def test_a_head_has_a_cap_in_fields(fields: int, good: bool) -> None:
    transport = Transport(Limits(header_fields=20))
    sink = await answered(
        transport, Send(OK[:17] + b"x: y\r\n" * fields + OK[17:]), Sleep(0 if good else 5)
    )
    assert (sink.failure is None) is good
    await transport.close()


async def test_trailers_count_towards_the_cap_in_fields() -> None:
    transport = Transport(Limits(header_fields=20))
    sink = await answered(
        transport, Send(CHUNKED + b"0\r\n" + b"x: y\r\n" * 21 + b"\r\n"), Sleep(5)
    )
    assert isinstance(sink.failure, BadAnswer)


async def test_data_is_handed_over_once_for_each_read(transport: Transport) -> None:
    class Counting(Kept):
        pieces = 0

        def data(self, piece: bytes) -> None:
            super().data(piece)
            self.pieces += 1

    chunks = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in [b"data: x\n\n"] * 100)
    sink = Counting()
    async with Engine([Send(CHUNKED + chunks + b"0\r\n\r\n")]) as engine:
        await told(transport, engine.port, sink)
    assert len(sink.body) == 900
    assert sink.pieces == 1


async def test_no_read_takes_in_more_than_its_most(transport: Transport) -> None:
    class Measuring(Kept):
        largest = 0

        def data(self, piece: bytes) -> None:
            super().data(piece)
            self.largest = max(self.largest, len(piece))

    size = 20 * LARGEST_READ
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    sink = Measuring()
    async with Engine([Send(head + b"x" * size)]) as engine:
        await told(transport, engine.port, sink)
    assert len(sink.body) == size
    assert sink.largest <= LARGEST_READ


async def test_connections_that_share_their_room_do_not_mix_their_answers(
    transport: Transport,
) -> None:
    def script(n: int) -> list[Step]:
        pieces = [b"%d" % n * 5_000 for _ in range(20)]
        return [Send(CHUNKED), *(step for p in pieces for step in (Chunk(p), Sleep(0))), Fin()]

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(script(n))) for n in range(9)]
        sinks = await asyncio.gather(*(told(transport, engine.port) for engine in engines))
    for n, sink in enumerate(sinks):
        assert bytes(sink.body) == b"%d" % n * 100_000


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def secured(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The port of a server that answers OK over TLS, on kept connections."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(OK)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


def over_tls(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> Replica:
    return Replica(f"https://{host}:{port}", Origin(host, port, context))


async def test_tls_with_the_given_authority_is_trusted_and_kept(
    transport: Transport, secured: int, certificate: tuple[Path, Path]
) -> None:
    there = over_tls(secured, ssl.create_default_context(cafile=str(certificate[0])))
    for _ in range(3):
        sink = Kept()
        await ended(transport.send(there, REQUEST, sink))
        assert (sink.failure, bytes(sink.body)) == (None, b"ok")
        assert transport.open_connections == 1


async def test_tls_of_an_unknown_authority_is_refused(transport: Transport, secured: int) -> None:
    sink = Kept()
    await ended(transport.send(over_tls(secured, ssl.create_default_context()), REQUEST, sink))
    assert isinstance(sink.failure, ConnectFailed)
    assert transport.open_connections == 0


async def test_tls_for_another_name_is_refused(
    transport: Transport, secured: int, certificate: tuple[Path, Path]
) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    sink = Kept()
    await ended(transport.send(over_tls(secured, context, "localhost"), REQUEST, sink))
    assert isinstance(sink.failure, ConnectFailed)
    assert transport.open_connections == 0


async def test_a_server_without_tls_is_not_spoken_to_in_the_clear() -> None:
    transport = Transport(Limits(tls=0.2))
    async with Engine() as engine:
        sink = Kept()
        there = over_tls(engine.port, ssl.create_default_context())
        await ended(transport.send(there, REQUEST, sink))
        assert isinstance(sink.failure, BackendError)
        assert engine.requests == []


async def test_a_handshake_that_never_comes_ends_in_time() -> None:
    transport = Transport(Limits(tls=0.1))
    sink = Kept()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = over_tls(silent.getsockname()[1], ssl.create_default_context())
        await ended(transport.send(there, REQUEST, sink))
    assert isinstance(sink.failure, ConnectFailed)
    assert transport.open_connections == 0


async def test_chunks_of_a_stream_arrive_as_they_are_sent(transport: Transport) -> None:
    events = [b"data: %d\n\n" % i for i in range(5)]
    sink = await answered(transport, *stream(events[:-1], end=False), Chunk(events[-1]), Fin())
    assert bytes(sink.body) == b"".join(events)
    assert isinstance(sink.failure, ConnectionBroken)


async def test_who_answers_before_the_request_is_read_gets_no_other_behind_it(
    transport: Transport,
) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)  # and reads no more

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1000)
    port = server.sockets[0].getsockname()[1]
    large = b"x" * 20_000_000
    head = b"POST /v1/x HTTP/1.1\r\nhost: engine\r\ncontent-length: %d\r\n\r\n" % len(large)
    sink = Kept()
    await ended(transport.send(replica(port), head, sink, large))
    assert (sink.failure, bytes(sink.body)) == (None, b"ok")
    assert transport.open_connections == 0, "it holds what nobody will read"
    assert (await told(transport, port)).failure is None
    assert len(connections) == 2
    for writer in connections:
        writer.transport.abort()
    server.close()


# Small requests of our own


async def test_fetch_gives_status_and_body(transport: Transport, engine: Engine) -> None:
    got = await transport.fetch(replica(engine.port), REQUEST, limit=2, timeout=5)
    assert got == (200, b"ok")


async def test_fetch_keeps_no_more_than_its_limit(transport: Transport, engine: Engine) -> None:
    with pytest.raises(BadAnswer, match="cap"):
        await transport.fetch(replica(engine.port), REQUEST, limit=1, timeout=5)
    assert transport.open_connections == 0


async def test_fetch_ends_in_time_and_closes(transport: Transport, engine: Engine) -> None:
    engine.script = [Hang()]
    with pytest.raises(UpstreamTimeout):
        await transport.fetch(replica(engine.port), REQUEST, limit=9, timeout=0.05)
    await engine.until_closed()


async def test_fetch_given_up_from_outside_closes(transport: Transport, engine: Engine) -> None:
    engine.script = [Hang()]
    task = asyncio.create_task(transport.fetch(replica(engine.port), REQUEST, limit=9, timeout=5))
    await engine.until(lambda: bool(engine.requests))
    task.cancel()
    await asyncio.wait([task])
    await engine.until_closed()
    assert transport.open_connections == 0
