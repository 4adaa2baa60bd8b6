"""The parent of several serving processes, so that they are one gateway.

It binds the sockets, of which every worker accepts; puts a new worker in the place of one that
died; ends them together; and owns the admin port, where counts are those of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import uvloop

from gateway import status
from gateway.channel import ChannelEnded, NotAnswered
from gateway.hired import REDIS_WITHIN, Hired, hire
from gateway.limits.report import Told
from gateway.listeners import CannotStart, admin_server, bound, cut, shown
from gateway.logs import tell_of_end
from gateway.metrics import Sum, render
from gateway.reload import Reloads, Source
from gateway.settings import Config
from gateway.start import packed
from gateway.watch import Watch

logger = logging.getLogger("fairgate")

#: Seconds before the next worker of a place whose workers die soon after they were started.
_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
_SOON = 10.0
_READY_WITHIN = 60.0
#: How long a worker may take beyond `drain`, or once it was told to hurry, before it is killed.
_FAREWELL = 5.0
#: How long a worker may take to take over a new configuration.
_RELOADED_WITHIN = 10.0
#: How long a worker may take to take a replica out: one that starts is busy for a while.
_DRAINED_WITHIN = 5.0
_NO_WORKER: Told = (503, {"error": "no worker answers; ask again"})


class Place:
    """Where one worker works, and after it the next.

    Mutable state: `hired`, who is there; `restarts`, how many were before; `_soon`, how many in
    a row died soon after their start; `first`, done once one was ready; `life`, its task.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.hired: Hired | None = None
        self.restarts = 0
        self._soon = 0
        self._supervisor = supervisor
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.life = asyncio.get_running_loop().create_task(self._live())
        self.life.add_done_callback(self._over)

    def _over(self, life: asyncio.Task[None]) -> None:
        fault = None if life.cancelled() else life.exception()
        if fault is not None and not self.first.done():
            self.first.set_exception(fault)

    async def _live(self) -> None:
        supervisor = self._supervisor
        while not supervisor.stopping.is_set():
            try:
                hired = self.hired = await supervisor.hire()
            except OSError as exc:  # no descriptors, no processes, no memory
                await self._after(f"a worker could not be started: {exc.strerror}")
                continue
            try:
                await self._employ(hired)
            finally:
                self.hired = None
                supervisor.watch.left(hired.channel)
                supervisor.ended.add(hired.counts, ended=True)
            lived = time.time() - hired.since
            if lived >= _SOON:
                self._soon = 0
            await self._after(f"worker {hired.pid} {hired.how_it_ended()} after {lived:.1f} s")

    async def _employ(self, hired: Hired) -> None:
        """Until it is gone, every word of it read."""
        if self._supervisor.stopping.is_set():
            hired.channel.tell("stop")
        try:
            async with asyncio.timeout(_READY_WITHIN):
                await _first_of(hired.ready.wait(), hired.process.wait())
        except TimeoutError:
            hired.complaint = f"it was not ready within {_READY_WITHIN:.0f} s"
            hired.kill()
        if hired.ready.is_set() and not self.first.done():
            self.first.set_result(None)
        await _first_of(hired.channel.ended.wait(), hired.process.wait())
        # Without its channel a worker ends by itself; without its process the rest of it is read.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._supervisor.patience):
                await hired.process.wait()
        hired.kill()
        await hired.process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await hired.channel.ended.wait()
        await hired.channel.close()

    async def _after(self, what: str) -> None:
        """Say what ended a worker, and wait before the next."""
        supervisor = self._supervisor
        if supervisor.stopping.is_set():
            return
        if not self.first.done():
            self.first.set_exception(CannotStart(what))
            return
        delay = _DELAYS[min(self._soon, len(_DELAYS) - 1)]
        self._soon += 1
        self.restarts += 1
        logger.error("%s; the next one starts%s", what, f" in {delay} s" if delay else " now")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await supervisor.stopping.wait()


