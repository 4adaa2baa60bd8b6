"""The installed command and another configuration: asked for or noticed, with one worker or two."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import Command, configured, until
from tests.faults.asking import CHAT, PATHS
from tests.faults.holding import Held, asked, reloads
from tests.gateway.test_supervisor import alive

pytestmark = pytest.mark.usefixtures("no_traceback")

BAD = "modles: {}\n"
TIMES = "{lame_duck: 0, drain: 30s}"


class Running:
    """The command and its file. `change` writes it whole, `hup` asks for it."""

    def __init__(self, command: Command, file: Path, port: int, admin_port: int) -> None:
        self.command = command
        self.port = port
        self.admin_port = admin_port
        self._file = file

    def change(self, text: str) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self._file)

    def hup(self) -> None:
        self.command.signal(signal.SIGHUP)

    async def said(self, text: str, times: int = 1) -> None:
        await until(lambda: self.command.err.count(text.encode()) >= times, 20)

    async def pids(self) -> list[int]:
        told = (await request(self.admin_port, "GET", "/status")).json()
        return [worker["pid"] for worker in told["workers"]]


class Texts:
    """Configurations of one gateway: its ports and workers stay."""

    def __init__(self, workers: int) -> None:
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            self.port, self.admin_port = (sock.getsockname()[1] for sock in found)
        self._workers = workers

    def of(self, *urls: str, model: str = "tiny", more: str = "") -> str:
        text = configured(
            *urls, timeouts=TIMES, more=f"secret: sixteen-letters-\nworkers: {self._workers}\n"
        )
        text = text.replace("{tiny:", f"{{{model}:")
        for name, port in (("admin_listen", self.admin_port), ("listen", self.port)):
            text = text.replace(f"\n{name}: 127.0.0.1:0", f"\n{name}: 127.0.0.1:{port}")
        return text.replace("listen: 127.0.0.1:0", f"listen: 127.0.0.1:{self.port}", 1) + more


@contextlib.asynccontextmanager
async def running(folder: Path, texts: Texts, text: str) -> AsyncIterator[Running]:
    file = folder / "fairgate.yaml"
    file.write_text(text)
    async with Command("serve", "--config", str(file)) as command:
        await command.listening()
        yield Running(command, file, texts.port, texts.admin_port)
        assert b"Traceback" not in command.err, command.err.decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_changed_file_is_noticed_and_no_stream_is(tmp_path: Path, workers: int) -> None:
    texts = Texts(workers)
    async with Engine() as old, Engine(models=("new",)) as new:
        held = Held(old)
        async with running(tmp_path, texts, texts.of(old.url)) as gateway:
            await held.begin(gateway.port, *PATHS)
            gateway.change(texts.of(new.url, model="new"))
            await gateway.said("configuration reloaded: models: 1 added, 1 removed")
            seen = [await asked(gateway.port, model) for model in ("tiny", "new") * 10]
            assert seen == [404, 200] * 10
            assert await reloads(gateway.admin_port) == (1, 0, 1), "counted once, not by each"
            assert held.over == 0
            await held.end()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("phase", ["idle", "streaming", "draining"])
async def test_a_bad_file_changes_nothing_in_any_phase(
    tmp_path: Path, workers: int, phase: str
) -> None:
    texts = Texts(workers)
    async with Engine() as engine:
        held = Held(engine)
        async with running(tmp_path, texts, texts.of(engine.url)) as gateway:
            if phase != "idle":
                await held.begin(gateway.port, *PATHS)
            if phase == "draining":
                gateway.command.signal(signal.SIGTERM)
                await until(lambda: nobody_listens(gateway.port), 10)
            text = texts.of(engine.url, more=BAD)
            gateway.change(text)
            gateway.hup()
            if phase == "draining":
                await gateway.said("configuration not reloaded: the gateway is stopping")
                assert held.over == 0
                await held.end()
                assert await gateway.command.ended() == 0
                assert b"modles" not in gateway.command.err
                return
            line = text[: text.index(BAD)].count("\n") + 1
            place = f"{tmp_path}/fairgate.yaml:{line}: modles: unknown key"
            await gateway.said(f"configuration not reloaded, the old one stays: {place}")
            assert await asked(gateway.port) == 200
            _, refused, last = await reloads(gateway.admin_port)
            assert refused >= 1
            assert last == 0
            assert held.over == 0
            await held.end()


def nobody_listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_reloads_under_load_fail_no_request(tmp_path: Path) -> None:
    texts = Texts(2)
    seen: Counter[int] = Counter()
    over = asyncio.Event()

    async def load(port: int) -> None:
        while not over.is_set():
            seen[await asked(port)] += 1

    async with Engine() as one, Engine() as two:
        both, first = texts.of(one.url, two.url), texts.of(one.url)
        async with running(tmp_path, texts, both) as gateway:
            pids = await gateway.pids()
            callers = [asyncio.create_task(load(gateway.port)) for _ in range(8)]
            for number in range(1, 11):
                gateway.change(first if number % 2 else both)
                gateway.hup()
                await gateway.said("configuration reloaded: ", number)
                before = seen[200]
                await until(lambda: seen[200] >= before + 20, 20)  # noqa: B023
            over.set()
            await asyncio.gather(*callers)
            assert set(seen) == {200}, seen
            assert await gateway.pids() == pids, "no worker was replaced for it"
            assert min(count(engine) for engine in (one, two)) >= 20


def count(engine: Engine) -> int:
    return sum(got.path == CHAT for got in engine.requests)


async def test_a_worker_that_comes_later_has_the_newest_configuration(tmp_path: Path) -> None:
    texts = Texts(2)
    async with Engine() as old, Engine(models=("new",)) as new:
        async with running(tmp_path, texts, texts.of(old.url)) as gateway:
            gateway.change(texts.of(new.url, model="new"))
            gateway.hup()
            await gateway.said("configuration reloaded")
            before = await gateway.pids()
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not any(map(alive, before)), 10)
            async with asyncio.timeout(20):
                while not await whole(gateway, 2):
                    await asyncio.sleep(0.05)
            assert [await asked(gateway.port, "new") for _ in range(10)] == [200] * 10


async def whole(gateway: Running, workers: int) -> bool:
    told = (await request(gateway.admin_port, "GET", "/status")).json()
    return [worker["ready"] for worker in told["workers"]] == [True] * workers


async def test_what_needs_a_restart_is_named_and_nothing_else_is_taken_over(
    tmp_path: Path,
) -> None:
    texts = Texts(1)
    async with Engine() as engine:
        async with running(tmp_path, texts, texts.of(engine.url)) as gateway:
            text = texts.of(engine.url, model="new", more="redis_prefix: '{other}'\n")
            gateway.change(text)
            gateway.hup()
            line = text.count("\n")
            await gateway.said(f"fairgate.yaml:{line}: redis_prefix: changing it needs a restart")
            assert [await asked(gateway.port, model) for model in ("tiny", "new")] == [200, 404]


async def test_of_a_pipe_a_signal_reads_nothing_and_that_is_told(tmp_path: Path) -> None:
    pipe = tmp_path / "fairgate.yaml"
    os.mkfifo(pipe)
    async with Engine() as engine:
        async with Command("serve", "--config", str(pipe)) as command:
            await asyncio.to_thread(pipe.write_text, configured(engine.url))
            port = await command.listening()
            command.signal(signal.SIGHUP)
            told = b"configuration not reloaded: there is no file to read again"
            await until(lambda: told in command.err, 10)
            assert await asked(port) == 200
            assert b"Traceback" not in command.err
