"""The admin port that a command is about: listened to, and what is no gateway is known."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from gateway.operator import port
from gateway.operator.port import Away, Failed, Refused, answered, followed
from gateway.units import Address
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import Serving, configured, serving
from tests.fakes.script import Chunk, Hang, Rst, Script, Sleep, Step, plain, stream

ADMIN = "admin-key-of-the-tests"


def at(where: Serving | Engine) -> Address:
    return Address("127.0.0.1", where.admin_port if isinstance(where, Serving) else where.port)


def event(number: int) -> bytes:
    document = orjson.dumps({"pools": {}, "number": number})
    return b"event: status\r\ndata: %b\r\n\r\n" % document


async def numbers(address: Address, most: int = 99) -> list[int]:
    """Those of the documents that are told, until there are `most`; raises what ends them."""
    found: list[int] = []
    async with asyncio.timeout(15), aclosing(followed(address)) as documents:
        async for told in documents:
            found.append(told["number"])
            if len(found) == most:
                break
    return found


async def test_the_status_is_told_now_and_when_it_changes() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        async with aclosing(followed(at(gateway))) as documents:
            first = await anext(documents)
            assert first["pools"]["tiny"]["replicas"][0]["standing"] == "up"
            await request(gateway.admin_port, "POST", f"/drain?url={engine.url}")
            async for told in documents:
                if told["pools"]["tiny"]["replicas"][0]["standing"] == "drained":
                    break


async def test_what_is_cut_anywhere_is_put_together_and_pings_are_none() -> None:
    whole = b": alive\r\n\r\n" + event(1) + b": alive\r\n\r\n" + event(2)
    pieces = [Chunk(whole[i : i + 1]) for i in range(len(whole))]
    steps: list[Step] = [*stream([], end=False), *pieces, Hang()]
    async with Engine(lambda _: steps) as engine:
        async with aclosing(followed(at(engine))) as documents:
            while (await anext(documents))["number"] != 2:
                pass


async def test_who_is_slow_is_told_only_the_newest() -> None:
    async with Engine(
        lambda _: [*stream([event(1) + event(2) + event(3)], end=False), Hang()]
    ) as e:
        assert await numbers(at(e), most=1) == [3]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda _: stream([event(1)]), "it ended"),
        (lambda _: [Rst()], "ConnectionReset"),
        (lambda _: [*stream([event(1)], end=False), Hang()], "is silent"),
    ],
)
async def test_one_that_goes_away_or_falls_silent_is_known(
    script: Script, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_SILENCE", 0.5)
    async with Engine(script) as engine:
        with pytest.raises(Away) as caught:
            await numbers(at(engine))
    assert f"http://127.0.0.1:{engine.port}" in str(caught.value)
    assert why in str(caught.value)


async def test_where_nobody_listens_that_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
    for asked in (numbers(address), answered(address, "GET", "/status", "pools", dict)):
        with pytest.raises(Away, match="no answer from the admin port http://127.0.0.1"):
            await asked


@pytest.mark.parametrize("status", [404, 503])
async def test_without_events_the_status_is_asked_for(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_POLL_EVERY", 0.0)
    polls = iter([1, 1, 1, 2])

    def script(got: Any) -> list[Step]:
        if got.target == "/events":
            return plain(status, b'{"error":"16 listen already"}')
        return plain(200, orjson.dumps({"pools": {}, "number": next(polls)}))

    async with Engine(script) as engine:
        assert await numbers(at(engine), most=2) == [1, 2]


async def test_another_server_is_known_not_to_be_a_gateway() -> None:
    async with Engine(lambda _: plain(200, b'{"object":"list"}')) as engine:
        with pytest.raises(Failed, match="answered 200: that is no admin port of fairgate"):
            await numbers(at(engine))


async def test_the_admin_key_is_wanted_and_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = f"admin_key_sha256: {hashlib.sha256(ADMIN.encode()).hexdigest()}"
    async with Engine() as engine, serving(configured(engine.url, more=locked)) as gateway:
        with pytest.raises(Refused, match="set FAIRGATE_ADMIN_KEY") as caught:
            await numbers(at(gateway))
        assert caught.value.status == 403
        monkeypatch.setenv("FAIRGATE_ADMIN_KEY", ADMIN)
        async with aclosing(followed(at(gateway))) as documents:
            assert "pools" in await anext(documents)


async def test_an_event_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_LARGEST", 1024)
    pieces: list[Step] = [Chunk(b"data: " + b"x" * 600), Sleep(0.05), Chunk(b"x" * 600), Hang()]
    async with Engine(lambda _: [*stream([], end=False), *pieces]) as engine:
        with pytest.raises(Away, match="an event of more than 1024 bytes"):
            await numbers(at(engine))
        await engine.until_closed()