class Supervisor:
    """The admin port's `Workers`, of many.

    Mutable state: `places`; `ended`, what workers that are gone have counted; `stopping`, and
    `_hurry`, what it was told; `_started`, whether all were ready once.
    """

    def __init__(self, config: Config, secret: str, source: Source | None = None) -> None:
        self.config = config
        self.admin_address: str | None = None
        self.places: list[Place] = []
        self.ended = Sum()
        self.stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = False
        self.reloads = Reloads(source, config, self.reload, self._why_no_reload)
        self.watch = Watch()
        self.watch.limit(config.timeouts)
        self._secret = secret
        self._sockets: Sequence[socket.socket] = ()
        self._loop = asyncio.get_running_loop()

    @property
    def workers(self) -> list[Hired]:
        """Those alive, also while they start or end."""
        return [place.hired for place in self.places if place.hired is not None]

    @property
    def patience(self) -> float:
        """How long a worker's graceful end may take, in seconds."""
        times = self.config.timeouts
        return times.lame_duck + times.drain + _FAREWELL

    def tell(self, name: str, payload: Any = None) -> None:
        """Tell every worker."""
        for hired in self.workers:
            hired.channel.tell(name, payload)

    async def ask(self, name: str, payload: Any, within: float) -> list[Any]:
        """The answers of the workers that have one within so many seconds."""
        asked = (hired.ask(name, payload, within) for hired in self.workers)
        return [answer for answer in await asyncio.gather(*asked) if answer is not None]

    async def hire(self) -> Hired:
        """A worker more. Raises OSError."""
        config = self.config
        hired = await hire(config, self._secret, self._sockets, self.watch)
        if config is not self.config:  # there is another one since then
            hired.channel.tell("reload", packed(self.config))
        return hired

    # The admin port's `Workers`

    @property
    def ready(self) -> bool:
        able = any(hired.ready.is_set() for hired in self.workers)
        return self._started and able and not self.stopping.is_set()

    async def metrics(self) -> bytes:
        await asyncio.gather(*(self._refresh(hired) for hired in self.workers))
        restarts = sum(place.restarts for place in self.places)
        return render(
            [
                *(hired.counts for hired in self.workers),
                self.ended.counts(),
                {"worker_restarts": [([], [restarts])]},
                self.reloads.counts(),
            ]
        )

    async def _refresh(self, hired: Hired) -> None:
        counts = await hired.ask("metrics")
        if counts is not None:
            hired.counts = counts

    async def status(self) -> dict[str, Any]:
        there = [(place, place.hired) for place in self.places if place.hired is not None]
        told = await asyncio.gather(*(hired.ask("status") for _, hired in there))
        lines = [
            status.worker(
                hired.pid,
                bool(one and one["ready"]),
                one["live_requests"] if one else None,
                int(hired.since),
                place.restarts,
            )
            for (place, hired), one in zip(there, told, strict=True)
        ]
        return {"ready": self.ready, **status.of_workers(filter(None, told)), "workers": lines}

    async def limits(self, key: str | None, team: str | None) -> Told:
        """By any worker: what they know is in Redis, or their share of it while it is away."""
        for hired in self.workers:
            told = await hired.ask("limits", {"key": key, "team": team}, REDIS_WITHIN)
            if told is not None:
                return told[0], told[1]
        return _NO_WORKER

    async def reset_limits(self, key: str | None, team: str | None) -> Told:
        """By every worker: each knows something of its own. One that could not is told of."""
        told = await self.ask("reset_limits", {"key": key, "team": team}, REDIS_WITHIN)
        return max(((one[0], one[1]) for one in told), key=lambda t: t[0], default=_NO_WORKER)

    async def drain(self, url: str, out: bool | None) -> Told:
        """By every worker, and by those that come later."""
        if out is not None:  # kept first: one may be hired while the others are asked
            (self.watch.drained.add if out else self.watch.drained.discard)(url)
        asked = len(self.workers)
        told = await self.ask("drain", {"url": url, "out": out}, _DRAINED_WITHIN)
        whole = status.drained_by_all(told, asked - len(told))
        if whole[0] == 404:
            self.watch.drained.discard(url)
        elif out is not None:  # also to one that has yet to learn of this replica
            self.tell("drained", sorted(self.watch.drained))
        return whole

    # Its life

    async def run(self, started: Callable[[list[str]], None]) -> None:
        """Serve until a signal, then end gracefully. Raises CannotStart."""
        if self.reloads.source is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self.reloads.ask)
        async with self.serving() as addresses:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self.stop)
            started(addresses)
            await self.stopping.wait()

    def stop(self) -> None:
        """End gracefully; told a second time, at once."""
        if self.stopping.is_set():
            self._hurry.set()
        self.stopping.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[list[str]]:
        """Serve while the block lasts, on the addresses it is given. Raises CannotStart."""
        with contextlib.ExitStack() as held:
            self._sockets = [bound(address, held) for address in self.config.listen]
            addresses = [shown(*e) for e in zip(self.config.listen, self._sockets, strict=True)]
            async with self._administered(held):
                self.places = [Place(self) for _ in range(self.config.workers)]
                watching = self._loop.create_task(self.watch.run())
                watching.add_done_callback(tell_of_end)
                tasks = [self._loop.create_task(self._reloading()), watching]
                try:
                    await self._all_ready()
                    yield addresses
                finally:
                    await self._end()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self, config: Config) -> None:
        """Every worker serves what comes from now on by another configuration."""
        self.config = config  # of those who are hired from here on
        self.watch.limit(config.timeouts)
        settings = packed(config)
        await asyncio.gather(*(self._renew(hired, settings) for hired in self.workers))

    async def _renew(self, hired: Hired, settings: str) -> None:
        within = _RELOADED_WITHIN if hired.ready.is_set() else _READY_WITHIN
        try:
            await hired.channel.ask("reload", settings, timeout=within)
        except ChannelEnded:
            pass  # it died; the next one begins with the new configuration
        except NotAnswered as exc:
            logger.error("worker %d cannot take the new configuration: %s", hired.pid, exc)
            hired.channel.tell("stop")
        except TimeoutError:
            logger.error("worker %d did not take the new configuration in time", hired.pid)
            hired.kill()

    def _why_no_reload(self) -> str:
        if self.stopping.is_set():
            return "the gateway is stopping"
        return "" if self._started else "the gateway is starting; it is read again when it runs"

    async def _reloading(self) -> None:
        await asyncio.gather(*(place.first for place in self.places))
        await self.reloads.run()

    async def _all_ready(self) -> None:
        firsts = {place.first for place in self.places}
        done, _ = await asyncio.wait(firsts, return_when=asyncio.FIRST_EXCEPTION)
        failures = [failure for first in done if (failure := first.exception())]
        if failures:
            self.stopping.set()
            for hired in self.workers:
                hired.kill()
            raise failures[0]
        self._started = True

    @contextlib.asynccontextmanager
    async def _administered(self, held: contextlib.ExitStack) -> AsyncIterator[None]:
        """With the admin port open, to the very end: the drain can be watched there."""
        if self.config.admin_listen is None:
            yield
            return
        at = bound(self.config.admin_listen, held, "admin_listen")
        self.admin_address = shown(self.config.admin_listen, at)
        server = admin_server(self, self.config)
        serving = self._loop.create_task(server.serve(sockets=[at]))
        try:
            yield
        finally:
            server.should_exit = server.force_exit = True
            cut([server])
            await serving

    async def _end(self) -> None:
        self.stopping.set()
        # From here on the workers alone hold them: the last that stops listening closes the door.
        for sock in self._sockets:
            sock.close()
        self.tell("stop")
        lives = self._loop.create_task(_all(place.life for place in self.places))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                await _first_of(self._hurry.wait(), asyncio.shield(lives))
        self.tell("hurry")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await asyncio.shield(lives)
        for hired in self.workers:
            hired.kill()
        await lives


async def _all(lives: Any) -> None:
    await asyncio.gather(*lives)


async def _first_of(*waits: Any) -> None:
    """Until one of them is over; the others are not waited for any more."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(config: Config, secret: str, started: Callable[[list[str]], None], source: Source) -> None:
    """Serve with `config.workers` processes until told to end. Raises CannotStart."""

    async def serve() -> None:
        await Supervisor(config, secret, source).run(started)

    uvloop.run(serve())
