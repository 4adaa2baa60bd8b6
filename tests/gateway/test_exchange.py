"""The path of one request: the order of its steps, and what is left behind on every way out."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.turn import Turn
from gateway.errors import Draining, Overloaded
from tests.fakes.admission import Counting
from tests.fakes.client import Answer, Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import Fin, Hang, Rst, Script, plain, stream

CHAT = "/v1/chat/completions"
SAID = [{"role": "user", "content": "hi"}]
PLAIN: dict[str, Any] = {"model": "tiny", "messages": SAID}
STREAM: dict[str, Any] = {**PLAIN, "stream": True}
EVENT = b'data: {"model":"tiny","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
KEY = HEADERS[:1]

#: A body that cannot be served, and the status and code of its refusal.
REFUSED: list[tuple[Any, int, str]] = [
    ({**PLAIN, "model": "missing", "n": 99}, 404, "model_not_found"),
    ({**PLAIN, "n": 99}, 400, "invalid_request"),
    ({**PLAIN, "priority": 1}, 400, "invalid_request"),
    ({"messages": SAID}, 400, "missing_required_parameter"),
    ({"model": "tiny"}, 400, "missing_required_parameter"),
    ([], 400, "invalid_json"),
]
#: What an engine does, and the status and outcome of it.
FAILING: list[tuple[Script, int, str]] = [
    (plain(400, b'{"error":{"message":"too long"}}'), 400, "refused"),
    (plain(401, b"{}"), 502, "upstream_failed"),
    (plain(500, b"{}"), 502, "upstream_failed"),
    (plain(503, b"{}"), 503, "refused"),
    (plain(200, b"not JSON"), 502, "upstream_failed"),
    ([Fin()], 502, "upstream_failed"),
    ([Rst()], 502, "upstream_failed"),
    ([Hang()], 504, "timed_out"),
]


@contextlib.asynccontextmanager
async def counted(
    script: Script | None = None, **more: str
) -> AsyncIterator[tuple[Serving, Engine, Counting]]:
    async with Engine(script) as engine, serving(configured(engine.url, **more)) as gateway:
        admission = Counting()
        gateway.worker.composition.gateway.admission = admission
        yield gateway, engine, admission


async def post(gateway: Serving, body: Any, path: str = CHAT) -> Answer:
    return await request(gateway.port, "POST", path, HEADERS, json.dumps(body).encode())


def posts(engine: Engine) -> int:
    return sum(seen.method == "POST" for seen in engine.requests)


async def told(gateway: Serving, admission: Counting, count: int = 1) -> tuple[int, str]:
    """Status and outcome of the last of `count` requests, once what each held was given back."""
    await gateway.until_quiet()
    lines = await gateway.logged(count)
    assert len(lines) == count
    line = lines[-1]
    assert [len(kept) for kept in admission.settled] == [1] * len(admission.settled)
    if admission.settled:
        (used,) = admission.settled[-1]
        tokens = (line["prompt_tokens"], line["completion_tokens"])
        assert (used.prompt, used.completion) == tokens
    assert gateway.worker.composition.gateway.bodies.held == 0
    return line["status"], line["outcome"]


# The order


async def test_a_wrong_key_is_told_before_a_byte_of_the_body_is_read() -> None:
    async with counted() as (gateway, _, admission):
        async with await Client.open(gateway.port) as client:
            fields = [("authorization", "Bearer wrong-key-0123456789"), ("content-length", "100")]
            await client.send(head("POST", CHAT, fields))
            status, _ = await client.read_head()
            assert status == 401
        assert admission.asked == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((*HEADERS, ("content-length", str(64 << 20))), 413),
        ((*HEADERS, ("content-encoding", "gzip"), ("content-length", "9")), 415),
        ((*KEY, ("content-type", "text/plain"), ("content-length", "9")), 415),
    ],
)
async def test_what_the_head_gives_away_is_refused_before_the_body(
    fields: tuple[tuple[str, str], ...], status: int
) -> None:
    async with counted() as (gateway, _, _), await Client.open(gateway.port) as client:
        await client.send(head("POST", CHAT, fields))
        assert (await client.read_head())[0] == status


async def test_a_key_is_asked_for_before_the_type_of_the_body() -> None:
    async with counted() as (gateway, _, _):
        fields = [("content-type", "text/plain")]
        assert (await request(gateway.port, "POST", CHAT, fields, b"x")).status == 401


async def test_what_cannot_be_served_is_refused_before_anything_is_reserved() -> None:
    async with counted() as (gateway, engine, admission):
        for count, (body, status, code) in enumerate(REFUSED, 1):
            answer = await post(gateway, body)
            assert (answer.status, answer.json()["error"]["code"]) == (status, code)
            assert (admission.asked, posts(engine)) == ([], 0)
            assert await told(gateway, admission, count) == (status, "refused")


async def test_admission_is_asked_once_with_who_what_and_where() -> None:
    async with counted() as (gateway, _, admission):
        await post(gateway, STREAM)
        ((principal, route, size),) = admission.asked
        assert (principal.key, principal.team) == ("ann", "search")
        assert (route.model, size.answers) == ("tiny", 1)
        assert size.text_bytes > 0


async def test_a_refused_admission_holds_nothing_and_reaches_no_engine() -> None:
    async with counted() as (gateway, engine, admission):
        admission.refusal = Overloaded("No room.")
        assert (await post(gateway, PLAIN)).status == 503
        assert (posts(engine), admission.settled) == (0, [])
        assert await told(gateway, admission) == (503, "refused")


# Every way out


@pytest.mark.parametrize("body", [PLAIN, STREAM])
async def test_a_good_answer_settles_what_the_engine_counted(body: dict[str, Any]) -> None:
    async with counted() as (gateway, _, admission):
        assert (await post(gateway, body)).status == 200
        assert await told(gateway, admission) == (200, "ok")
        assert admission.settled[0][0].exact
        assert admission.settled[0][0].completion > 0


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_an_engine_that_fails_before_it_spoke_has_its_status(body: dict[str, Any]) -> None:
    timers = "{first_event: 150ms, total: 150ms, lame_duck: 0, drain: 1s}"
    async with counted(timeouts=timers) as (gateway, engine, admission):
        for count, (script, status, outcome) in enumerate(FAILING, 1):
            engine.script = script
            assert (await post(gateway, body)).status == status
            assert await told(gateway, admission, count) == (status, outcome)
            assert len(admission.settled) == count


@pytest.mark.parametrize(
    ("last", "outcome"),
    [(Fin(), "upstream_failed"), (Rst(), "upstream_failed"), (Hang(), "timed_out")],
)
async def test_a_stream_that_breaks_is_told_inside_it_and_charged_as_far_as_it_went(
    last: Any, outcome: str
) -> None:
    script = [*stream([EVENT] * 2, end=False), last]
    timers = "{stall: 200ms, heartbeat: 5s, lame_duck: 0, drain: 1s}"
    async with counted(script, timeouts=timers) as (gateway, _, admission):
        answer = await post(gateway, STREAM)
        assert (answer.status, answer.complete) == (200, True)
        assert b'"error"' in answer.body
        assert await told(gateway, admission) == (200, outcome)
        assert admission.settled[0][0].completion == 2


async def test_a_dead_pool_is_an_upstream_failure() -> None:
    async with counted() as (gateway, engine, admission):
        await engine.stop()
        assert (await post(gateway, PLAIN)).status == 502
        assert await told(gateway, admission) == (502, "upstream_failed")


async def test_a_full_pool_is_overloaded_and_its_permit_is_given_back() -> None:
    async with counted() as (gateway, engine, admission):
        (pool,) = gateway.worker.composition.routes.pools()
        pool.replicas[0].concurrency = 0
        assert (await post(gateway, PLAIN)).status == 503
        assert posts(engine) == 0
        assert await told(gateway, admission) == (503, "refused")
        alarms = gateway.worker.composition.gateway.alarms
        assert [alarm.is_set for alarm in alarms._free] == [False], "its alarm is given back, too"


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_a_caller_who_leaves_before_the_answer_frees_the_engine(body: Any) -> None:
    async with counted([Hang()]) as (gateway, engine, admission):
        async with await Client.open(gateway.port) as client:
            await client.post(CHAT, body, KEY)
            await engine.until(lambda: posts(engine) == 1)
        await engine.until(lambda: len(engine.aborts) == 1)
        assert await told(gateway, admission) == (499, "client_gone")


async def test_a_caller_who_leaves_a_stream_pays_for_what_was_made() -> None:
    script = [*stream([EVENT] * 3, end=False), Hang()]
    async with counted(script) as (gateway, engine, admission):
        async with await Client.open(gateway.port) as client:
            await client.post(CHAT, STREAM, KEY)
            await client.read_head()
            seen = b""
            async for event in client.read_events():
                seen += event
                if seen.count(b"data:") == 3:
                    break
        await engine.until(lambda: len(engine.aborts) == 1)
        assert await told(gateway, admission) == (200, "client_gone")
        assert admission.settled[0][0].completion == 3


async def test_a_caller_who_leaves_inside_its_body_never_had_a_permit() -> None:
    async with counted() as (gateway, engine, admission):
        async with await Client.open(gateway.port) as client:
            await client.send(head("POST", CHAT, [*HEADERS, ("content-length", "100")]) + b"{")
            await until(lambda: gateway.live == 1)
        assert await told(gateway, admission) == (499, "client_gone")
        assert (admission.asked, posts(engine)) == ([], 0)


async def test_a_caller_who_stops_reading_is_cut_off_in_its_time() -> None:
    timers = "{client_write: 200ms, stall: 5s, heartbeat: 5s, lame_duck: 0, drain: 1s}"
    many = stream([EVENT * 500] * 400, end=False)
    async with counted([*many, Hang()], timeouts=timers) as (gateway, engine, admission):
        async with await Client.open(gateway.port, rcvbuf=4096) as client:
            await client.post(CHAT, STREAM, KEY)
            await engine.until(lambda: len(engine.aborts) == 1)
            assert await told(gateway, admission) == (200, "client_gone")


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_an_end_from_outside_is_told_to_the_caller_and_frees_everything(body: Any) -> None:
    script = [*stream([EVENT], end=False), Hang()] if body is STREAM else [Hang()]
    async with counted(script) as (gateway, engine, admission):
        async with await Client.open(gateway.port) as client:
            await client.post(CHAT, body, KEY)
            if body is STREAM:
                await client.read_head()
            await engine.until(lambda: posts(engine) == 1)
            await until(lambda: gateway.live == 1)
            (exchange,) = gateway.worker.composition.gateway.live
            exchange.end(Draining("Stopping."))
            exchange.end(Overloaded("The first reason counts."))
            status = 200 if body is STREAM else (await client.read_head())[0]
            assert b"Stopping." in await client.read_body()
        assert status == (200 if body is STREAM else 503)
        assert await told(gateway, admission) == (status, "drained")


async def test_a_fault_of_our_own_is_a_500_without_a_word_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with counted() as (gateway, _, admission):
        (pool,) = gateway.worker.composition.routes.pools()

        def broken(*_: object) -> bytes:
            raise RuntimeError("the prompt was: hi")

        monkeypatch.setattr(type(pool.kind), "prepare", broken)
        with caplog.at_level(logging.ERROR):
            answer = await post(gateway, PLAIN)
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        assert await told(gateway, admission) == (500, "refused")
        assert str(answer.headers.get("x-request-id")) in caplog.text
        assert "RuntimeError at" in caplog.text
        assert "prompt" not in caplog.text + answer.body.decode()


async def test_a_cancellation_by_the_server_itself_leaves_nothing_behind() -> None:
    async with counted([Hang()]) as (gateway, engine, admission):
        async with await Client.open(gateway.port) as client:
            await client.post(CHAT, PLAIN, KEY)
            await engine.until(lambda: posts(engine) == 1)
            (exchange,) = gateway.worker.composition.gateway.live
            task = exchange._caller.task
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await engine.until(lambda: len(engine.aborts) == 1)
        await told(gateway, admission)


async def test_tokens_that_were_only_counted_are_no_tokens_used() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        answer = await post(gateway, PLAIN, "/v1/messages/count_tokens")
        assert answer.json()["input_tokens"] > 0
        (line,) = await gateway.logged(1)
        assert line["prompt_tokens"] == 0
        assert gateway.worker.composition.metrics.counts()["tokens"] == []


async def test_what_fails_after_the_answer_does_not_change_what_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with counted() as (gateway, _, admission):
        monkeypatch.setattr(Turn, "__exit__", _failing)
        assert (await post(gateway, PLAIN)).status == 200
        (line,) = await gateway.logged(1)
        assert (line["status"], line["outcome"]) == (200, "ok")
        assert [len(kept) for kept in admission.settled] == [1]


def _failing(*_: object) -> None:
    raise RuntimeError("late")


async def test_a_refused_request_is_found_by_the_callers_own_id() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        await request(
            gateway.port, "POST", "/v1/chat/completions", [("x-request-id", "mine-1")], b"{}"
        )
        (line,) = await gateway.logged(1)
        assert (line["client_request_id"], line["status"]) == ("mine-1", 401)
