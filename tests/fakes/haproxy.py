"""A real haproxy with the configuration that `deploy/` gives away, on ports of this machine."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.fakes.process import ROOT, Program

DEPLOYED = ROOT / "deploy" / "haproxy.cfg"


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


class Haproxy(Program):
    """One such process in front of two gateways; `log` is what it wrote so far."""

    def __init__(self, folder: Path, gateways: Sequence[int]) -> None:
        super().__init__()
        self.port = free_port()
        self.log = bytearray()
        self._file = folder / "haproxy.cfg"
        self._file.write_text(localized(DEPLOYED.read_text(), self.port, gateways))

    async def __aenter__(self) -> Self:
        process = await self._start(
            *("haproxy", "-db", "-f", str(self._file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        self._read(process.stdout, self.log)
        return self

    async def listening(self) -> None:
        """Once connections are taken."""
        async with asyncio.timeout(20):
            while True:
                assert self.returncode is None, self.log.decode()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return
