"""What engines serve stays at the rate of a token limit, however much more is asked for."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.limits.base import SECOND
from tests.fakes.client import Client, head
from tests.fakes.engine import Engine
from tests.fakes.redis import RedisServer
from tests.fakes.script import Chunk, EndChunks, Received, Sleep, Step, plain, stream
from tests.faults.asking import CHAT
from tests.faults.sharing import gateway, headers, limited, redis_time

pytestmark = pytest.mark.usefixtures("no_traceback")

WORKERS = 2
#: Tokens a second, the bucket's size, and how many times as much is asked for.
RATE, BURST = 10_000, 20_000
LOAD = 4
#: What one request uses: a prompt evenly up to twice its mean, and a long tail of answers.
PROMPT, ANSWER, SPREAD = 60, 100.0, 0.8
MEAN = 60 + 138
EVENTS = 5


@dataclass
class Served:
    """An engine's script: each request says what it uses. Mutable state: the tokens of those that
    came since `begin`, of those under way, and the most there were under way.
    """

    tokens: int = 0
    requests: int = 0
    underway: int = 0
    most: int = 0
    done: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self) -> None:
        self.tokens = self.requests = 0
        self.most = self.underway

    def __call__(self, request: Received) -> Iterator[Step] | None:
        return self._answer(request.json()) if request.method == "POST" else None

    def _answer(self, body: dict[str, Any]) -> Iterator[Step]:
        prompt, completion = map(int, body["user"].split())
        used = prompt + completion
        self.requests += 1
        self.tokens += used
        self.underway += used
        self.most = max(self.most, self.underway)
        told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": used}
        choice = {"index": 0, "finish_reason": "stop"}
        lasts = completion / 1000
        if body.get("stream"):
            said = [event([{**choice, "delta": {"content": "word"}}])] * EVENTS
            yield from stream(said, end=False, pause=lasts / EVENTS)
            yield from (Chunk(event([], usage=told)), Chunk(b"data: [DONE]\n\n"))
            self.underway -= used
            yield EndChunks()
        else:
            yield Sleep(lasts)
            self.underway -= used
            message = {**choice, "message": {"role": "assistant", "content": "words"}}
            whole = {"object": "chat.completion", "choices": [message], "usage": told}
            yield from plain(200, json.dumps(whole).encode())


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    document = {"object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(document).encode()


class Load:
    """Callers who come at their own pace, whatever they are answered.

    Mutable state: tokens that were `asked` for, and how often the answer was which status.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.asked = 0
        self.statuses: dict[int, int] = {}
        self._port = port
        self._chance = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()

    async def come(self, seconds: float) -> None:
        """At `LOAD` times the rate, for so long; those who came may still be there."""
        loop = asyncio.get_running_loop()
        due, ends = loop.time(), loop.time() + seconds
        while due < ends:
            await asyncio.sleep(due - loop.time())
            task = asyncio.create_task(self._one())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            due += self._chance.expovariate(LOAD * RATE / MEAN)

    async def leave(self) -> None:
        await asyncio.gather(*self._under_way)

    async def _one(self) -> None:
        chance = self._chance
        prompt = chance.randrange(1, 2 * PROMPT)
        completion = round(min(2000, ANSWER * chance.lognormvariate(0, SPREAD)))
        self.asked += prompt + completion
        body = {"model": "tiny", "max_tokens": 2000, "stream": chance.random() < 0.5}
        body["messages"] = [{"role": "user", "content": "word " * prompt}]
        body["user"] = f"{prompt} {completion}"
        data = json.dumps(body).encode()
        async with await Client.open(self._port, patience=30) as client:
            await client.send(head("POST", CHAT, headers("search"), data) + data)
            status, _ = await client.read_head("POST")
            await client.read_body()
        self.statuses[status] = self.statuses.get(status, 0) + 1


async def served_in(seconds: float, server: RedisServer, folder: Path) -> None:
    served = Served()
    limits = f"{{tokens_per_minute: {{limit: {60 * RATE}, burst: {BURST}}}}}"
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(served))
        text = limited(engine.url, server.url, {"search": limits})
        _, port, _ = await stack.enter_async_context(gateway(folder, text, WORKERS))
        first = Load(port, 1)
        while 429 not in first.statuses:  # until the bucket is empty
            await first.come(0.5)
        load = Load(port, 2)
        served.begin()
        began = await redis_time(server)
        await load.come(seconds)
        took = (await redis_time(server) - began) / SECOND
        tokens = served.tokens
        await load.leave()
        await first.leave()
    share = tokens / RATE / took
    print(
        f"{tokens:,} tokens of {served.requests} requests in {took:.1f} s, {share:.4f} of the rate;"
        f" asked for {load.asked / RATE / took:.2f} times as much; {load.statuses};"
        f" at most {served.most:,} under way"
    )
    assert load.asked / RATE / took > 0.9 * LOAD
    assert {200, 429} <= set(load.statuses) <= {200, 429, 503}
    # No burst on top: the bucket was empty.
    assert tokens <= 1.02 * RATE * took + served.most
    assert tokens >= 0.9 * RATE * took


@pytest.mark.slow
async def test_in_twenty_seconds(redis_server: RedisServer, tmp_path: Path) -> None:
    await served_in(20, redis_server, tmp_path)


@pytest.mark.soak
async def test_in_ten_minutes(redis_server: RedisServer, tmp_path: Path) -> None:
    await served_in(600, redis_server, tmp_path)
