"""One worker process, as its supervisor has it: what it is given, and how its end is told."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway import hired as hiring
from gateway.hired import Hired, hire
from gateway.watch import Watch
from tests.fakes.engine import Engine
from tests.fakes.gateway import SECRET, configured


@contextlib.asynccontextmanager
async def hired(more: str = "") -> AsyncIterator[Hired]:
    async with Engine() as engine:
        config = configuration.load("test.yaml", configured(engine.url, more=more), {})
        with socket.create_server(("127.0.0.1", 0)) as listening:
            watch = Watch()
            worker = await hire(config, SECRET, [listening], watch)
            try:
                yield worker
            finally:
                worker.kill()
                await worker.process.wait()
                await worker.channel.close()


async def test_it_answers_until_it_is_killed_and_then_there_is_no_answer() -> None:
    async with hired() as worker:
        await asyncio.wait_for(worker.ready.wait(), 10)
        assert (await worker.ask("status"))["ready"] is True
        assert await worker.ask("no such thing") is None
        worker.kill()
        await worker.process.wait()
        worker.kill()  # a second time is fine
        assert await worker.ask("status") is None
        assert worker.how_it_ended() == "was ended by SIGKILL"


async def test_one_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hiring, "_FRESH_WITHIN", 0.1)
    async with hired() as worker:
        await asyncio.wait_for(worker.ready.wait(), 10)
        os.kill(worker.pid, signal.SIGSTOP)
        assert await asyncio.wait_for(worker.ask("status"), 5) is None


async def test_its_counts_come_by_themselves() -> None:
    async with hired() as worker:
        async with asyncio.timeout(10):
            while not worker.counts:
                await asyncio.sleep(0.01)
        ((_, numbers),) = worker.counts["unknown_fields"]
        assert numbers == [0]


async def test_told_to_stop_it_ends_with_status_0() -> None:
    async with hired() as worker:
        await asyncio.wait_for(worker.ready.wait(), 10)
        worker.channel.tell("stop")
        assert await asyncio.wait_for(worker.process.wait(), 10) == 0
        assert worker.how_it_ended() == "ended with status 0"


async def test_nothing_secret_is_on_its_command_line_or_in_its_environment() -> None:
    async with hired() as worker:
        await asyncio.wait_for(worker.ready.wait(), 10)
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{worker.pid}/{name}").read_bytes()


async def test_why_it_cannot_start_is_how_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("no certificate\n")
    async with hired(f"tls: {{cert_file: {file}, key_file: {file}}}\n") as worker:
        await asyncio.wait_for(worker.process.wait(), 10)
        await asyncio.wait_for(worker.channel.ended.wait(), 5)
        assert worker.how_it_ended().startswith("could not start: tls: the certificate")
