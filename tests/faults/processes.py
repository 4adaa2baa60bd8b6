"""The cells of the fault matrix that need the installed command: its workers, and its file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.fakes.script import Received, Step, Wait
from tests.faults.asking import CHAT, MESSAGES, Heard, ask, body, heard
from tests.faults.stages import Stage, held

BOTH = (CHAT, MESSAGES)


class Callers:
    """Callers of both dialects whose answers rest at a phase. Mutable state: their `readings`."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.wait = Wait()
        self.engine = Engine(self._script)
        self.readings: list[asyncio.Task[Heard | None]] = []

    def _script(self, got: Received) -> Iterable[Step] | None:
        waits = got.method == "POST" and b"later" in got.body
        return held(got, self.phase, self.wait) if waits else None

    async def come(self, port: int) -> None:
        for path in BOTH:
            self.readings.append(asyncio.create_task(self._read(port, path)))

    async def _read(self, port: int, path: str) -> Heard | None:
        """None where the connection broke off."""
        asked = body(path) | {"system" if path == MESSAGES else "user": "later"}
        with contextlib.suppress(EOFError, ConnectionResetError):
            async with await Client.open(port, patience=60) as client:
                await client.post(path, asked, HEADERS)
                return await heard(client, path)
        return None

    async def until_there(self) -> None:
        waiting = len(self.readings)
        await self.engine.until(
            lambda: sum(b"later" in got.body for got in self.engine.requests) == waiting, 10
        )

    async def counted(self, command: Command, served: int) -> None:
        """Until the log has one line for each answer that was served, and no other of theirs."""
        answers = [answer for answer in await self.all() if answer is not None]
        ids = [answer.request_id.encode() for answer in answers if answer.finished]
        assert len(set(ids)) == served
        await until(lambda: all(command.out.count(told) == 1 for told in ids), 10)

    async def all(self) -> list[Heard | None]:
        return list(await asyncio.wait_for(asyncio.gather(*self.readings), 20))


class Gateway:
    """The command, the file it reads and where it listens."""

    def __init__(self, command: Command, file: Path, port: int, admin_port: int) -> None:
        self.command = command
        self.file = file
        self.port = port
        self.admin_port = admin_port

    async def workers(self) -> list[dict[str, int]]:
        told: list[dict[str, int]] = (await request(self.admin_port, "GET", "/status")).json()[
            "workers"
        ]
        return told

    async def replaced(self, pid: int) -> None:
        """Until another worker serves in place of that one; no caller is refused meanwhile."""
        async with asyncio.timeout(10):
            while True:
                workers = await self.workers()
                ready = [worker["pid"] for worker in workers if worker["ready"]]
                if len(ready) == 2 and pid not in ready:
                    return
                assert (await ask(self.port, CHAT)).finished, "refused while one is replaced"

    async def end(self) -> None:
        """SIGTERM; back once it takes no new callers."""
        self.command.signal(signal.SIGTERM)
        while (await request(self.admin_port, "GET", "/readyz")).status == 200:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(stage: Stage, engine: Engine, workers: int) -> AsyncIterator[Gateway]:
    """The installed command; it must end by itself, well and without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin_port = taken.getsockname()[1]
    text = configured(
        engine.url,
        timeouts="{lame_duck: 2s, drain: 30s}",
        more=f"secret: sixteen-letters-\nworkers: {workers}\n",
    ).replace("admin_listen: 127.0.0.1:0", f"admin_listen: 127.0.0.1:{admin_port}")
    file = stage.folder / "fairgate.yaml"
    file.write_text(text)
    async with Command("serve", "--config", str(file)) as command:
        yield Gateway(command, file, await command.listening(), admin_port)
        if command.returncode is None:
            command.signal(signal.SIGTERM)
        assert await command.ended(30) == 0
        assert b"Traceback" not in command.err, command.err.decode()
    await engine.until_closed()


# F18


async def _worker_killed(stage: Stage, phase: str, *, draining: bool = False) -> None:
    callers = Callers(phase)
    async with callers.engine, serving(stage, callers.engine, 2) as gateway:
        workers = await gateway.workers()
        while not all(worker["live_requests"] for worker in workers):
            assert len(callers.readings) < 200
            await callers.come(gateway.port)
            await callers.until_there()
            workers = await gateway.workers()
        if draining:
            await gateway.end()
        victim, other = workers
        os.kill(victim["pid"], signal.SIGKILL)
        lost = victim["live_requests"]
        await callers.engine.until(lambda: len(callers.engine.aborts) == lost, 5)
        if not draining:
            await gateway.replaced(victim["pid"])
        callers.wait.event.set()
        answers = await callers.all()
        finished = [answer for answer in answers if answer is not None and answer.finished]
        assert len(finished) == other["live_requests"]
        assert len(answers) - len(finished) == lost
        await callers.counted(gateway.command, len(finished))


async def worker_killed_unanswered(stage: Stage) -> None:
    await _worker_killed(stage, "A")


async def worker_killed_before_an_event(stage: Stage) -> None:
    await _worker_killed(stage, "B")


async def worker_killed_in_mid_stream(stage: Stage) -> None:
    await _worker_killed(stage, "C")


async def worker_killed_while_draining(stage: Stage) -> None:
    await _worker_killed(stage, "C", draining=True)


# F25


async def _bad_reload(stage: Stage, phase: str, *, draining: bool = False) -> None:
    callers = Callers(phase)
    async with callers.engine, serving(stage, callers.engine, 1) as gateway:
        await callers.come(gateway.port)
        await callers.until_there()
        if draining:
            await gateway.end()
        good = gateway.file.read_text()
        gateway.file.write_text(good.replace("models:", "timeouts2: {}\nmodels:"))
        gateway.command.signal(signal.SIGHUP)
        told = b"configuration not reloaded"
        await until(lambda: told in gateway.command.err, 10)
        if not draining:
            assert b"timeouts2" in gateway.command.err
            assert b"fairgate.yaml" in gateway.command.err
            page = (await request(gateway.admin_port, "GET", "/metrics")).body
            assert b'fairgate_config_reloads_total{result="refused"} 1' in page
            for path in BOTH:
                assert (await ask(gateway.port, path)).finished
        callers.wait.event.set()
        for answer in await callers.all():
            assert answer is not None
            assert answer.finished
        await callers.counted(gateway.command, len(callers.readings))


async def bad_reload(stage: Stage) -> None:
    await _bad_reload(stage, "A")


async def bad_reload_in_mid_stream(stage: Stage) -> None:
    await _bad_reload(stage, "C")


async def bad_reload_while_draining(stage: Stage) -> None:
    await _bad_reload(stage, "C", draining=True)
