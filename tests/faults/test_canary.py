"""A key and a prompt are nowhere but where they belong, and unknown names grow no metric."""

import asyncio
import gc
import io
import json
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from backends.kinds.base import OpenAIFamily
from backends.pool import Pool
from backends.transport import Transport
from backends.turn import Turn
from gateway import accept, exchange, passing
from gateway.account import Account
from gateway.admit import Admission, Permit
from gateway.endpoints.base import Reading, Spoken
from gateway.logs import _Line
from gateway.relay import Relay
from gateway.reply import Reply
from gateway.route import Routes
from gateway.salts import Salts
from gateway.wire.answer import Translator
from gateway.wire.openai import OpenAITranslator
from tests.fakes.client import Answer, Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import Serving, configured, serving
from tests.fakes.script import Rst, Script, plain, stream

KEY = "fg-canary-of-a-key-0123456789abcdef"
PROMPT = "canary-of-a-prompt"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HEADERS = [("authorization", f"Bearer {KEY}"), ("content-type", "application/json")]

#: Everything that `exchange.py` calls, and what those call for it.
STAGES: list[tuple[Any, str]] = [
    (exchange, "authenticate"),
    (accept, "check_head"),
    (accept.Bodies, "share"),
    (accept, "body"),
    (accept, "_text"),
    (Reading, "read"),
    (Routes, "resolve"),
    (accept, "check_size"),
    (Reading, "allowed_fields"),
    (Admission, "admit"),
    (Salts, "of"),
    (passing, "client_request_id"),
    (passing, "trace"),
    (passing, "deadline"),
    (Translator, "request"),
    (Relay, "__init__"),
    (Relay, "begin"),
    (Relay, "head"),
    (Relay, "data"),
    (Relay, "end"),
    (Relay, "close"),
    (Pool, "pick"),
    (Turn, "send"),
    (OpenAIFamily, "prepare"),
    (Transport, "send"),
    (OpenAITranslator, "feed"),
    (Translator, "whole"),
    (Permit, "settle"),
    (Reply, "whole"),
    (Reply, "start_stream"),
    (Spoken, "status"),
    (Account, "_time"),
]


