"""Limits through the whole gateway: whatever becomes of a request, nothing leaks and its price is
right. Counted in memory and in a real Redis; each pitfall others fell into has its test.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
import pytest

from gateway.errors import ClientGone, Draining
from tests.fakes.client import Client, head, request
from tests.fakes.gateway import HEADERS
from tests.fakes.redis import RedisServer
from tests.fakes.script import Fin, Hang, Rst, Step, plain, stream
from tests.faults.asking import CHAT, MESSAGES, PATHS, ask, body, events
from tests.faults.limited import FULL, limited

pytestmark = pytest.mark.usefixtures("no_traceback")

COUNT_TOKENS, EMBEDDINGS, MODELS = "/v1/messages/count_tokens", "/v1/embeddings", "/v1/models"
#: What engines do that has no token in it, streamed or not, on any path.
FAILING: list[list[Step]] = [
    *(plain(status, b"{}") for status in (401, 429, 500, 503)),
    plain(200, b"not JSON"),
    [Fin()],
    [Rst()],
    stream([]),
]
ERROR_EVENTS = {
    CHAT: b'data: {"error":{"message":"broke","code":500}}\n\n',
    MESSAGES: b'event: error\ndata: {"type":"error","error":{"type":"api_error"}}\n\n',
}


# A slot is given back, whatever happens: cancel, time-out, fault, another dialect's path


async def test_slot_never_released_when_the_caller_leaves_before_the_head(store: str) -> None:
    """It pays for the prompt the engine was working on, and holds nothing."""
    async with limited(store, [Hang()]) as at:
        for path in PATHS:
            for streamed in (True, False):
                count = at.posts
                async with await Client.open(at.port) as client:
                    await client.post(path, body(path, stream=streamed), HEADERS[:1])
                    await at.engine.until(lambda c=count: at.posts > c)  # type: ignore[misc]
                    assert (await at.left_now())[2] == FULL[2] - 1
                assert await at.charged("counted") == 0


async def test_slot_never_released_when_the_caller_leaves_a_stream(store: str) -> None:
    """It pays for what was relayed, counted, and the log says that it was counted."""
    async with limited(store) as at:
        for path in PATHS:
            sent = events(path)[:4]
            at.engine.script = [*stream(sent, end=False), Hang()]
            async with await Client.open(at.port) as client:
                await client.post(path, body(path), HEADERS[:1])
                await client.read_head()
                seen = b""
                async for event in client.read_events():
                    seen += event
                    if seen.count(b"data:") == len(sent):
                        break
            # What opens a stream of messages, and a block in it, are events of no token.
            assert await at.charged("counted") == (2 if path == MESSAGES else 4)


@pytest.mark.parametrize(
    ("streamed", "timeouts", "spoken"),
    [
        (True, "{first_event: 150ms, lame_duck: 0}", 0),
        (True, "{first_event: 200ms, early_commit: 50ms, heartbeat: 50ms, lame_duck: 0}", 0),
        (False, "{total: 150ms, lame_duck: 0}", 0),
        (True, "{stall: 150ms, heartbeat: 5s, lame_duck: 0}", 3),
    ],
    ids=["first_event", "after_early_commit", "total", "stall"],
)
async def test_slot_never_released_on_a_timeout(
    store: str, streamed: bool, timeouts: str, spoken: int
) -> None:
    said = stream(events(CHAT)[:spoken], end=False) if spoken else []
    async with limited(store, [*said, Hang()], timeouts=timeouts) as at:
        await ask(at.port, CHAT, stream=streamed)
        (line,) = await at.gateway.logged(1)
        assert line["outcome"] == "timed_out"
        if spoken:
            assert await at.charged("counted") == spoken
        else:
            assert await at.cost() == (0, 0)


async def test_slot_never_released_when_a_caller_does_not_read(store: str) -> None:
    timers = "{client_write: 200ms, stall: 5s, heartbeat: 5s, lame_duck: 0}"
    many = stream([events(CHAT)[1] * 500] * 300, end=False)
    async with limited(store, [*many, Hang()], timeouts=timers) as at:
        async with await Client.open(at.port, rcvbuf=4096) as client:
            await client.post(CHAT, body(CHAT), HEADERS[:1])
            await at.engine.until(lambda: len(at.engine.aborts) == 1)
            # No more than it asked for, however many events there were.
            assert await at.charged("counted") == 8


async def test_slot_never_released_when_the_gateway_itself_fails(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own is no caller's: it costs nothing."""

    def broken(*_: object) -> bytes:
        raise ValueError

    async with limited(store) as at:
        (pool,) = at.gateway.worker.composition.routes.pools()
        monkeypatch.setattr(type(pool.kind), "prepare", broken)
        monkeypatch.setattr("gateway.account.logger.error", lambda *_: None)
        assert (await ask(at.port, CHAT)).status == 500
        assert await at.cost() == (0, 0)


