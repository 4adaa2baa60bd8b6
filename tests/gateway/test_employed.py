"""A worker of a supervisor: what it is given, whom it obeys, and what it does when left alone."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway import config as configuration
from gateway.channel import Channel
from gateway.employed import work
from gateway.start import Start
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, SECRET, configured

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'


@contextlib.asynccontextmanager
async def hired(url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Channel, int]]:
    """A worker process, ready, the other end of its channel, and its port."""
    ours, theirs = socket.socketpair()
    with theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        numbers = (theirs.fileno(), listening.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gateway.employed", str(numbers[0])),
            pass_fds=numbers,
            stderr=asyncio.subprocess.PIPE,
        )
        port = listening.getsockname()[1]
        config = configuration.load("test.yaml", configured(url), {})
        channel = await Channel.open(ours)
        start = Start.of(config, SECRET, [listening.fileno()], "warning")
        channel.tell("start", msgspec.to_builtins(start))
    ready = asyncio.Event()

    async def note(_: object) -> None:
        ready.set()

    async def drop(_: object) -> None:
        pass

    channel.listen({"ready": note, "metrics": drop, "replicas": drop})
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield process, channel, port
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_worker_obeys_its_supervisor_only_and_ends_well_without_it() -> None:
    async with Engine() as engine, hired(engine.url) as (process, channel, port):
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        assert (await request(port, "POST", CHAT, HEADERS, BODY)).status == 200
        told = await channel.ask("status", timeout=5)
        assert (told["ready"], told["live_requests"]) == (True, 0)
        counted = await channel.ask("metrics", timeout=5)
        assert sum(numbers[0] for _, numbers in counted["requests"]) == 1
        await channel.close()
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert process.stderr is not None
        assert await process.stderr.read() == b""


async def test_a_worker_is_ready_before_it_accepts_so_that_no_model_is_unknown_to_it() -> None:
    async with Engine() as engine, hired(engine.url):
        asked = [each.path for each in engine.requests]
        assert asked == ["/v1/models", "/version", "/openapi.json"]


async def test_without_a_first_word_a_worker_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gateway.employed", str(theirs.fileno())),
            pass_fds=(theirs.fileno(),),
        )
    ours.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_its_last_counts_come_with_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.employed.set_up_diagnostics", lambda level: None)
    ours, theirs = socket.socketpair()
    ready = asyncio.Event()
    counted: list[int] = []

    async def note(_: object) -> None:
        ready.set()

    async def count(counts: dict[str, Any]) -> None:
        counted.append(sum(numbers[0] for _, numbers in counts["requests"]))

    async with Engine() as engine:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            config = configuration.load("test.yaml", configured(engine.url), {})
            start = Start.of(config, SECRET, [os.dup(listening.fileno())], "info")
        channel = await Channel.open(ours)
        channel.listen({"ready": note, "metrics": count})
        channel.tell("start", msgspec.to_builtins(start))
        working = asyncio.create_task(work(await Channel.open(theirs)))
        await asyncio.wait_for(ready.wait(), 10)
        assert (await request(port, "POST", CHAT, HEADERS, BODY)).status == 200
        channel.tell("stop")
        channel.tell("hurry")
        await asyncio.wait_for(working, 10)
        await asyncio.wait_for(channel.ended.wait(), 5)
        await channel.close()
    assert counted[0] == 0
    assert counted[-1] == 1
