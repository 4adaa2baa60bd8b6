"""One streamed request in each dialect, what its caller reads, and what must be left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, until
from tests.fakes.http1 import Headers
from tests.fakes.script import Chunk, Received
from tests.fakes.vllm import Vllm

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
PATHS = (CHAT, COMPLETIONS, MESSAGES)
FINAL = (b"data: [DONE]", b"message_stop")


def body(path: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    if path == COMPLETIONS:
        said = {"prompt": "hi"}
    return {"model": "tiny", "max_tokens": 8, "stream": stream, **said, **more}


def events(path: str) -> list[bytes]:
    """The whole events of an untouched engine's answer."""
    sent = orjson.dumps(body(path))
    head = Headers([(b"content-type", b"application/json")])
    steps = Vllm(("tiny",), None).answer(Received("POST", path, head, sent, 1))
    return [step.data for step in steps if isinstance(step, Chunk)]


@dataclass
class Heard:
    """What a caller read: the head, whole events, and whether the body ended as it should."""

    status: int
    headers: Headers
    events: list[bytes] = field(default_factory=list)
    plain: Any = None

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id") or ""

    @property
    def finished(self) -> bool:
        return any(mark in event for event in self.events for mark in FINAL)

    @property
    def without_heartbeats(self) -> list[bytes]:
        beats = (b": ping", b"event: ping")
        return [event for event in self.events if not event.startswith(beats)]


async def heard(client: Client, path: str) -> Heard:
    """The answer to a request that was sent; its body must end cleanly, after a whole event."""
    status, headers = await client.read_head("POST")
    answer = Heard(status, headers)
    if headers.get("content-type") == "application/json":
        answer.plain = orjson.loads(await client.read_body())
    else:
        answer.events = [event async for event in client.read_events()]
        assert client.partial == b"", "the stream ended inside an event"
    return answer


async def ask(port: int, path: str, **more: Any) -> Heard:
    async with await Client.open(port) as client:
        await client.post(path, body(path, **more), HEADERS)
        return await heard(client, path)


def error(path: str, answer: Heard) -> dict[str, Any]:
    """The error that ends a stream, or is all of a plain answer, by the rules of its dialect."""
    if answer.plain is not None:
        document = answer.plain
    else:
        *before, last = answer.events
        assert not answer.finished, "a failed stream was ended as a finished one"
        assert not [e for e in before if b'"error"' in e]
        prefix = b"event: error\ndata: " if path == MESSAGES else b"data: "
        assert last.startswith(prefix), last
        document = orjson.loads(last.removeprefix(prefix))
    told: dict[str, Any] = document["error"]
    assert answer.request_id in told["message"]
    if path == MESSAGES:
        assert document["type"] == "error"
        assert document["request_id"] == answer.request_id
    else:
        assert set(told) == {"message", "type", "param", "code"}
    return told


@contextlib.asynccontextmanager
async def nothing_left(serving: Serving, *engines: Engine) -> AsyncIterator[None]:
    """Requests, counts and tasks come back to what they were when the block began."""
    tasks = len(asyncio.all_tasks())
    held = [engine.open for engine in engines]
    yield
    await serving.until_quiet()
    transport = serving.worker.composition.transport
    idle = sum(map(len, transport._idle.values()))
    assert serving.upstream_connections == idle, "a connection is neither idle nor in use"
    for connection in list(transport._all):
        connection.abort()
    for engine, before in zip(engines, held, strict=True):
        await engine.until(lambda e=engine, b=before: e.open <= b)  # type: ignore[misc]
    assert serving.worker.composition.gateway.bodies.held == 0
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


def sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count
