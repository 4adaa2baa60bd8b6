"""A real haproxy with the configuration that `deploy/` gives away, on ports of this machine."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

DEPLOYED = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def localized(text: str, port: int, gateways: Sequence[int]) -> str:
    """The configuration with these addresses in place of its own, and nothing else changed."""
    text, binds = re.subn(r"(?m)^( +bind) :\d+$", rf"\1 127.0.0.1:{port}", text)
    left = list(gateways)
    text, servers = re.subn(
        r"(?m)^( +server \w+) [\d.]+:\d+$", lambda m: f"{m[1]} 127.0.0.1:{left.pop(0)}", text
    )
    assert (binds, servers, left) == (1, len(gateways), [])
    return text


class Haproxy:
    """One such process in front of two gateways; `log` is what it wrote so far."""

    def __init__(self, folder: Path, gateways: Sequence[int]) -> None:
        self.port = free_port()
        self.log = bytearray()
        self._file = folder / "haproxy.cfg"
        self._file.write_text(localized(DEPLOYED.read_text(), self.port, gateways))
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *("haproxy", "-db", "-f", str(self._file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._reader = asyncio.create_task(self._keep(self._process.stdout))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._process is not None
        assert self._reader is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def listening(self) -> None:
        """Once connections are taken."""
        assert self._process is not None
        async with asyncio.timeout(20):
            while True:
                assert self._process.returncode is None, self.log.decode()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def _keep(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(1 << 16):
            self.log += piece
