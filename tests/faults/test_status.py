"""The operator's view of the installed command, with one process and with several workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.fakes.script import Chunk, EndChunks, Step, Wait, stream
from tests.faults.asking import CHAT, body, events

WORKERS = pytest.mark.parametrize("workers", [1, 2])
EVENTS = events(CHAT)


class Gateway:
    """The command `fairgate serve`, and what its operators run. Mutable state: none of its own."""

    def __init__(self, command: Command, port: int, admin_port: int) -> None:
        self.command = command
        self.port = port
        self.admin_port = admin_port

    @property
    def at(self) -> tuple[str, str]:
        return "--admin", f"http://127.0.0.1:{self.admin_port}"

    async def told(self, *arguments: str) -> str:
        """What a command of the operator prints, having ended well."""
        async with Command(*arguments, *self.at) as command:
            assert await command.ended() == 0, command.err.decode()
        return command.out.decode()

    async def asked(self, method: str, target: str) -> dict[str, Any]:
        answer = await request(self.admin_port, method, target)
        document: dict[str, Any] = answer.json()
        return document

    async def replica(self, url: str) -> dict[str, Any]:
        status = await self.asked("GET", "/status")
        (found,) = [r for r in status["pools"]["tiny"]["replicas"] if r["url"] == url]
        return dict(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.asynccontextmanager
async def gateway(
    folder: Path, workers: int, *engines: Engine, admin_port: int = 0
) -> AsyncIterator[Gateway]:
    admin_port = admin_port or free_port()
    urls = (engine.url for engine in engines)
    text = configured(*urls, more=f"secret: sixteen-letters-\nworkers: {workers}\n")
    file = folder / "fairgate.yaml"
    listen = "admin_listen: 127.0.0.1:"
    file.write_text(text.replace(f"{listen}0", f"{listen}{admin_port}"))
    async with Command("serve", "--config", str(file)) as command:
        yield Gateway(command, await command.listening(), admin_port)
        assert b"Traceback" not in command.err, command.err.decode()


async def shows(command: Command, text: str, since: int = 0, timeout: float = 20.0) -> int:
    """Wait until it printed `text` after the first `since` bytes; where that ends."""
    wanted = text.encode()
    with contextlib.suppress(TimeoutError):
        await until(
            lambda: wanted in command.out[since:] or command.returncode is not None, timeout
        )
    found = command.out.find(wanted, since)
    assert found >= 0, (command.out.decode(), command.err.decode())
    return found + len(wanted)


@WORKERS
async def test_pools_are_shown(workers: int, tmp_path: Path) -> None:
    async with Engine() as one, Engine() as other:
        async with gateway(tmp_path, workers, one, other) as serving:
            await serving.told("drain", other.url)
            first, _, heads, *rows = (await serving.told("status")).splitlines()
    assert first.startswith("ready, 0 requests under way; worker ")
    assert first.count("worker ") == workers
    at = heads.index("replica")
    assert [row[at:].split()[:2] for row in rows] == [[one.url, "up"], [other.url, "drained"]]
    assert "   drained by the operator   " in rows[1]


@WORKERS
async def test_a_watcher_sees_what_happens_and_outlives_the_gateway(
    workers: int, tmp_path: Path
) -> None:
    async with Engine() as one, Engine() as other, contextlib.AsyncExitStack() as held:
        async with gateway(tmp_path, workers, one, other) as serving:
            watching = await held.enter_async_context(Command("status", "--watch", *serving.at))
            at = await shows(watching, f"tiny {other.url}: up\n")
            await serving.told("drain", one.url)
            at = await shows(watching, f"tiny {one.url}: drained; drained by the operator\n", at)
            await serving.told("undrain", one.url)
            at = await shows(watching, f"tiny {one.url}: up\n", at)
            serving.command.signal(signal.SIGTERM)
            assert await serving.command.ended() == 0
            at = await shows(watching, "does not answer any more; looking for it\n", at)
        async with gateway(tmp_path, workers, one, admin_port=serving.admin_port):
            # In whichever order: it may be looked at while it starts.
            await shows(watching, "  ready, 0 requests under way; worker ", at)
            await shows(watching, f"tiny {one.url}: up\n", at)
            watching.signal(signal.SIGINT)
            assert await watching.ended() == 0
    assert watching.err == b""


class Held:
    """An engine's streams that stand still after their first event until `wait.event` is set."""

    def __init__(self) -> None:
        self.wait = Wait()

    def script(self, got: Any) -> list[Step] | None:
        if got.method != "POST":
            return None
        return [*stream(EVENTS[:1], end=False), self.wait, *map(Chunk, EVENTS[1:]), EndChunks()]


@WORKERS
async def test_a_drain_waits_for_what_is_under_way_and_breaks_nothing(
    workers: int, tmp_path: Path
) -> None:
    held = Held()
    async with Engine(held.script) as engine, gateway(tmp_path, workers, engine) as serving:
        async with await Client.open(serving.port) as client:
            await client.post(CHAT, body(CHAT), HEADERS)
            assert (await client.read_head("POST"))[0] == 200
            async with Command("drain", engine.url, "--wait", "0.1", *serving.at) as short:
                assert await short.ended() == 3
            assert b"1 request under way there after 0.1 s; it stays drained" in short.err
            async with Command("drain", f"{engine.url}/v1", "--wait", *serving.at) as drain:
                await shows(drain, "1 request under way there\n")
                assert b"tiny has no other replica: its callers get 503 now" in drain.err
                refused = await request(
                    serving.port,
                    "POST",
                    CHAT,
                    HEADERS,
                    b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}',
                )
                assert refused.status == 503
                assert drain.returncode is None
                held.wait.event.set()
                heard = [event async for event in client.read_events()]
                assert heard[-1] == b"data: [DONE]\n\n"
                await shows(drain, f"nothing is under way at {engine.url}\n")
                assert await drain.ended() == 0
        assert await serving.told("undrain", engine.url) == f"{engine.url} is used again for tiny\n"
        async with await Client.open(serving.port) as client:
            await client.post(CHAT, body(CHAT), HEADERS)
            assert (await client.read_head("POST"))[0] == 200


async def test_what_was_taken_out_stays_out_of_workers_that_come_later(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as other:
        async with gateway(tmp_path, 2, one, other) as serving:
            await serving.told("drain", one.url)
            before = {w["pid"] for w in (await serving.asked("GET", "/status"))["workers"]}
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                while True:
                    workers = (await serving.asked("GET", "/status"))["workers"]
                    if len(workers) == 2 and all(w["ready"] for w in workers):
                        break
                    await asyncio.sleep(0.1)
            assert not before & {worker["pid"] for worker in workers}
            told = await serving.asked("GET", f"/drain?url={one.url}")
            assert (told["drained"], told["silent"]) == (True, 0)
            assert (await serving.replica(one.url))["chosen"] is False
            posts = sum(got.method == "POST" for got in one.requests)
            for _ in range(8):
                whole = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
                assert (await request(serving.port, "POST", CHAT, HEADERS, whole)).status == 200
            assert sum(got.method == "POST" for got in one.requests) == posts


@WORKERS
async def test_who_listens_does_not_hold_up_the_end(workers: int, tmp_path: Path) -> None:
    async with Engine() as engine, gateway(tmp_path, workers, engine) as serving:
        async with contextlib.AsyncExitStack() as held:
            listeners = [
                await held.enter_async_context(await Client.open(serving.admin_port))
                for _ in range(3)
            ]
            for client in listeners:
                await client.send(head("GET", "/events"))
                assert (await client.read_head())[0] == 200
                assert b"event: status" in await client.read(65536)
            began = time.monotonic()
            serving.command.signal(signal.SIGTERM)
            for client in listeners:
                with contextlib.suppress(ConnectionResetError, EOFError):
                    await client.read_body()
            assert await serving.command.ended() == 0
            assert time.monotonic() - began < 5
