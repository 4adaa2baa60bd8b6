"""Programs in a process of their own, to be killed or stopped for real: one of them an engine."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Program:
    """One process, killed at the latest on the way out of it.

    Mutable state: the process, and who reads what it writes.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def __aexit__(self, *exc_info: object) -> None:
        await self.kill()

    async def _start(self, *line: str, **how: Any) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(*line, **how)
        return self._process

    async def _start_ours(self, module: str, *arguments: str) -> bytes:
        """Start a module of the tests; the first line it prints."""
        process = await self._start(
            *(sys.executable, "-m", module, *arguments),
            cwd=ROOT,
            # Never written to: its end tells the module that the test run is gone.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            return await process.stdout.readline()

    def _read(self, stream: asyncio.StreamReader, kept: bytearray) -> None:
        self._readers.append(asyncio.create_task(self._keep(stream, kept)))

    async def _keep(self, stream: asyncio.StreamReader, kept: bytearray) -> None:
        while piece := await stream.read(1 << 16):
            kept += piece

    @property
    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        return self._started.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send one signal: SIGSTOP makes it hang, SIGCONT wakes it."""
        self._started.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until the kernel has closed its sockets. Fine to call twice."""
        if self._started.returncode is None:
            self._started.kill()
        await self._started.wait()
        await asyncio.gather(*self._readers)


class EngineProcess(Program):
    """The scripted engine, by the name of its script (see tests.fakes.engine.named)."""

    def __init__(self, script: str = "vllm", *, port: int = 0) -> None:
        super().__init__()
        self.port = port
        self._script = script

    async def __aenter__(self) -> Self:
        arguments = ("--tied", "--port", str(self.port), "--script", self._script)
        self.port = int(await self._start_ours("tests.fakes.engine", *arguments))
        return self

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.returncode is None