# What an engine's failure costs


async def test_an_engine_that_fails_before_any_token_costs_nothing_nor_a_request(
    store: str,
) -> None:
    async with limited(store) as at:
        for path, error in ERROR_EVENTS.items():
            for script in (*FAILING, stream([error])):
                at.engine.script = script
                for streamed in (True, False):
                    answer = await ask(at.port, path, stream=streamed)
                    assert answer.status in (502, 503, 529)
                    assert await at.cost() == (0, 0), script
        await at.engine.stop()
        assert (await ask(at.port, CHAT)).status == 502
        assert await at.cost() == (0, 0)


async def test_a_stream_of_messages_that_was_opened_and_no_more_costs_nothing(store: str) -> None:
    async with limited(store, [*stream(events(MESSAGES)[:2], end=False), Fin()]) as at:
        answer = await ask(at.port, MESSAGES)
        assert (answer.status, answer.finished) == (200, False)
        assert await at.cost() == (0, 0)


async def test_a_request_the_engine_refuses_costs_a_request_and_no_tokens(store: str) -> None:
    async with limited(store, plain(400, b'{"error":{"message":"too long"}}')) as at:
        for streamed in (True, False):
            assert (await ask(at.port, CHAT, stream=streamed)).status == 400
            assert await at.cost() == (1, 0)


async def test_a_stream_that_breaks_pays_what_was_relayed(store: str) -> None:
    async with limited(store) as at:
        for path in PATHS:
            for last in (Fin(), Rst()):
                at.engine.script = [*stream(events(path)[:5], end=False), last]
                assert not (await ask(at.port, path)).finished
                assert await at.charged("counted") == (3 if path == MESSAGES else 5)


async def test_a_whole_answer_pays_what_the_engine_counted(store: str) -> None:
    async with limited(store) as at:
        for path in PATHS:
            for streamed in (True, False):
                assert (await ask(at.port, path, stream=streamed)).status == 200
                assert await at.charged("exact") == 8


# What costs nothing, and what costs a request


async def test_a_request_that_meets_a_full_pool_costs_nothing(store: str) -> None:
    async with limited(store) as at:
        (pool,) = at.gateway.worker.composition.routes.pools()
        pool.replicas[0].concurrency = 0
        assert (await ask(at.port, CHAT)).status == 503
        assert await at.cost() == (0, 0)


async def test_a_request_drained_before_its_first_event_costs_nothing(store: str) -> None:
    async with limited(store, [Hang()]) as at:
        for streamed in (True, False):
            count = at.posts
            asked = asyncio.create_task(ask(at.port, CHAT, stream=streamed))
            await at.engine.until(lambda c=count: at.posts > c)  # type: ignore[misc]
            (exchange,) = at.gateway.worker.composition.gateway.live
            exchange.end(Draining("Stopping."))
            assert (await asked).status == 503
            assert await at.cost() == (0, 0)


