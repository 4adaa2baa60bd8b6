"""One serving process: what it does while it lives, and a graceful end.

Alone it is the whole gateway (`run`). Started by the supervisor as one of several (`main`) it is
given its configuration and its sockets over a channel, and told there when to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import resource
import signal
import socket
import ssl
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import uvloop

from backends.guard import die_with_parent
from gateway import status
from gateway.app import App, State
from gateway.channel import Channel, ChannelEnded, Handler
from gateway.composition import Composition
from gateway.errors import Draining
from gateway.front import Door, Front
from gateway.limits.redis import BadUrl
from gateway.limits.report import Told
from gateway.listeners import CannotStart, Server, admin_server, bound, server, shown
from gateway.logs import LineLog, set_up_diagnostics, tell_of_fault
from gateway.metrics import Counts, render
from gateway.settings import Config

logger = logging.getLogger("fairgate")

#: Descriptors left for logs, listeners, the admin port and libraries.
_SPARE_DESCRIPTORS = 64
_LAG_EVERY = 0.5
_COUNTS_EVERY = 1.0
_FAREWELL = 1.0
_LAST_SETTLEMENTS = 2.0


class Worker:
    """Mutable state: `state`, what the process says of itself; whether it was told to `stop` and
    to `hurry`; the tasks it holds.
    """

    def __init__(self, config: Config, secret: str, log_fd: int) -> None:
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
        self._tasks: list[asyncio.Task[None]] = []

    # The admin port's `Workers`, of one

    @property
    def ready(self) -> bool:
        return self.state.ready

    async def metrics(self) -> bytes:
        return render([self.counts()])

    async def status(self) -> dict[str, Any]:
        told = status.of_worker(self.composition)
        one = status.worker(os.getpid(), self.ready, told["live_requests"], self.state.started, 0)
        return {"ready": self.ready, **told, "workers": [one]}

    async def limits(self, key: str | None, team: str | None) -> Told:
        return await self.composition.report.shown(key, team)

    async def reset_limits(self, key: str | None, team: str | None) -> Told:
        return await self.composition.report.reset(key, team)

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
                at = bound(self.config.admin_listen, held)
                self.admin_address = shown(self.config.admin_listen, at)
                servers.append((admin_server(self, self.config), [at]))
            # At once, so that `/readyz` can say that it is not ready yet.
            serving = [self.hold(each.serve(sockets=at)) for each, at in servers]
            await self._learnt()
            self.state.ready = True
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
        most = self.config.bounds.connections or max(16, (allowed - _SPARE_DESCRIPTORS) // 2)
        logger.info("up to %d connections (%d file descriptors)", most, allowed)
        return self._data_server(most)

    async def _learnt(self) -> None:
        """Until every server was asked once and Redis was looked for, but not for long."""
        if self.composition.courier is not None:
            await self.composition.courier.start()
            self.hold(self.composition.courier.run())
        first_round = asyncio.Event()
        self.hold(self.composition.learn(first_round.set))
        self.hold(self._measure_lag())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeouts.connect * 2):
                await first_round.wait()
        settle_collector()

    def hold(self, coroutine: Any) -> asyncio.Task[None]:
        """Run something for as long as the worker lives."""
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await asyncio.wait(serving)
        for connection in list(data.server_state.connections):
            connection.transport.abort()
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

    async def _measure_lag(self) -> None:
        while True:
            due = self._loop.time() + _LAG_EVERY
            await asyncio.sleep(_LAG_EVERY)
            self.composition.metrics.loop_lag = max(0.0, self._loop.time() - due)

    def _data_server(self, connections: int) -> Server:
        config, times, bounds = self.config, self.config.timeouts, self.config.bounds
        door = Door(
            header_timeout=times.header,
            header_bytes=bounds.header,
            header_fields=bounds.header_fields,
            connections=connections,
        )
        return server(
            App(self.composition.gateway, self.state, time.monotonic),
            http=type("ConfiguredFront", (Front,), {"door": door}),
            timeout_keep_alive=times.keep_alive,
            ssl_certfile=config.tls.cert_file,
            ssl_keyfile=config.tls.key_file,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )


def run(config: Config, secret: str, started: Callable[[list[str]], None]) -> None:
    """Serve in this process until told to end. Raises CannotStart."""

    async def serve() -> None:
        await Worker(config, secret, sys.stdout.fileno()).run(started)

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


# As one of several


class Start(msgspec.Struct):
    """The supervisor's first word. `sockets` are inherited descriptors to listen on.

    `settings` are a pickled `Config`: it holds types that JSON has not, and both ends are ours.
    """

    settings: str
    secret: str
    sockets: list[int]
    log_level: str

    @classmethod
    def of(cls, config: Config, secret: str, sockets: list[int], log_level: str) -> Start:
        return cls(b64encode(pickle.dumps(config)).decode(), secret, sockets, log_level)

    @property
    def config(self) -> Config:
        config: Config = pickle.loads(b64decode(self.settings))
        return config


def handlers(worker: Worker) -> dict[str, Handler]:
    """What the supervisor may ask of a worker, or tell it, by name. Another: a line here."""

    async def metrics(_: Any) -> Counts:
        return worker.counts()

    async def told(_: Any) -> dict[str, Any]:
        return {"ready": worker.ready, **status.of_worker(worker.composition)}

    async def limits(owner: dict[str, Any]) -> Told:
        return await worker.limits(**owner)

    async def reset_limits(owner: dict[str, Any]) -> Told:
        return await worker.reset_limits(**owner)

    async def stop(_: Any) -> None:
        worker.stop()

    async def hurry(_: Any) -> None:
        worker.hurry()

    return {
        "metrics": metrics,
        "status": told,
        "limits": limits,
        "reset_limits": reset_limits,
        "stop": stop,
        "hurry": hurry,
    }


async def work(channel: Channel) -> None:
    """Serve as the other end of `channel` says, until it says stop or is gone."""
    start = msgspec.convert(await channel.first(), Start)
    set_up_diagnostics(start.log_level)
    worker = Worker(start.config, start.secret, sys.stdout.fileno())
    channel.listen(handlers(worker))
    sockets = [socket.socket(fileno=number) for number in start.sockets]

    async def stop_with_channel() -> None:
        await channel.ended.wait()
        worker.stop()

    async def push() -> None:
        while True:
            channel.tell("metrics", worker.counts())
            await channel.drained()
            await asyncio.sleep(_COUNTS_EVERY)

    try:
        worker.hold(stop_with_channel())
        async with worker.serving_among(sockets):
            worker.hold(push())
            channel.tell("ready")
            await worker.stopped()
        channel.tell("metrics", worker.counts())
    except CannotStart as exc:
        channel.tell("cannot_start", str(exc))
    finally:
        await channel.close()


def main() -> None:
    """`python -m gateway.worker FD`: a worker of the supervisor at the other end of `FD`."""
    # The whole group gets a Ctrl-C, and the whole service a SIGTERM: the supervisor tells us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)

    async def serve() -> None:
        with contextlib.suppress(ChannelEnded):
            await work(await Channel.open(socket.socket(fileno=int(sys.argv[1]))))

    uvloop.run(serve())


if __name__ == "__main__":
    main()
