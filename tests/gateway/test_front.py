"""The front door: deadlines, bounds, the strictness of HTTP/1.1, and how a connection ends."""

import asyncio
import contextlib
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from tests.fakes.client import Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import Sleep, Wait, stream

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
GOOD = head("POST", CHAT, HEADERS, BODY) + BODY
MODELS = head("GET", "/v1/models", HEADERS)
TIMERS = "{header: 200ms, body: 200ms, keep_alive: 5s, lame_duck: 0, drain: 1s}"


@contextlib.asynccontextmanager
async def door(more: str = "", timers: str = "") -> AsyncIterator[tuple[Serving, Engine]]:
    async with Engine() as engine:
        text = configured(engine.url, more=more, **({"timeouts": timers} if timers else {}))
        async with serving(text) as gateway:
            yield gateway, engine


async def refusal(client: Client) -> tuple[int, str]:
    """The status and code of an answer that is an error of ours and closes the connection."""
    status, headers = await client.read_head()
    told = json.loads(await client.read_body())["error"]
    assert headers.get("content-type") == "application/json"
    assert headers.get("x-request-id") == headers.get("request-id")
    assert str(headers.get("x-request-id")) in told["message"]
    assert headers.get("connection") == "close"
    assert await client.read_until_close() == b""
    return status, told["code"]


async def served(client: Client) -> None:
    status, headers = await client.read_head()
    assert (status, headers.get("connection")) == (200, None)
    assert await client.read_body()


