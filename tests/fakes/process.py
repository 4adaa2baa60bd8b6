"""The scripted engine in a process of its own, to be killed or stopped for real."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path(__file__).parents[2]


class EngineProcess:
    """One such process, by the name of its script (see tests.fakes.engine.named)."""

    def __init__(self, script: str = "vllm", *, port: int = 0) -> None:
        self.port = port
        self._script = script
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fakes.engine", "--tied"),
            *("--port", str(self.port), "--script", self._script),
            cwd=_ROOT,
            # Never written to: its end tells the engine that the test run is gone.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            self.port = int(await self._process.stdout.readline())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.kill()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        """Send one signal: SIGSTOP makes it hang, SIGCONT wakes it."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        assert self._process is not None
        return self._process.returncode is None

    async def kill(self) -> None:
        """SIGKILL, and wait until the kernel has closed its sockets. Fine to call twice."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
