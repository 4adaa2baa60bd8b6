"""Streams held in their middle while something else changes, and what is told of reloads."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, KEY
from tests.fakes.script import Chunk, EndChunks, Received, Step, Wait, stream
from tests.faults.asking import CHAT, Heard, body, events

OTHER_KEY = "fg-another-key-0123456789abcdef"


async def asked(port: int, model: str = "tiny", key: str = KEY) -> int:
    """The status of a plain request."""
    async with await Client.open(port) as client:
        said = body(CHAT, stream=False, model=model)
        await client.post(CHAT, said, [("authorization", f"Bearer {key}")])
        status, _ = await client.read_head("POST")
        await client.read_body()
        return status


class Held:
    """Streams that stay in their middle until `go` is set, on an engine of their own.

    Mutable state: the streams.
    """

    def __init__(self, engine: Engine) -> None:
        self.go = asyncio.Event()
        self._wait = Wait(self.go)
        self._streams: list[tuple[str, asyncio.Task[Heard]]] = []
        engine.script = self._script

    def _script(self, got: Received) -> list[Step] | None:
        if got.method != "POST" or not got.json().get("stream"):
            return None
        whole = events(got.path)
        return [*stream(whole[:2], end=False), self._wait, *map(Chunk, whole[2:]), EndChunks()]

    async def begin(self, port: int, *paths: str) -> None:
        """Begin a stream on each path, and wait until each has its first event."""
        for path in paths:
            begun = asyncio.Event()
            task = asyncio.create_task(self._hear(port, path, begun))
            self._streams.append((path, task))
            await asyncio.wait_for(begun.wait(), 10)

    async def _hear(self, port: int, path: str, begun: asyncio.Event) -> Heard:
        async with await Client.open(port) as client:
            await client.post(path, body(path), HEADERS)
            answer = Heard(*await client.read_head("POST"))
            async for event in client.read_events():
                answer.events.append(event)
                begun.set()
            assert client.partial == b""
            return answer

    @property
    def over(self) -> int:
        return sum(task.done() for _, task in self._streams)

    async def end(self) -> None:
        """Every stream comes to its end, whole."""
        self.go.set()
        for path, task in self._streams:
            answer = await asyncio.wait_for(task, 10)
            assert answer.status == 200
            assert answer.without_heartbeats == events(path)


async def reloads(port: int) -> tuple[float, float, float]:
    """Of the metrics: reloads that were good, that were refused, and whether the last was good."""
    text = (await request(port, "GET", "/metrics")).body.decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("fairgate_config"):
                values[sample.labels.get("result", "last")] = sample.value
    return values["ok"], values["refused"], values["last"]
