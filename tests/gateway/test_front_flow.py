"""The front door and a caller's pace: large bodies, answers left unread, and leaving meanwhile."""

import asyncio
import json

import pytest
import uvloop

from tests.fakes.client import Client, head, request
from tests.fakes.gateway import HEADERS, until
from tests.fakes.script import Hang, Received, Step, plain
from tests.gateway.test_front import BODY, CHAT, GOOD, MODELS, TIMERS, door, sends_until_cut, served

LARGE = b'{"id":"x","model":"tiny","choices":[],"text":"%b"}' % (b"w" * 600_000)


@pytest.mark.parametrize("size", [1_000, 100_000, 1_000_000])
@pytest.mark.parametrize("first", [0, 10, None])
@pytest.mark.parametrize("again", [False, True])
async def test_a_caller_who_leaves_is_noticed_whatever_it_sent(
    size: int, first: int | None, again: bool
) -> None:
    body = json.dumps({**json.loads(BODY), "user": "u" * size}).encode()
    async with door() as (gateway, engine):
        async with await Client.open(gateway.port) as client:
            if again:  # the same head was read before
                await client.send(GOOD)
                await served(client)
            engine.requests.clear()
            engine.script = [Hang()]
            await client.send(head("POST", CHAT, HEADERS, body))
            if first is not None:  # the rest comes later
                await client.send(body[:first])
                await asyncio.sleep(0.05)
            await client.send(body[first or 0 :])
            await engine.until(lambda: any(seen.method == "POST" for seen in engine.requests))
        await until(lambda: not gateway.live, 2)
        await until(lambda: len(gateway.lines()) == 1 + again)
        assert gateway.lines()[-1]["status"] == 499


async def test_who_reads_no_answer_has_no_more_of_them_made() -> None:
    """And all of them, in their order, once it reads."""

    def script(got: Received) -> list[Step] | None:
        return plain(200, LARGE) if got.method == "POST" else None

    async with door() as (gateway, engine):
        engine.script = script
        async with await Client.open(gateway.port, rcvbuf=8192) as client:
            for _ in range(30):
                await client.send(GOOD)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            made = sum(seen.method == "POST" for seen in engine.requests)
            assert 1 <= made < 15  # as many as the system itself takes in
            for _ in range(30):
                status, _headers = await client.read_head()
                assert (status, len(await client.read_body())) == (200, len(LARGE))
            await client.send(MODELS)
            await served(client)


async def test_who_leaves_answers_unread_for_too_long_is_dropped() -> None:
    times = TIMERS.replace("keep_alive: 5s", "keep_alive: 300ms")
    async with door(timers=times) as (gateway, engine):
        engine.script = lambda got: plain(200, LARGE) if got.method == "POST" else None
        async with await Client.open(gateway.port, rcvbuf=8192) as client:
            for _ in range(30):
                await client.send(GOOD)
                await asyncio.sleep(0.01)
            assert await sends_until_cut(client, MODELS, 0.05) < 50


async def test_an_empty_line_between_requests_is_none() -> None:
    async with door(timers=TIMERS) as (gateway, _), await Client.open(gateway.port) as client:
        for empty in (b"\r\n", b"\n", b"\r\n\r\n"):
            await client.send(empty + GOOD + empty)
            await served(client)
            await client.send(empty)
            await asyncio.sleep(0.3)  # longer than a head may take
            await client.send(MODELS)
            await served(client)


async def test_a_page_that_names_no_origin_is_told_of_none() -> None:
    async with door("cors: {origins: ['*']}") as (gateway, _):
        answer = await request(gateway.port, "POST", CHAT, HEADERS, BODY)
        assert answer.headers.get("access-control-allow-origin") is None
        named = [*HEADERS, ("origin", "http://a")]
        answer = await request(gateway.port, "POST", CHAT, named, BODY)
        assert answer.headers.get("access-control-allow-origin") == "http://a"


async def test_a_read_may_end_anywhere_in_the_head_of_the_next_request() -> None:
    """Also before the end of a line, which is none between requests."""
    async with door() as (gateway, engine):
        ends = [at for at, byte in enumerate(GOOD) if byte in b"\r\n"]
        for at in ends:
            async with await Client.open(gateway.port) as client:
                await client.send(GOOD + GOOD[:at])
                await served(client)
                await client.send(GOOD[at:])
                await served(client)
        assert sum(seen.method == "POST" for seen in engine.requests) == 2 * len(ends)


@pytest.mark.parametrize(
    "guarantee",
    [
        test_who_reads_no_answer_has_no_more_of_them_made,
        test_an_empty_line_between_requests_is_none,
    ],
)
def test_it_holds_under_uvloop(guarantee: object) -> None:
    uvloop.run(guarantee())  # type: ignore[operator]
