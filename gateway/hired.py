"""One worker process, seen from its supervisor: started, told, asked, killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.board import Work
from gateway.channel import Channel, ChannelEnded, Handler, NotAnswered
from gateway.metrics import Counts
from gateway.settings import Config
from gateway.start import Start
from gateway.watch import Watch

#: How long a worker may take to answer, in seconds; where it has to ask Redis, longer.
_FRESH_WITHIN = 0.5
REDIS_WITHIN = 5.0


class Hired:
    """One worker process, seen from its supervisor.

    Mutable state: `counts`, the newest it told; `ready`; `complaint`, why it cannot start.
    """

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, watch: Watch) -> None:
        self.process = process
        self.channel = channel
        self.since = time.time()
        self.counts: Counts = {}
        self.ready = asyncio.Event()
        self.complaint: str | None = None
        self._watch = watch
        channel.listen(self._handlers())

    def _handlers(self) -> Mapping[str, Handler]:
        """What a worker may tell or ask, by name. Another: a line here."""

        async def ready(_: Any) -> None:
            self.ready.set()

        async def cannot_start(why: str) -> None:
            self.complaint = why

        async def metrics(counts: Counts) -> None:
            self.counts = counts

        async def work(under_way: Work) -> None:
            self._watch.work(self.channel, under_way)

        async def blamed(death: list[str]) -> None:
            self._watch.blamed(self.channel, death)

        async def replicas(probed: str) -> None:
            self._watch.replicas(self.channel, probed)

        return {
            "ready": ready,
            "cannot_start": cannot_start,
            "metrics": metrics,
            "work": work,
            "blamed": blamed,
            "replicas": replicas,
        }

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ask(self, name: str, payload: Any = None, within: float = _FRESH_WITHIN) -> Any:
        """Its answer; None where it has none within so many seconds."""
        try:
            return await self.channel.ask(name, payload, timeout=within)
        except (ChannelEnded, NotAnswered, TimeoutError):
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def how_it_ended(self) -> str:
        code = self.process.returncode or 0
        if self.complaint is not None:
            return f"could not start: {self.complaint}"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"


async def hire(
    config: Config, secret: str, sockets: Sequence[socket.socket], watch: Watch
) -> Hired:
    """Start a worker on these sockets and tell it what it needs. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        numbers = [sock.fileno() for sock in sockets]
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: the folder we happen to be in is no place to find the product.
                *(sys.executable, "-P", "-m", "gateway.employed", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *numbers),
            )
        except OSError:
            ours.close()
            raise
    channel = await Channel.open(ours)
    level = logging.getLevelName(logging.getLogger("fairgate").getEffectiveLevel()).lower()
    channel.tell("start", msgspec.to_builtins(Start.of(config, secret, numbers, level)))
    watch.joined(channel)
    return Hired(process, channel, watch)
