"""How the transport finds a server by its name: never by asking, one address after the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from backends.base import Origin, Replica
from backends.connection import Limits
from backends.errors import ConnectFailed
from backends.kinds.base import probe
from backends.transport import Transport
from tests.backends.sinks import REQUEST, Kept, ended
from tests.fakes.certificates import self_signed
from tests.fakes.deaf import deaf
from tests.fakes.engine import Engine

NAME = "gpu1.test"
#: An address of this machine where nothing listens on the engine's port.
ELSEWHERE = "127.0.0.2"


@contextlib.asynccontextmanager
async def knowing(
    book: Mapping[str, Sequence[str]], limits: Limits | None = None
) -> AsyncIterator[Transport]:
    made = Transport(limits, lambda host: book.get(host, ()))
    yield made
    await made.close()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the system was asked for."""
    asked: list[str] = []
    ask = socket.getaddrinfo

    def seen(host: str, *rest: object, **more: object) -> object:
        if host == NAME:
            asked.append(host)
        return ask(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", seen)
    return asked


def named(port: int, tls: ssl.SSLContext | None = None, address: str = "") -> Replica:
    return Replica(f"http://{NAME}:{port}", Origin(NAME, port, tls, address))


async def sent(transport: Transport, there: Replica) -> Kept:
    sink = Kept()
    await ended(transport.send(there, REQUEST, sink))
    return sink


async def test_a_name_is_connected_to_at_its_address_and_asked_by_its_name(
    engine: Engine, unasked: list[str]
) -> None:
    there = named(engine.port)
    async with knowing({NAME: ["127.0.0.1"]}) as transport:
        status, _ = await transport.fetch(there, probe("/health", there), limit=10, timeout=5)
        assert status == 200
        assert await transport.reaches(there.origin)
    assert engine.requests[0].headers.get("host") == f"{NAME}:{engine.port}"
    assert unasked == []


async def test_a_name_nothing_is_known_of_fails_at_once(unasked: list[str]) -> None:
    async with knowing({}, Limits(connect=60)) as transport:
        failure = (await sent(transport, named(9))).failure
        assert isinstance(failure, ConnectFailed)
        assert str(failure) == f"http://{NAME}:9: no address is known of {NAME}"
        assert not await transport.reaches(named(9).origin)
        assert transport.open_connections == 0
    assert unasked == []


async def test_the_next_address_is_tried_after_a_refusal(engine: Engine) -> None:
    async with knowing({NAME: [ELSEWHERE, "127.0.0.1"]}) as transport:
        assert (await sent(transport, named(engine.port))).failure is None
        assert await transport.reaches(named(engine.port).origin)


async def test_an_address_that_hangs_leaves_time_for_the_next(engine: Engine) -> None:
    book = {NAME: [ELSEWHERE, "127.0.0.1"]}
    with deaf(ELSEWHERE, engine.port):
        async with knowing(book, Limits(connect=0.4, idle=0.0)) as transport:
            assert (await sent(transport, named(engine.port))).failure is None
            engine.requests.clear()
            # Now it is known which one works: it is asked first.
            book[NAME] = [ELSEWHERE, ELSEWHERE, "127.0.0.1"]
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(5):
                assert (await sent(transport, named(engine.port))).failure is None
            assert loop.time() - began < 5 * 0.4 / 3
            assert transport.open_connections <= 1


async def test_what_worked_is_known_by_name_whatever_becomes_of_its_tls_context(
    engine: Engine,
) -> None:
    # A reload may make an origin anew; nothing of the one before is to stay.
    async with knowing({NAME: [ELSEWHERE, "127.0.0.1"]}, Limits(tls=0.05)) as transport:
        for _ in range(3):
            there = named(engine.port, ssl.create_default_context())
            assert isinstance((await sent(transport, there)).failure, ConnectFailed)
        assert len(transport._worked) == 1


async def test_where_no_address_answers_the_whole_time_is_kept(engine: Engine) -> None:
    with deaf(ELSEWHERE, engine.port):
        async with knowing({NAME: [ELSEWHERE] * 4}, Limits(connect=0.2)) as transport:
            failure = (await sent(transport, named(engine.port))).failure
            assert isinstance(failure, ConnectFailed)
            assert "no connection in time" in str(failure)
            assert transport.open_connections == 0


async def test_of_many_addresses_the_first_four_are_tried(engine: Engine) -> None:
    book = {NAME: [*(f"127.0.1.{n}" for n in range(1, 5)), "127.0.0.1"]}
    async with knowing(book) as transport:
        assert isinstance((await sent(transport, named(engine.port))).failure, ConnectFailed)
        book[NAME] = book[NAME][1:]
        assert (await sent(transport, named(engine.port))).failure is None


async def test_one_of_several_behind_a_name_is_reached_at_its_own_address(engine: Engine) -> None:
    async with knowing({NAME: [ELSEWHERE]}) as transport:
        there = named(engine.port, address="127.0.0.1")
        assert (await sent(transport, there)).failure is None
        assert (await sent(transport, named(engine.port))).failure is not None
        # Their connections are not mixed up either.
        other = named(engine.port, address=ELSEWHERE)
        assert isinstance((await sent(transport, other)).failure, ConnectFailed)
        assert str(other.origin) == f"http://{ELSEWHERE}:{engine.port}"
        assert engine.connections == 1


# TLS: a certificate is for the name


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A certificate that signs itself, and its key, for the name and for the address."""
    folder = tmp_path_factory.mktemp("tls")
    subjects = {"name": f"DNS:{NAME}", "address": "IP:127.0.0.1"}
    return {kind: self_signed(folder / kind, subject) for kind, subject in subjects.items()}


@contextlib.asynccontextmanager
async def secured(certificate: tuple[Path, Path]) -> AsyncIterator[tuple[int, list[str | None]]]:
    """The port of a server over TLS, and the names that its callers wanted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    wanted: list[str | None] = []
    context.sni_callback = lambda _, name, __: wanted.append(name)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1], wanted
    server.close()


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
async def test_the_certificate_of_the_name_is_wanted_wherever_it_is(
    certificates: dict[str, tuple[Path, Path]], address: str
) -> None:
    async with secured(certificates["name"]) as (port, wanted):
        context = ssl.create_default_context(cafile=str(certificates["name"][0]))
        async with knowing({NAME: ["127.0.0.1"]}) as transport:
            assert (await sent(transport, named(port, context, address))).failure is None
        assert wanted == [NAME]


async def test_a_certificate_of_the_address_is_not_one_of_the_name(
    certificates: dict[str, tuple[Path, Path]],
) -> None:
    async with secured(certificates["address"]) as (port, _):
        context = ssl.create_default_context(cafile=str(certificates["address"][0]))
        async with knowing({NAME: ["127.0.0.1"]}) as transport:
            failure = (await sent(transport, named(port, context))).failure
        assert isinstance(failure, ConnectFailed)
        assert "SSLCertVerificationError: Hostname mismatch" in str(failure)
        assert NAME in str(failure)
