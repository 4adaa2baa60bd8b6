"""The installed command's end: who is served to the last word, for how long, and what delays it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import FAIRGATE, HEADERS, Command, configured
from tests.fakes.script import Chunk, EndChunks, Hang, Step, Wait, stream
from tests.faults.asking import CHAT, MESSAGES, PATHS, Heard, ask, body, error, events, heard

pytestmark = pytest.mark.usefixtures("no_traceback")

SLOW_ENGINE: list[Step] = [*stream(events(CHAT)[:1], end=False), Hang()]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running


def written(folder: Path, engine: Engine, timeouts: str, more: str = "") -> str:
    file = folder / "fairgate.yaml"
    file.write_text(configured(engine.url, timeouts=timeouts, more=more))
    return str(file)


async def begun(port: int, path: str) -> tuple[Client, asyncio.Task[Heard]]:
    """A stream whose head has arrived, and the reading of the rest of it."""
    client = await Client.open(port)
    await client.post(path, body(path), HEADERS)
    status, headers = await client.read_head("POST")
    assert status == 200

    async def rest() -> Heard:
        answer = Heard(status, headers)
        answer.events = [event async for event in client.read_events()]
        assert client.partial == b""
        return answer

    return client, asyncio.create_task(rest())


async def ready(port: int) -> int:
    """What `/readyz` answers; 0 where nothing listens any more."""
    with suppress(OSError, EOFError):
        return (await request(port, "GET", "/readyz")).status
    return 0


async def turns(port: int, status: int, timeout: float) -> float:
    """How long `/readyz` took to answer so."""
    since = time.monotonic()
    async with asyncio.timeout(timeout):
        while await ready(port) != status:
            await asyncio.sleep(0.02)
    return time.monotonic() - since


async def test_streams_under_way_are_served_to_the_end(engine: Engine, tmp_path: Path) -> None:
    wait = Wait()

    def script(got: Any) -> list[Step] | None:
        if got.method != "POST" or b"late" in got.body:
            return None
        whole = events(got.path)
        return [*stream(whole[:2], end=False), wait, *map(Chunk, whole[2:]), EndChunks()]

    engine.script = script
    file = written(tmp_path, engine, "{lame_duck: 2s, drain: 30s}")
    async with Command("serve", "--config", file) as command:
        port = await command.listening()
        assert await ready(port) == 200
        streams = {path: await begun(port, path) for path in PATHS}
        command.signal(signal.SIGTERM)
        await turns(port, 503, timeout=1)
        assert (await ask(port, CHAT, user="late")).finished, "who comes in time is still served"
        await turns(port, 0, timeout=5)
        assert command.returncode is None
        wait.event.set()
        for path, (client, reading) in streams.items():
            answer = await asyncio.wait_for(reading, 5)
            assert answer.events == events(path)
            client.close()
        assert await command.ended(5) == 0
        assert command.out.count(b'"outcome":"ok"') == 4
        assert b"Traceback" not in command.err


@pytest.mark.parametrize("path", [CHAT, pytest.param(MESSAGES, marks=pytest.mark.slow)])
async def test_at_the_deadline_streams_end_with_an_error(
    engine: Engine, tmp_path: Path, path: str
) -> None:
    engine.script = [*stream(events(path)[:1], end=False), Hang()]
    file = written(tmp_path, engine, "{lame_duck: 0, drain: 500ms}")
    async with Command("serve", "--config", file) as command:
        port = await command.listening()
        client, reading = await begun(port, path)
        command.signal(signal.SIGTERM)
        answer = await asyncio.wait_for(reading, 5)
        assert answer.events[:-1] == events(path)[:1]
        assert "stopping" in error(path, answer)["message"]
        client.close()
        assert await command.ended(5) == 0
        assert b'"outcome":"drained"' in command.out
        assert b"Traceback" not in command.err
    assert len(engine.aborts) == 1


@pytest.mark.slow
async def test_at_the_deadline_who_was_told_nothing_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    engine.script = [Hang()]
    file = written(tmp_path, engine, "{lame_duck: 0, drain: 300ms}")
    async with Command("serve", "--config", file) as command:
        async with await Client.open(await command.listening()) as client:
            await client.post(CHAT, body(CHAT), HEADERS)
            await engine.until(lambda: any(r.method == "POST" for r in engine.requests))
            command.signal(signal.SIGTERM)
            answer = await heard(client, CHAT)
            assert answer.status == 503
            assert answer.headers.get("retry-after") == "1"
        assert await command.ended(5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_within_two_seconds(
    engine: Engine, tmp_path: Path, number: signal.Signals
) -> None:
    engine.script = SLOW_ENGINE
    file = written(tmp_path, engine, "{lame_duck: 60s, drain: 60s}")
    async with Command("serve", "--config", file) as command:
        port = await command.listening()
        client, reading = await begun(port, CHAT)
        command.signal(number)
        await turns(port, 503, timeout=1)
        command.signal(number)
        since = time.monotonic()
        error(CHAT, await asyncio.wait_for(reading, 3))
        assert await command.ended(5) == 0
        took = time.monotonic() - since
        print(f"ended {took:.2f} s after the second signal")
        assert took < 2
        client.close()


@pytest.mark.slow
async def test_a_caller_that_does_not_read_does_not_hold_up_the_end(
    engine: Engine, tmp_path: Path
) -> None:
    engine.script = stream([b"data: " + b"x" * 60_000 + b"\n\n"] * 400, end=False)
    file = written(tmp_path, engine, "{lame_duck: 0, drain: 300ms}")
    async with Command("serve", "--config", file) as command:
        port = await command.listening()
        async with await Client.open(port, rcvbuf=4096) as client:
            await client.post(CHAT, body(CHAT), HEADERS)
            await engine.until(lambda: engine.sent > 1 << 20)
            command.signal(signal.SIGTERM)
            assert await command.ended(5) == 0


async def test_with_nothing_to_do_it_ends_at_once(engine: Engine, tmp_path: Path) -> None:
    file = written(tmp_path, engine, "{lame_duck: 60s, drain: 60s}")
    async with Command("serve", "--config", file) as command:
        await command.listening()
        command.signal(signal.SIGTERM)
        assert await command.ended(3) == 0


@pytest.mark.slow
async def test_a_log_that_nobody_reads_delays_nothing(engine: Engine, tmp_path: Path) -> None:
    file = written(tmp_path, engine, "{lame_duck: 0, drain: 5s}", "bounds: {log_lines: 10}\n")
    nobody, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    async with Command("serve", "--config", file, stdout=full) as command:
        os.close(full)
        port = await command.listening()
        since = time.monotonic()
        for _ in range(10):
            answers = await asyncio.gather(*(ask(port, CHAT) for _ in range(10)))
            assert all(answer.finished for answer in answers)
        assert time.monotonic() - since < 5
        command.signal(signal.SIGTERM)
        assert await command.ended(4) == 0
        assert b"Traceback" not in command.err
    os.close(nobody)


@pytest.fixture
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("more", ["", "bounds: {connections: 10000}\n"], ids=["own", "too-many"])
async def test_running_out_of_descriptors_passes(engine: Engine, tmp_path: Path, more: str) -> None:
    wait = Wait()
    whole = events(CHAT)
    engine.script = [*stream(whole[:1], end=False), wait, *map(Chunk, whole[1:]), EndChunks()]
    file = written(tmp_path, engine, "{lame_duck: 0, drain: 5s}", more)
    few = ("bash", "-c", 'ulimit -n 256; exec "$0" "$@"', FAIRGATE)
    devnull = asyncio.subprocess.DEVNULL
    async with Command("serve", "--config", file, program=few, stdout=devnull) as command:
        port = await command.listening()
        kept, reading = await begun(port, CHAT)
        crowd = [await Client.open(port) for _ in range(400)]
        for client in crowd:
            with suppress(OSError):
                await client.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        if not more:
            await turns(port, 503, timeout=5)  # once those turned away have left
        assert command.returncode is None
        wait.event.set()
        assert (await asyncio.wait_for(reading, 5)).events == whole
        for client in (kept, *crowd):
            client.close()
        await turns(port, 200, timeout=5)
        assert (await ask(port, CHAT)).finished
        assert b"Traceback" not in command.err, command.err.decode()
        command.signal(signal.SIGTERM)
        assert await command.ended(5) == 0
