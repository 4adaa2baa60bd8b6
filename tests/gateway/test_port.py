"""The data port on the terms of the newest configuration: the door, the pages, the certificate."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.port import certificate
from gateway.settings import Config, Tls
from tests.fakes.certificates import self_signed
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving


async def renewed(gateway: Serving, text: str) -> None:
    await gateway.worker.reload(configuration.load("test.yaml", text, {}))


async def test_the_doors_bounds_are_those_of_the_newest_configuration() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        large = [*HEADERS, ("x-large", "x" * 3000)]
        assert (await request(gateway.port, "GET", "/v1/models", large)).status == 200
        async with await Client.open(gateway.port) as before:
            await renewed(gateway, configured(engine.url, more="bounds: {header: 2KiB}\n"))
            for _ in range(2):  # on a connection from before, and on new ones
                await before.send(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
                assert (await before.read_head())[0] == 200
                assert (await request(gateway.port, "GET", "/v1/models", large)).status == 431


async def test_whose_pages_may_call_is_that_of_the_newest_configuration() -> None:
    origin = ("origin", "https://a.example")
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        seen = []
        for more in ("cors: {origins: ['https://a.example']}\n", "", "cors: {origins: ['*']}\n"):
            await renewed(gateway, configured(engine.url, more=more))
            answer = await request(gateway.port, "GET", "/v1/models", [*HEADERS, origin])
            asked = [origin, ("access-control-request-method", "POST")]
            preflight = await request(gateway.port, "OPTIONS", "/v1/models", asked)
            allowed = answer.headers.get("access-control-allow-origin")
            seen.append((allowed, preflight.status))
    assert seen == [(origin[1], 200), (None, 405), (origin[1], 200)]


# TLS


def made(folder: Path, name: str) -> Tls:
    """A certificate of its own, and its key."""
    cert, key = self_signed(folder / name)
    return Tls(cert_file=str(cert), key_file=str(key))


async def shown(port: int) -> str:
    """The digest of the certificate a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        given = writer.get_extra_info("ssl_object").getpeercert(True)
        return hashlib.sha256(given).hexdigest()
    finally:
        writer.close()
        await writer.wait_closed()


def of(tls: Tls) -> str:
    assert tls.cert_file is not None
    der = ssl.PEM_cert_to_DER_cert(Path(tls.cert_file).read_text())
    return hashlib.sha256(der).hexdigest()


async def test_a_certificate_that_was_replaced_is_shown_to_who_comes_then(tmp_path: Path) -> None:
    tls, other = made(tmp_path, "one"), made(tmp_path, "two")
    more = f"tls: {{cert_file: {tls.cert_file}, key_file: {tls.key_file}}}\n"
    async with Engine() as engine, serving(configured(engine.url, more=more)) as gateway:
        first = of(tls)
        assert await shown(gateway.port) == first
        for name in ("cert_file", "key_file"):
            Path(getattr(tls, name)).write_bytes(Path(getattr(other, name)).read_bytes())
        await renewed(gateway, configured(engine.url, more=more))
        assert await shown(gateway.port) == of(other) != first


def test_a_certificate_of_no_use_is_told_of(tmp_path: Path) -> None:
    tls, other = made(tmp_path, "one"), made(tmp_path, "two")
    assert certificate(Config(tls=tls)) == certificate(Config()) == ""
    mixed = Tls(cert_file=tls.cert_file, key_file=other.key_file)
    assert certificate(Config(tls=mixed)).startswith("the certificate or its key: ")
    empty = tmp_path / "empty"
    empty.write_text("")
    assert certificate(Config(tls=Tls(cert_file=str(empty), key_file=str(empty))))


@pytest.mark.parametrize("times", ["{keep_alive: 1s}", "{keep_alive: 1s, connect: 3s, tls: 4s}"])
async def test_timeouts_are_those_of_the_newest_configuration(times: str) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        await renewed(gateway, configured(engine.url, timeouts=times))
        limits = gateway.worker.composition.transport.limits
        assert (limits.connect, limits.tls) in ((1.0, 5.0), (3.0, 4.0))
        assert (limits.connect == 3.0) is ("connect" in times)
        async with await Client.open(gateway.port) as client:
            await client.send(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await client.read_head())[0] == 200
            assert await asyncio.wait_for(client.read_until_close(), 4) == b""
