"""One serving process: what it does while it lives, and a graceful end.

Alone it is the whole gateway (`run`); as one of several it is `employed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import uvloop

from gateway import status
from gateway.app import State
from gateway.board import Board
from gateway.composition import Composition
from gateway.errors import Draining
from gateway.fleet import BadFile
from gateway.limits.redis import BadUrl
from gateway.limits.report import Told
from gateway.listeners import CannotStart, Server, admin_server, bound, cut, shown
from gateway.logs import LineLog, tell_of_end, tell_of_fault
from gateway.metrics import Counts, render
from gateway.port import DataPort
from gateway.reload import Reloads, Source
from gateway.settings import Config
from gateway.watch import alone
from gateway.watchdog import Watchdog

logger = logging.getLogger("fairgate")

#: Descriptors left for logs, listeners, the admin port and libraries.
_SPARE_DESCRIPTORS = 64
_FAREWELL = 1.0
_LAST_SETTLEMENTS = 2.0


class Worker:
    """Mutable state: `state`, what the process says of itself; whether it was told to `stop` and
    to `hurry`; the tasks it holds.
    """

    def __init__(
        self, config: Config, secret: str, log_fd: int, source: Source | None = None
    ) -> None:
        self.config = config
        self.state = State()
        self.admin_address: str | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._log = LineLog(log_fd, config.bounds.log_lines)
        try:
            self.composition = Composition(config, secret, self._log, time.monotonic)
        except BadUrl as exc:
            raise CannotStart(f"redis: {exc}") from None
        except BadFile as exc:
            raise CannotStart(str(exc)) from None
        self.board = Board(
            lambda: [replica for replica, _ in self.composition.replicas()],
            self.composition.means.quarantine,
            time.monotonic,
        )
        self.reloads = Reloads(source, config, self.reload, self._why_no_reload)
        self._data: DataPort | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # The admin port's `Workers`, of one

    @property
    def ready(self) -> bool:
        return self.state.ready

    async def metrics(self) -> bytes:
        return render([self.counts(), self.reloads.counts()])

    async def status(self) -> dict[str, Any]:
        told = status.of_worker(self.composition)
        one = status.worker(os.getpid(), self.ready, told["live_requests"], self.state.started, 0)
        return {"ready": self.ready, **told, "workers": [one]}

    async def limits(self, key: str | None, team: str | None) -> Told:
        return await self.composition.report.shown(key, team)

    async def reset_limits(self, key: str | None, team: str | None) -> Told:
        return await self.composition.report.reset(key, team)

    async def drain(self, url: str, out: bool | None) -> Told:
        if out is not None:
            self.composition.fleet.drain(url, out)
        return status.drained(self.composition.routes, url)

    def counts(self) -> Counts:
        """What it has counted so far, and its gauges."""
        metrics, courier = self.composition.metrics, self.composition.courier
        metrics.log_lines_dropped = self._log.dropped
        if courier is not None:
            metrics.limits_degraded = courier.degraded
            metrics.limits_decided_here = courier.decided_here
            metrics.limits_settlements_dropped = courier.dropped
        return metrics.counts()

    # Its life

    async def run(self, started: Callable[[list[str]], None]) -> None:
        """Serve until a signal, then end gracefully. Raises CannotStart."""
        if self.reloads.source is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self.reloads.ask)
        async with self.serving() as addresses:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self.stop)
            started(addresses)
            await self._stop.wait()

    def stop(self) -> None:
        """End gracefully; told a second time, at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def hurry(self) -> None:
        """End at once."""
        self.stop()
        self._hurry.set()

    async def reload(self, config: Config) -> None:
        """Serve what comes from now on by another configuration. Raises BadFile."""
        if config != self.config:
            self.composition.reload(config)
            self.config = config
        if self._data is not None:
            self._data.renew(self.composition.gateway)

    async def probe(self) -> None:
        """Ask the engines how they are, until cancelled: alone, nobody else does."""
        composition = self.composition
        await alone(
            self.board,
            composition.replicas,
            composition.membership.addresses,
            lambda: composition.transport.limits,
        )

    def _why_no_reload(self) -> str:
        why = "" if self.state.ready else "the gateway is starting; it is read again when it runs"
        return "the gateway is stopping" if self._stop.is_set() else why

    async def stopped(self) -> None:
        """Wait until it was told to stop."""
        await self._stop.wait()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[list[str]]:
        """Serve while the block lasts, on the addresses it is given. Raises CannotStart."""
        data = self._prepared()
        with contextlib.ExitStack() as held:
            sockets = [bound(address, held) for address in self.config.listen]
            servers = [(data, sockets)]
            if self.config.admin_listen is not None:
                at = bound(self.config.admin_listen, held, "admin_listen")
                self.admin_address = shown(self.config.admin_listen, at)
                servers.append((admin_server(self, self.config), [at]))
            # At once, so that `/readyz` can say that it is not ready yet.
            serving = [self.hold(each.serve(sockets=at)) for each, at in servers]
            await self._learnt()
            self.state.ready = True
            self.hold(self.reloads.run())
            self.hold(self.probe())
            try:
                yield [shown(*each) for each in zip(self.config.listen, sockets, strict=True)]
            finally:
                await self._end([each for each, _ in servers], serving)

    @contextlib.asynccontextmanager
    async def serving_among(self, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Serve while the block lasts, on sockets that other workers listen on too.

        Not before the servers were asked: who comes meanwhile finds a worker that knows its model.
        """
        data = self._prepared()
        await self._learnt()
        self.state.ready = True
        serving = [self.hold(data.serve(sockets=list(sockets)))]
        try:
            yield
        finally:
            await self._end([data], serving)

    def _prepared(self) -> Server:
        """The server of the data port, not listening yet. Raises CannotStart."""
        self._loop.set_exception_handler(tell_of_fault)
        allowed = raise_descriptor_limit()
        most = max(16, (allowed - _SPARE_DESCRIPTORS) // 2)
        self._data = DataPort(self.composition.gateway, self.state, most)
        logger.info("up to %d connections (%d file descriptors)", self._data.most, allowed)
        return self._data.server

    async def _learnt(self) -> None:
        """Until every server was asked once and Redis was looked for, but not for long."""
        if self.composition.courier is not None:
            await self.composition.courier.start()
            self.hold(self.composition.courier.run())
        first_round = asyncio.Event()
        self.hold(self.composition.learn(first_round.set))
        self.hold(Watchdog().run(self._lagged))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeouts.connect * 2):
                await first_round.wait()
        settle_collector()

    def hold(self, coroutine: Any) -> asyncio.Task[None]:
        """Run something for as long as the worker lives."""
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        task.add_done_callback(tell_of_end)
        self._tasks.append(task)
        return task

    async def _end(self, servers: list[Server], serving: list[asyncio.Task[None]]) -> None:
        times, live = self.config.timeouts, self.composition.gateway.live
        data = servers[0]
        self.state.ready = False
        if data.server_state.connections:
            # Whoever routes to us needs a moment to see that we are not ready any more.
            await self._pause(times.lame_duck)
        for each in servers:
            each.should_exit = True
        deadline = self._loop.time() + times.drain
        while live and self._loop.time() < deadline and not self._hurry.is_set():
            await self._pause(0.05)
        for exchange in list(live):
            exchange.end(Draining("The gateway is stopping; please send the request again."))
        # Who watches the drain at the admin port sees it to here, and never holds up the end.
        cut([each for each in servers if each is not data])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await asyncio.wait(serving)
        cut(servers)
        for each in servers:
            each.force_exit = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.composition.transport.close()
        if self.composition.courier is not None:
            await self.composition.courier.close(_LAST_SETTLEMENTS)
        await self._loop.run_in_executor(None, self._log.close, _FAREWELL)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def _lagged(self, seconds: float) -> None:
        self.composition.metrics.loop_lag = seconds


def run(config: Config, secret: str, started: Callable[[list[str]], None], source: Source) -> None:
    """Serve in this process until told to end. Raises CannotStart."""

    async def serve() -> None:
        await Worker(config, secret, sys.stdout.fileno(), source).run(started)

    uvloop.run(serve())


def settle_collector() -> None:
    """Spare what lives for ever from collection, and look less often at what hardly ever needs it.

    A request leaves no reference cycle behind, so the collector is a net for exceptions: at its
    default of 700 new objects it would run every few requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def raise_descriptor_limit() -> int:
    """Allow as many open files as the system lets us; the number allowed then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft
