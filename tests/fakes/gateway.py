"""The gateway under test: in this process (`serving`), or the installed command (`Command`)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from gateway import config as configuration
from gateway.worker import Worker
from tests.fakes.process import Program

KEY = "fg-test-key-0123456789abcdef"
SECRET = "a secret of the tests"
#: The installed command.
FAIRGATE = str(Path(sys.executable).parent / "fairgate")
HEADERS = (("authorization", f"Bearer {KEY}"), ("content-type", "application/json"))

#: Small timers, so that what waits for one is quick; order and state are asserted, not the clock.
TIMEOUTS = (
    "{header: 2s, body: 2s, keep_alive: 5s, first_event: 5s, early_commit: 2s, heartbeat: 2s,"
    " stall: 5s, client_write: 3s, total: 8s, lame_duck: 0, drain: 3s}"
)


def configured(
    *engines: str, more: str = "", model: str = "", timeouts: str = TIMEOUTS, key: str = KEY
) -> str:
    """A configuration of one model, `tiny`, on the engines given.

    `more` holds further top-level lines, `model` further lines of the model (`{}` style).
    """
    digest = hashlib.sha256(key.encode()).hexdigest()
    replicas = ", ".join(engines)
    return (
        "listen: 127.0.0.1:0\n"
        "admin_listen: 127.0.0.1:0\n"
        f"keys: [{{name: ann, team: search, sha256: {digest}}}]\n"
        "teams: {search: {}}\n"
        f"timeouts: {timeouts}\n"
        f"models: {{tiny: {{replicas: [{replicas}]{', ' + model if model else ''}}}}}\n"
        f"{more}"
    )


@dataclass
class Serving:
    """A gateway in this process. `lines` are its log so far."""

    worker: Worker
    port: int
    admin_port: int
    log: Path
    key: str = KEY
    headers: tuple[tuple[str, str], ...] = HEADERS

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        return len(self.worker.composition.gateway.live)

    @property
    def upstream_connections(self) -> int:
        return self.worker.composition.transport.open_connections

    @property
    def in_flight(self) -> int:
        pools = self.worker.composition.routes.pools()
        return sum(r.in_flight for pool in pools for r in pool.replicas) + sum(
            pool.held for pool in pools
        )

    def lines(self) -> list[dict[str, Any]]:
        written = self.log.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]  # the last line may be half written
        return [orjson.loads(line) for line in whole.splitlines()]

    async def logged(self, count: int, timeout: float = 5.0) -> list[dict[str, Any]]:
        """The log once it has `count` lines."""
        await until(lambda: len(self.lines()) >= count, timeout)
        return self.lines()

    async def until_quiet(self, timeout: float = 5.0) -> None:
        """Until no request is under way and nothing is held for one."""
        await until(lambda: self.live == 0 and self.in_flight == 0, timeout)


@contextlib.asynccontextmanager
async def serving(
    text: str, environ: dict[str, str] | None = None, *, probing: bool = False
) -> AsyncIterator[Serving]:
    """Run the gateway of one configuration in this event loop.

    Without `probing` engines are asked nothing but what a test makes them asked.
    """
    config = configuration.load("test.yaml", text, environ or {})
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "wb") as file:
            worker = Worker(config, SECRET, file.fileno())
            if not probing:
                worker.probe = _nothing  # type: ignore[method-assign]
            async with worker.serving() as addresses:
                assert worker.admin_address is not None
                yield Serving(worker, _port(addresses[0]), _port(worker.admin_address), log)


async def _nothing() -> None:
    return None


async def until(fact: Callable[[], bool], timeout: float = 5.0) -> None:
    """Wait until something is so; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not fact():
            await asyncio.sleep(0.002)


class Command(Program):
    """The installed command, `fairgate serve`, as its own process.

    `out` and `err` hold what it prints, `out` nothing unless `stdout` is a pipe. `program` starts
    it in another way than by its name.
    """

    def __init__(
        self,
        *arguments: str,
        environ: dict[str, str] | None = None,
        program: Sequence[str] = (FAIRGATE,),
        cwd: Path | None = None,
        stdout: int = asyncio.subprocess.PIPE,
    ) -> None:
        super().__init__()
        self._line = (*program, *arguments)
        self._environ = environ or {}
        self._cwd = cwd
        self._stdout = stdout
        self.out = bytearray()
        self.err = bytearray()

    async def __aenter__(self) -> Self:
        process = await self._start(
            *self._line,
            stdout=self._stdout,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._environ},
            cwd=self._cwd,
        )
        for stream, kept in ((process.stdout, self.out), (process.stderr, self.err)):
            if stream is not None:
                self._read(stream, kept)
        return self

    async def listening(self, timeout: float = 20.0) -> int:
        """The data port, once it listens."""
        listens = b"fairgate listens on"
        await until(lambda: listens in self.err or self.returncode is not None, timeout)
        found = re.search(rb"fairgate listens on https?://[^\s]*:(\d+)", self.err)
        assert found is not None, self.err.decode()
        return int(found[1])

    async def key(self, timeout: float = 20.0) -> str:
        """That of the form without a configuration, which is told after it listens."""
        told = re.compile(rb"key for this run is (\S+)\n")
        await until(lambda: bool(told.search(self.err)), timeout)
        found = told.search(self.err)
        assert found is not None
        return found[1].decode()

    async def ended(self, timeout: float = 20.0) -> int:
        return await asyncio.wait_for(self._started.wait(), timeout)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
