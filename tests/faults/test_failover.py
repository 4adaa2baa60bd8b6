"""While nothing was promised a failure costs nothing, and nothing broken is ever passed on."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving
from tests.fakes.script import (
    JSON,
    Chunk,
    EndChunks,
    Fin,
    Hang,
    Head,
    Rst,
    Send,
    Step,
    Wait,
    plain,
    stream,
)
from tests.faults.asking import CHAT, MESSAGES, PATHS, ask, body, error, events, heard, nothing_left

pytestmark = pytest.mark.usefixtures("no_traceback")

OPEN = stream([], end=False)
OPENAI_ERROR = b'data: {"error":{"message":"secret place","type":"E","param":null,"code":%d}}\n\n'
ANTHROPIC_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"%b","message":"secret place"}}\n\n'
)
DONE = b"data: [DONE]\n\n"

#: What one replica may do before a whole event is there.
BEFORE: dict[str, list[Step]] = {
    "closes": [Fin()],
    "resets": [Rst()],
    "half a head": [Send(b"HTTP/1.1 200 OK\r\nconte"), Rst()],
    "status 500": plain(500, b'{"error":{"message":"secret place"}}'),
    "status 503": plain(503, b""),
    "status 429": plain(429, b"{}"),
    "another type": [
        Head(200, [("content-type", "text/html"), ("content-length", "6")]),
        Send(b"<html>"),
    ],
    "not HTTP": [Send(b"SSH-2.0-x\r\n\r\n"), Hang()],
    "a head, then closes": [*OPEN, Fin()],
    "a head, then resets": [*OPEN, Rst()],
    "a head, then ends": [*OPEN, EndChunks()],
    "a head, then silence": [*OPEN, Hang()],
    "silence": [Hang()],
    "half an event": [*OPEN, Chunk(b'data: {"id":'), Rst()],
    "an event without end": [*OPEN, *[Chunk(b"x" * 65536)] * 40, Hang()],
    "an error first": [*OPEN, Chunk(OPENAI_ERROR % 500), Chunk(DONE), EndChunks()],
}


def _timeouts(fault: str) -> str:
    """Only what nothing but a timer finds gets a short one: a busy machine must not be at fault."""
    return f"{{first_event: {'200ms' if 'silence' in fault else '10s'}, lame_duck: 0}}"


@pytest.mark.parametrize("fault", BEFORE)
async def test_another_replica_takes_over_while_nothing_was_promised(fault: str) -> None:
    timeouts = _timeouts(fault)
    async with Engine(BEFORE[fault]) as bad, Engine() as good:
        text = configured(bad.url, good.url, model="policy: round_robin", timeouts=timeouts)
        async with serving(text) as gateway, nothing_left(gateway, bad, good):
            answers = [await ask(gateway.port, CHAT) for _ in range(2)]
            for answer in answers:
                assert answer.status == 200
                assert answer.finished
                assert len(answer.events) == len(events(CHAT))
            lines = await gateway.logged(2)
            assert sorted(line["attempts"] for line in lines) == [1, 2]
            assert {line["outcome"] for line in lines} == {"ok"}
            assert sum(gateway.worker.composition.metrics.retries.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", BEFORE)
async def test_two_replicas_that_fail_are_told_once_and_no_third_is_asked(fault: str) -> None:
    timeouts = _timeouts(fault)
    async with Engine(BEFORE[fault]) as a, Engine(BEFORE[fault]) as b, Engine(BEFORE[fault]) as c:
        text = configured(a.url, b.url, c.url, timeouts=timeouts)
        async with serving(text) as gateway, nothing_left(gateway, a, b, c):
            answer = await ask(gateway.port, CHAT)
            error(CHAT, answer)
            expected = {"silence": 504, "a head, then silence": 504}
            expected |= {"status 503": 503, "status 429": 503}
            assert answer.status == expected.get(fault, 502)
            assert b"secret" not in orjson.dumps(answer.plain)
            asked = [e for e in (a, b, c) if any(r.method == "POST" for r in e.requests)]
            assert len(asked) == 2
            assert (await gateway.logged(1))[0]["attempts"] == 2


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", [400, 404])
async def test_a_request_that_is_at_fault_is_asked_of_one_replica_only(
    path: str, status: int
) -> None:
    said = plain(status, b'{"error":{"message":"max_tokens is wrong","param":"max_tokens"}}')
    async with Engine(said) as a, Engine(said) as b:
        async with serving(configured(a.url, b.url)) as gateway:
            answer = await ask(gateway.port, path)
            told = error(path, answer)
            assert answer.status == (502 if status == 404 else 400)
            assert ("max_tokens is wrong" in told["message"]) is (status != 404)
            assert len([r for e in (a, b) for r in e.requests if r.method == "POST"]) == 1


async def test_no_other_replica_is_tried_once_an_event_was_passed_on() -> None:
    half = [*OPEN, Chunk(events(CHAT)[0]), Fin()]
    async with Engine(half) as a, Engine(half) as b:
        async with serving(configured(a.url, b.url)) as gateway:
            answer = await ask(gateway.port, CHAT)
            assert (answer.status, len(answer.events)) == (200, 2)
            error(CHAT, answer)
            assert len([r for e in (a, b) for r in e.requests if r.method == "POST"]) == 1


async def test_after_an_early_commit_another_replica_still_takes_over() -> None:
    wait = Wait()
    timeouts = "{early_commit: 50ms, heartbeat: 50ms, lame_duck: 0}"
    async with Engine([wait, Rst()]) as bad, Engine(stream(events(CHAT))) as good:
        text = configured(bad.url, good.url, model="policy: round_robin", timeouts=timeouts)
        async with serving(text) as gateway, nothing_left(gateway, bad, good):
            async with await Client.open(gateway.port) as client:
                await client.post(CHAT, body(CHAT), HEADERS)
                answering = asyncio.create_task(heard(client, CHAT))
                await asyncio.sleep(0.3)
                wait.event.set()
                answer = await answering
            assert answer.status == 200
            assert answer.events[0] == b": ping\n\n"
            assert answer.without_heartbeats == events(CHAT)


@pytest.mark.parametrize("path", PATHS)
async def test_after_an_early_commit_a_failure_is_told_inside_the_stream(path: str) -> None:
    timeouts = "{early_commit: 50ms, heartbeat: 50ms, first_event: 300ms, lame_duck: 0}"
    async with Engine([*OPEN, Hang()]) as engine:
        async with serving(configured(engine.url, timeouts=timeouts)) as gateway:
            async with nothing_left(gateway, engine):
                answer = await ask(gateway.port, path)
                assert answer.status == 200
                assert len(answer.events) >= 3, "it was not told that we are still here"
                assert error(path, answer)["type"] == (
                    "timeout_error" if path == MESSAGES else "server_error"
                )
                (line,) = await gateway.logged(1)
                assert line["outcome"] == "timed_out"


@pytest.mark.parametrize(
    ("code", "status"), [(400, 400), (422, 400), (404, 502), (429, 503), (500, 502)]
)
async def test_an_error_that_comes_first_gets_its_status(code: int, status: int) -> None:
    said = [*OPEN, Chunk(OPENAI_ERROR % code), Chunk(DONE), EndChunks()]
    async with Engine(said) as engine, serving(configured(engine.url)) as gateway:
        answer = await ask(gateway.port, CHAT)
        assert answer.status == status
        error(CHAT, answer)


@pytest.mark.parametrize("path", PATHS)
async def test_an_error_in_mid_stream_is_said_in_our_words_and_ends_it(path: str) -> None:
    said = ANTHROPIC_ERROR % b"internal_error" if path == MESSAGES else OPENAI_ERROR % 500
    whole = events(path)
    steps = [*stream(whole[:3], end=False), Chunk(said), Chunk(whole[-1]), EndChunks()]
    async with Engine(steps) as engine, serving(configured(engine.url)) as gateway:
        async with nothing_left(gateway, engine):
            answer = await ask(gateway.port, path)
            assert answer.events[:-1] == whole[:3]
            assert "secret" not in error(path, answer)["message"]


async def test_a_large_plain_answer_cut_short_is_cut_for_the_caller_too() -> None:
    head = Head(200, [JSON, ("content-length", str(9 << 20))])
    half: list[Step] = [head, Send(b'{"object":"list","data":"' + b"x" * (3 << 20)), Rst()]
    async with Engine(half) as engine, serving(configured(engine.url)) as gateway:
        async with nothing_left(gateway, engine), await Client.open(gateway.port) as client:
            asked = {"model": "tiny", "input": "hi"}
            await client.post("/v1/embeddings", asked, HEADERS)
            assert (await client.read_head("POST"))[0] == 200
            with pytest.raises((EOFError, ConnectionResetError)):
                await client.read_body()