@pytest.fixture
def diagnostics() -> Iterator[io.StringIO]:
    """What goes to standard error at DEBUG, libraries included."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(_Line())
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    root.handlers.insert(0, handler)  # the first to write out an exception decides how
    yield text
    gc.collect()  # of tasks that failed unseen, the event loop tells only now
    root.removeHandler(handler)
    root.setLevel(before)
    is_silent(text.getvalue())


def body(**more: Any) -> bytes:
    messages = [{"role": "user", "content": PROMPT}]
    return json.dumps({"model": "tiny", "max_tokens": 9, "messages": messages, **more}).encode()


async def ask(gateway: Serving, path: str, sent: bytes) -> Answer | None:
    """None where the connection was cut instead of an answer."""
    try:
        return await request(gateway.port, "POST", path, HEADERS, sent)
    except (EOFError, ConnectionError):
        return None


async def shown(gateway: Serving, diagnostics: io.StringIO) -> str:
    """All that operators can read."""
    pages = [await request(gateway.admin_port, "GET", path) for path in ("/metrics", "/status")]
    told = b"".join(page.body for page in pages) + gateway.log.read_bytes()
    return told.decode() + diagnostics.getvalue()


def is_silent(text: str) -> None:
    for canary in (KEY, KEY[3:], PROMPT):
        at = text.find(canary)
        assert at < 0, text[max(0, at - 500) : at + 200]


@pytest.fixture(autouse=True)
def no_traceback() -> None:
    """Instead of the one of every other fault: here exceptions are what is asked for."""


def failures() -> Iterator[tuple[str, Script]]:
    told = json.dumps({"error": {"message": f"no: {PROMPT}", "param": PROMPT}}).encode()
    for status in (400, 401, 404, 422, 429, 500, 503):
        yield f"{status}", plain(status, told)
    yield "no json", plain(200, PROMPT.encode())
    yield "no json error", plain(400, PROMPT.encode())
    events = [b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % PROMPT.encode()]
    yield "reset", [*stream(events, end=False), Rst()]
    yield "cut", stream(events)
    yield "error event", stream([b"data: %b\n\n" % told])
    yield "error event later", stream([*events, b"data: %b\n\n" % told])
    yield "wrong type", plain(200, told, [("content-type", PROMPT)])
    yield "no http", [*stream([], end=False), Rst()]


async def test_good_refused_and_failing_requests_tell_no_secret(diagnostics: io.StringIO) -> None:
    async with Engine() as engine, serving(configured(engine.url, key=KEY)) as gateway:
        for path in (CHAT, MESSAGES):
            for sent in (body(), body(stream=True)):
                assert (await request(gateway.port, "POST", path, HEADERS, sent)).status == 200
        refused = [body(priority=1), body(n=99), body(tools=1), body()[:-1], b"[%b]" % body()]
        for sent in (*refused, body(model=1), body(stream=PROMPT), body(tools=PROMPT)):
            answer = await request(gateway.port, "POST", CHAT, HEADERS, sent)
            assert answer.status == 400
            is_silent(answer.body.decode())
        query = f"{CHAT}?key={KEY}&prompt={PROMPT}"
        for raw in (
            head("POST", query, [("x-api-key", KEY + "x")]),
            head("GET", f"/{PROMPT}?key={KEY}", HEADERS),
            head("POST", CHAT, [*HEADERS, ("x-request-id", f"{PROMPT} {KEY}")], body()) + body(),
            head("POST", CHAT, [*HEADERS, *HEADERS]),
            head("BREW", f"/{KEY}", HEADERS),
            f"GET / HTTP/1.1\r\n{KEY} {PROMPT}\r\n\r\n".encode(),
        ):
            async with await Client.open(gateway.port) as client:
                await client.send(raw)
                status, _ = await client.read_head()
                text = (await client.read_body()).decode()
                assert status < 500
                if status >= 400:
                    is_silent(text)
        for _, script in failures():
            engine.script = script
            for streams in (False, True):
                await ask(gateway, CHAT, body(stream=streams))
                await ask(gateway, MESSAGES, body(stream=streams))
                is_silent(await shown(gateway, diagnostics))
        await gateway.until_quiet()
        text = await shown(gateway, diagnostics)
    is_silent(text + diagnostics.getvalue())
    assert " ERROR " not in text


def broken(*args: object, **more: object) -> None:
    raise RuntimeError(f"{KEY} {PROMPT}") from ValueError(f"{KEY} {PROMPT}")


async def test_a_fault_at_any_stage_tells_no_secret_and_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, diagnostics: io.StringIO
) -> None:
    async with Engine() as engine, serving(configured(engine.url, key=KEY)) as gateway:
        for owner, name in STAGES:
            stage = f"{owner.__name__}.{name}"
            before = len(diagnostics.getvalue())
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, broken)
                for sent in (body(), body(stream=True), body()[:-1]):
                    async with asyncio.timeout(4):
                        answer = await ask(gateway, CHAT, sent)
                    if answer is not None and answer.status != 200:
                        assert answer.status in (400, 500, 502), stage
                        is_silent(answer.body.decode() + str(answer.headers))
            if stage != "Relay.head":  # inside the parser, which tells no more than that it failed
                assert "RuntimeError at test_canary" in diagnostics.getvalue()[before:], stage
            await gateway.until_quiet()
            answer = await ask(gateway, CHAT, body())
            assert answer is not None, stage
            assert answer.status == 200, stage
        assert gateway.worker.composition.gateway.bodies.held == 0
        text = await shown(gateway, diagnostics)
    is_silent(text + diagnostics.getvalue())


async def test_a_task_that_fails_unseen_tells_no_secret(diagnostics: io.StringIO) -> None:
    async def fail() -> None:
        broken()

    async with Engine() as engine, serving(configured(engine.url, key=KEY)):
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()
    assert "never retrieved: RuntimeError at test_canary" in diagnostics.getvalue()
    is_silent(diagnostics.getvalue())


def _series(page: bytes) -> set[str]:
    lines = page.decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
async def test_unknown_names_and_paths_grow_no_metric(count: int) -> None:
    chosen = random.Random(18)

    def odd(path: str, model: str) -> bytes:
        sent = json.dumps({"model": model, "messages": []}).encode()
        fields = [("authorization", f"Bearer {KEY}"), ("content-type", "application/json")]
        asked = [
            head("POST", chosen.choice((CHAT, MESSAGES)), fields, sent) + sent,
            head(chosen.choice(("GET", "POST", "PUT")), f"/{path}", fields),
            head("GET", f"/v1/models/{path}", fields),
        ]
        return b"".join(asked)

    async with Engine() as engine, serving(configured(engine.url, key=KEY)) as gateway:
        async with await Client.open(gateway.port) as client:

            async def send(requests: bytes, answers: int) -> None:
                await client.send(requests)
                for _ in range(answers):
                    status, _ = await client.read_head()
                    await client.read_body()
                    assert status == 404

            for _ in range(20):
                await send(odd("first", "first"), 3)
            before = _series((await request(gateway.admin_port, "GET", "/metrics")).body)
            for _ in range(count // 20):
                names = (f"{chosen.getrandbits(64):x}" for _ in range(10))
                await send(b"".join(odd(name, f"m{name}") for name in names), 30)
            after = _series((await request(gateway.admin_port, "GET", "/metrics")).body)
    assert len(before) > 50
    assert after == before
