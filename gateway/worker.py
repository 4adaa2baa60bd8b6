"""One serving process: the uvicorn servers of its ports, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from gateway.admin import admin
from gateway.app import App, State
from gateway.composition import Composition
from gateway.errors import Draining
from gateway.front import Door, Front
from gateway.logs import LineLog, tell_of_fault
from gateway.settings import Config
from gateway.units import Address

logger = logging.getLogger("fairgate")

#: Descriptors left for logs, listeners, the admin port and libraries.
_SPARE_DESCRIPTORS = 64
_LAG_EVERY = 0.5
_BACKLOG = 2048
_FAREWELL = 1.0


class CannotStart(Exception):
    """Raised when an address cannot be listened on; the text says which and why."""


class Server(uvicorn.Server):
    """uvicorn's server without its signal handling: the worker decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Worker:
    """Mutable state: `state`, what the process says of itself; whether it was told to `_stop` and
    to `_hurry`; the tasks it holds.
    """

    def __init__(self, config: Config, secret: str, log_fd: int) -> None:
        self.config = config
        self.state = State()
        self._secret = secret
        self.admin_address: str | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._log = LineLog(log_fd, config.bounds.log_lines)
        self.composition = Composition(config, secret, self._log, time.monotonic)
        self._tasks: list[asyncio.Task[None]] = []

    # The admin port's `Workers`

    @property
    def ready(self) -> bool:
        return self.state.ready

    async def metrics(self) -> bytes:
        self.composition.metrics.log_lines_dropped = self._log.dropped
        return self.composition.metrics.render()

    async def status(self) -> dict[str, Any]:
        routes = self.composition.routes
        return {
            "ready": self.ready,
            "live_requests": len(self.composition.gateway.live),
            "upstream_connections": self.composition.transport.open_connections,
            "models": {name: route.pool.name for name, route in routes.table.items()},
            "pools": {pool.name: _pool_status(pool) for pool in routes.pools()},
        }

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

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[list[str]]:
        """Serve while the block lasts, on the addresses it is given. Raises CannotStart."""
        self._loop.set_exception_handler(tell_of_fault)
        allowed = raise_descriptor_limit()
        most = self.config.bounds.connections or max(16, (allowed - _SPARE_DESCRIPTORS) // 2)
        logger.info("up to %d connections (%d file descriptors)", most, allowed)
        with contextlib.ExitStack() as held:
            sockets = [_bound(address, held) for address in self.config.listen]
            servers = [(self._data_server(most), sockets)]
            if self.config.admin_listen is not None:
                at = _bound(self.config.admin_listen, held)
                self.admin_address = _shown(self.config.admin_listen, at)
                servers.append((self._admin_server(), [at]))
            first_round = asyncio.Event()
            self._hold(self.composition.learn(first_round.set))
            self._hold(self._measure_lag())
            serving = [self._hold(server.serve(sockets=at)) for server, at in servers]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.timeouts.connect * 2):
                    await first_round.wait()
            settle_collector()
            self.state.ready = True
            try:
                yield [_shown(*each) for each in zip(self.config.listen, sockets, strict=True)]
            finally:
                await self._end([server for server, _ in servers], serving)

    def _hold(self, coroutine: Any) -> asyncio.Task[None]:
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
        for server in servers:
            server.should_exit = True
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
        for server in servers:
            server.force_exit = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.composition.transport.close()
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

    # uvicorn

    def _data_server(self, connections: int) -> Server:
        config, times, bounds = self.config, self.config.timeouts, self.config.bounds
        door = Door(
            header_timeout=times.header,
            header_bytes=bounds.header,
            header_fields=bounds.header_fields,
            connections=connections,
        )
        app = App(self.composition.gateway, self.state, time.monotonic)
        front = type("ConfiguredFront", (Front,), {"door": door})
        tls = config.tls
        return Server(
            _settings(
                app,
                http=front,
                timeout_keep_alive=times.keep_alive,
                ssl_certfile=tls.cert_file,
                ssl_keyfile=tls.key_file,
                ssl_version=ssl.PROTOCOL_TLS_SERVER,
            )
        )

    def _admin_server(self) -> Server:
        app = admin(self, self.config.admin_key_sha256)
        return Server(_settings(app, http="httptools", timeout_keep_alive=75))


def _settings(app: Any, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=None,
        **more,
    )


def run(config: Config, secret: str, started: Callable[[list[str]], None]) -> None:
    """Serve in this process until told to end. Raises CannotStart."""

    async def serve() -> None:
        await Worker(config, secret, sys.stdout.fileno()).run(started)

    uvloop.run(serve())


def check_free(addresses: Iterable[Address]) -> None:
    """Raises CannotStart where one of the addresses cannot be listened on now."""
    with contextlib.ExitStack() as held:
        for address in addresses:
            _bound(address, held)


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


def _bound(address: Address, held: contextlib.ExitStack) -> socket.socket:
    try:
        if address.path is not None:
            return _unix(address.path, held)
        host = address.host or ""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if family is socket.AF_INET6:
            sock = socket.socket(family)
            # One socket for each family: `[::]` beside `0.0.0.0` must both be possible.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            sock = socket.socket(family)
        held.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, address.port or 0))
        sock.listen(_BACKLOG)  # bound alone, another could bind and listen first
        sock.setblocking(False)
        return sock
    except OSError as exc:
        raise CannotStart(f"cannot listen on {address}: {exc.strerror or exc}") from None


def _unix(path: str, held: contextlib.ExitStack) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    held.callback(sock.close)
    if os.path.exists(path):
        with socket.socket(socket.AF_UNIX) as other, contextlib.suppress(OSError):
            other.connect(path)
            raise CannotStart(f"cannot listen on unix:{path}: another process does")
        os.unlink(path)  # left by a process that is gone
    sock.bind(path)
    held.callback(Path(path).unlink, missing_ok=True)
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _shown(address: Address, sock: socket.socket) -> str:
    if address.path is not None:
        return str(address)
    host = f"[{address.host}]" if ":" in (address.host or "") else address.host
    return f"{host}:{sock.getsockname()[1]}"


def _pool_status(pool: Any) -> dict[str, Any]:
    return {
        "kind": pool.kind.name,
        "held": pool.held,
        "replicas": [
            {
                "url": replica.url,
                "in_flight": replica.in_flight,
                "weight": replica.weight,
                "concurrency": replica.concurrency,
                "cache_salt": not replica.lacks("/v1/chat/completions", "cache_salt"),
                "last_error": replica.last_error,
            }
            for replica in pool.replicas
        ],
    }