async def sends_until_cut(client: Client, piece: bytes, pause: float) -> int:
    """How many pieces went before the connection was cut."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            while True:
                await client.send(piece)
                sent += 1
                await asyncio.sleep(pause)
    return sent


async def test_half_a_head_is_a_408_and_a_silent_connection_just_ends() -> None:
    async with door(timers=TIMERS) as (gateway, _):
        async with await Client.open(gateway.port) as half, await Client.open(gateway.port) as mute:
            await half.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-a")
            assert await refusal(half) == (408, "request_timeout")
            assert await mute.read_until_close() == b""
            assert mute.ended == "fin"


async def test_a_connection_ends_once_it_is_idle_for_its_time_and_never_before() -> None:
    times = "{keep_alive: 400ms, lame_duck: 0, drain: 1s}"
    loop = asyncio.get_running_loop()
    async with door(timers=times) as (gateway, engine), await Client.open(gateway.port) as client:
        for _ in range(4):
            await client.send(GOOD)
            await served(client)
            await asyncio.sleep(0.2)
        words = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: [DONE]\n\n"]
        engine.script = [*stream(words[:1], end=False), Sleep(0.9), *stream(words[1:])[1:]]
        asked = BODY[:-1] + b',"stream":true}'
        await client.send(head("POST", CHAT, HEADERS, asked) + asked)
        await client.read_head()
        assert b"[DONE]" in await client.read_body()
        began = loop.time()
        assert await client.read_until_close() == b""
        assert client.ended == "fin"
        assert 0.3 < loop.time() - began < 3


async def test_a_head_that_drips_is_a_408_too() -> None:
    async with door(timers=TIMERS) as (gateway, _), await Client.open(gateway.port) as client:
        await client.send(b"GET /")
        answer = asyncio.create_task(refusal(client))
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                await client.send(b"a")
                await asyncio.sleep(0.02)
        assert await answer == (408, "request_timeout")


async def test_a_body_that_does_not_come_is_a_408() -> None:
    async with door(timers=TIMERS) as (gateway, engine):
        for sent in (GOOD[:-1], GOOD[: -len(BODY)]):
            async with await Client.open(gateway.port) as client:
                await client.send(sent)
                assert await refusal(client) == (408, "request_timeout")
        assert not [seen for seen in engine.requests if seen.method == "POST"]
        async with await Client.open(gateway.port) as client:
            await client.send(GOOD)
            await served(client)
            await client.send(GOOD[:-1])  # the same head was read before
            assert await refusal(client) == (408, "request_timeout")


async def test_slow_callers_do_not_hold_up_the_others() -> None:
    async with door(timers=TIMERS) as (gateway, _), contextlib.AsyncExitStack() as held:
        slow = []
        for at in range(300):
            slow.append(await held.enter_async_context(await Client.open(gateway.port)))
            await slow[-1].send(GOOD[: 1 + at % (len(GOOD) - 1)])
        for _ in range(20):
            answer = await request(gateway.port, "POST", CHAT, HEADERS, BODY)
            assert answer.status == 200
        for client in slow:
            assert (await refusal(client))[0] == 408
        assert not gateway.worker.composition.gateway.bodies.held


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_only_health_needs_no_host_and_only_on_http_1_0(path: str) -> None:
    async with door() as (gateway, _):
        for line, status in (
            (f"GET {path} HTTP/1.0", 200),
            (f"HEAD {path} HTTP/1.0", 200),
            (f"GET {path} HTTP/1.1", 400),
            (f"GET {path}?x HTTP/1.0", 400),
            ("GET /v1/models HTTP/1.0", 400),
        ):
            async with await Client.open(gateway.port) as client:
                await client.send(f"{line}\r\n\r\n".encode())
                answered, headers = await client.read_head(line.split(" ")[0])
                assert (answered, headers.get("connection")) == (status, "close"), line


async def test_an_offer_to_upgrade_is_answered_as_http_1_1_with_its_body_read() -> None:
    offer = [*HEADERS, ("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]
    post = head("POST", CHAT, [*offer, ("http2-settings", "AAMAAABk")], BODY) + BODY
    chunks = [("transfer-encoding", "chunked"), *offer]
    chunked = head("POST", CHAT, chunks) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    get = head("GET", "/v1/models", [*offer[:-1], ("upgrade", "websocket")])
    async with door() as (gateway, engine):
        async with await Client.open(gateway.port) as client:
            await client.send(post + MODELS + chunked + get + GOOD)
            for _ in range(5):
                await served(client)
        posts = [seen.json()["messages"] for seen in engine.requests if seen.method == "POST"]
        assert posts == [json.loads(BODY)["messages"]] * 3


async def test_an_offer_to_upgrade_in_pieces_is_read_as_well() -> None:
    offer = [*HEADERS, ("connection", "upgrade"), ("upgrade", "h2c")]
    post = head("POST", CHAT, offer, BODY) + BODY
    async with door() as (gateway, _), await Client.open(gateway.port) as client:
        for at in range(0, len(post), 7):
            await client.send(post[at : at + 7])
            await asyncio.sleep(0)
        await served(client)
        await client.send(GOOD)
        await served(client)


@pytest.mark.parametrize(("version", "connection"), [("1.1", "close, upgrade"), ("1.0", "upgrade")])
async def test_an_offer_to_upgrade_of_a_caller_who_closes_is_answered(
    version: str, connection: str
) -> None:
    """The parser takes the end of such a head for the end of the connection."""
    offer = [*HEADERS, ("connection", connection), ("upgrade", "h2c")]
    post = head("POST", CHAT, offer, BODY).replace(b"HTTP/1.1", b"HTTP/" + version.encode()) + BODY
    async with door() as (gateway, engine):
        async with await Client.open(gateway.port) as client:
            await client.send(post + MODELS)
            async with asyncio.timeout(5):
                assert (await client.read_head())[0] == 200
                await client.read_body()
                assert not await client.read_until_close()
        assert [seen.method for seen in engine.requests].count("POST") == 1


async def test_a_body_is_asked_for_only_from_callers_with_a_key() -> None:
    async with door() as (gateway, _):
        expecting = [("expect", "100-continue"), ("content-length", str(len(BODY)))]
        async with await Client.open(gateway.port) as client:
            await client.send(head("POST", CHAT, [*expecting, ("authorization", "Bearer wrong")]))
            assert await refusal(client) == (401, "invalid_api_key")
        async with await Client.open(gateway.port) as client:
            await client.send(head("POST", CHAT, [*expecting, *HEADERS]))
            assert (await client.read_head())[0] == 100
            await client.send(BODY)
            await served(client)


async def test_an_early_answer_is_read_by_a_caller_who_sends_on() -> None:
    """Up to 64 KiB of what still comes are taken in, so that no reset overtakes the answer."""
    fields = [("authorization", "Bearer wrong"), ("content-length", "10000000")]
    async with door() as (gateway, _), await Client.open(gateway.port) as client:
        await client.send(head("POST", CHAT, fields))
        await until(lambda: bool(gateway.lines()))
        for _ in range(15):
            await client.send(b" " * 4096)
        assert await refusal(client) == (401, "invalid_api_key")
        assert client.ended == "fin"
        assert await sends_until_cut(client, b" " * 65536, 0) < 1000


async def test_a_caller_who_neither_reads_on_nor_leaves_is_dropped_after_a_second() -> None:
    fields = [("authorization", "Bearer wrong"), ("content-length", "10000000")]
    async with door() as (gateway, _), await Client.open(gateway.port) as client:
        await client.send(head("POST", CHAT, fields))
        assert await refusal(client) == (401, "invalid_api_key")
        assert await sends_until_cut(client, b" ", 0.02) < 1000


async def test_a_connection_serves_request_after_request() -> None:
    async with door() as (gateway, engine), await Client.open(gateway.port) as client:
        wrong = head("POST", CHAT, HEADERS, b"{") + b"{"
        for _ in range(10):
            await client.send(GOOD)
            await served(client)
            await client.send(wrong)
            status, headers = await client.read_head()
            assert (status, headers.get("connection")) == (400, None)
            await client.read_body()
        assert engine.connections <= 2


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    held = Wait()
    async with door() as (gateway, engine), await Client.open(gateway.port) as client:
        events = [b'data: {"n":%d}\n\n' % at for at in range(2)]
        engine.script = [*stream(events, end=False), held, *stream([b"data: [DONE]\n\n"])[1:]]
        streaming = json.dumps({**json.loads(BODY), "stream": True}).encode()
        first = head("POST", CHAT, HEADERS, streaming) + streaming
        await client.send(first + head("GET", "/a", HEADERS) + MODELS + head("GET", "/b", HEADERS))
        assert (await client.read_head())[0] == 200
        held.event.set()
        assert (await client.read_body()).endswith(b"data: [DONE]\n\n")
        for status in (404, 200, 404):
            assert (await client.read_head())[0] == status
            await client.read_body()


async def test_what_is_sent_far_ahead_is_left_unanswered_and_the_first_answer_is_whole() -> None:
    held = Wait()
    async with door() as (gateway, engine), await Client.open(gateway.port) as client:
        engine.script = [
            *stream([b"data: {}\n\n"], end=False),
            held,
            *stream([b"data: [DONE]\n\n"])[1:],
        ]
        streaming = json.dumps({**json.loads(BODY), "stream": True}).encode()
        await client.send(head("POST", CHAT, HEADERS, streaming) + streaming)
        assert (await client.read_head())[0] == 200
        for _ in range(2000):
            await client.send(MODELS)
        held.event.set()
        assert (await client.read_body()).endswith(b"data: [DONE]\n\n")
        assert await client.read_until_close() == b""


async def test_more_connections_than_the_bound_are_told_so() -> None:
    async with door("bounds: {connections: 2}") as (gateway, _):
        async with await Client.open(gateway.port) as one, await Client.open(gateway.port) as two:
            for client in (one, two):
                await client.send(MODELS)
                await served(client)
            async with await Client.open(gateway.port) as third:
                assert await refusal(third) == (503, "overloaded")
            await one.send(MODELS)
            await served(one)
        async with asyncio.timeout(5):
            while (await request(gateway.port, "GET", "/v1/models", HEADERS)).status != 200:
                await asyncio.sleep(0.01)


async def test_a_flood_of_fields_costs_no_memory() -> None:
    async with door() as (gateway, _), await Client.open(gateway.port) as client:
        await client.send(MODELS)
        await served(client)
        flood = (b"x: " + b"a" * 1000 + b"\r\n") * 1000
        tracemalloc.start()
        try:
            await client.send(b"GET / HTTP/1.1\r\nhost: h\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    await client.send(flood)
            assert (await client.read_head())[0] == 431
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20


async def test_what_closes_keeps_its_promise_to_close() -> None:
    async with door() as (gateway, _):
        for line, status in (("GET /v1/models HTTP/1.0", 200), ("GET /v1/models HTTP/1.1", 200)):
            async with await Client.open(gateway.port) as client:
                fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
                await client.send(
                    f"{line}\r\nhost: h\r\nconnection: close\r\n{fields}\r\n".encode()
                )
                answered, headers = await client.read_head()
                assert (answered, headers.get("connection")) == (status, "close")
                await client.read_body()
                assert await client.read_until_close() == b""


async def test_every_answer_is_dated_and_names_no_server() -> None:
    async with door() as (gateway, _):
        for method, path in (("GET", "/healthz"), ("GET", "/x"), ("TRACE", "/"), ("POST", CHAT)):
            answer = await request(gateway.port, method, path, HEADERS, BODY)
            assert len(answer.headers.all("date")) == 1
            assert answer.headers.get("server") is None
            assert re.match(r"req_[0-9a-f]{24}\Z", answer.headers.get("x-request-id") or "")


UNDER_UVLOOP: tuple[Callable[[], Awaitable[None]], ...] = (
    test_half_a_head_is_a_408_and_a_silent_connection_just_ends,
    test_a_body_that_does_not_come_is_a_408,
    test_an_offer_to_upgrade_is_answered_as_http_1_1_with_its_body_read,
    test_a_body_is_asked_for_only_from_callers_with_a_key,
    test_an_early_answer_is_read_by_a_caller_who_sends_on,
    test_a_connection_serves_request_after_request,
    test_pipelined_requests_are_answered_in_their_order,
    test_what_is_sent_far_ahead_is_left_unanswered_and_the_first_answer_is_whole,
    test_more_connections_than_the_bound_are_told_so,
)


@pytest.mark.parametrize("guarantee", UNDER_UVLOOP)
def test_it_holds_under_uvloop(guarantee: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await guarantee()

    uvloop.run(run())


async def test_trailers_reach_nobody_and_are_kept_nowhere() -> None:
    chunks = [*HEADERS, ("transfer-encoding", "chunked")]
    trailers = b"authorization: Bearer another\r\n" + b"x-more: of the same\r\n" * 20_000
    async with door() as (gateway, engine), await Client.open(gateway.port) as client:
        await client.send(head("POST", CHAT, chunks) + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY))
        await client.send(trailers)
        data = gateway.worker._data
        assert data is not None
        await until(lambda: len(data.server.server_state.connections) == 1)
        await asyncio.sleep(0.1)  # most of the trailers are read
        (front,) = data.server.server_state.connections
        assert len(front.headers) == len(chunks) + 1  # type: ignore[union-attr]
        await client.send(b"\r\n" + GOOD)
        await served(client)
        await served(client)
    assert len(engine.requests) >= 2