@pytest.mark.parametrize("answered", [False, True])
async def test_who_left_before_anything_was_sent_pays_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """It leaves while Redis decides, or has just done so: what was granted is given back."""
    store = f"secret: sixteen-letters-\nredis: {redis_server.url!r}\n"
    async with limited(store) as at:
        courier = at.gateway.worker.composition.courier
        assert courier is not None
        turn, deliver = courier._store.turn, courier._deliver

        def leave() -> None:
            for exchange in at.gateway.worker.composition.gateway.live:
                exchange.end(ClientGone())

        async def turning(*asked: Any) -> Any:
            leave()
            return await turn(*asked)

        def delivering(*decided: Any) -> None:
            deliver(*decided)
            leave()

        if answered:
            monkeypatch.setattr(courier, "_deliver", delivering)
        else:
            monkeypatch.setattr(courier._store, "turn", turning)
        async with await Client.open(at.port) as client:
            await client.post(CHAT, body(CHAT), HEADERS[:1])
            line = await at.line()
        assert (line["attempts"], line["outcome"], line["status"]) == (0, "client_gone", 499)
        assert line["prompt_tokens"] == line["completion_tokens"] == at.posts == 0
        assert await at.cost() == (0, 0)


async def test_who_leaves_while_a_connection_is_being_made_pays_nothing(store: str) -> None:
    """The engine took the connection and says nothing: its handshake never ends."""
    taken = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with limited(store, url=f"https://127.0.0.1:{port}") as at:
            taken.clear()  # it was asked for its models
            async with await Client.open(at.port) as client:
                await client.post(CHAT, body(CHAT), HEADERS[:1])
                await taken.wait()
                assert (await at.left_now())[2] == FULL[2] - 1
            line = await at.line()
            assert (line["attempts"], line["outcome"]) == (1, "client_gone")
            assert await at.cost() == (0, 0)


#: What a caller sends that is refused before anything is asked of its limits.
BAD: list[tuple[bytes, tuple[tuple[str, str], ...], int]] = [
    (b"{}", (), 401),
    (b"{}", (("authorization", "Bearer wrong-key-0123456789"), HEADERS[1]), 401),
    (b"{}", (HEADERS[0], ("content-type", "text/plain")), 415),
    (b"{", HEADERS, 400),
    (b"{}", HEADERS, 400),
    (orjson.dumps(body(CHAT, model="missing")), HEADERS, 404),
    (orjson.dumps(body(CHAT, n=99)), HEADERS, 400),
    (orjson.dumps(body(CHAT, priority=1)), HEADERS, 400),
    (orjson.dumps(body(CHAT, stream_interval=1000)), HEADERS, 400),
]


async def test_limiter_reached_before_authentication_or_quota_spent_by_our_own_400(
    store: str,
) -> None:
    async with limited(store) as at:
        for sent, fields, status in BAD:
            answer = await request(at.port, "POST", CHAT, fields, sent)
            assert answer.status == status
            assert not [name for name, _ in answer.headers if b"ratelimit" in name]
            assert await at.cost() == (0, 0)
        async with await Client.open(at.port) as client:
            await client.send(head("POST", CHAT, (*HEADERS, ("content-length", str(64 << 20)))))
            assert (await client.read_head())[0] == 413
        assert await at.cost() == (0, 0)
        assert at.posts == 0


async def test_counting_tokens_and_listing_models_cost_a_request_and_embeddings_their_prompt(
    store: str,
) -> None:
    async with limited(store) as at:
        sent = orjson.dumps(body(MESSAGES, stream=False))
        answer = await request(at.port, "POST", COUNT_TOKENS, HEADERS, sent)
        assert answer.status == 200
        assert await at.cost() == (1, 0)
        assert (await request(at.port, "GET", MODELS, HEADERS[:1])).status == 200
        assert await at.cost() == (1, 0)
        sent = orjson.dumps({"model": "tiny", "input": "four words of text"})
        answer = await request(at.port, "POST", EMBEDDINGS, HEADERS, sent)
        assert answer.json()["usage"]["prompt_tokens"] == 4
        assert await at.cost() == (1, 4)
