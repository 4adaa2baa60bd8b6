"""What several workers tell each other of the engines, by way of their supervisor.

It probes every engine once for all of them, adds up what they have under way, passes on which
requests were in flight at an engine's death, and remembers what the operator took out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from backends.base import Kind, Replica
from backends.connection import Limits
from backends.kinds import KINDS
from backends.members import Resolver
from backends.probes import Prober, Verdict
from backends.transport import Transport
from gateway.board import Board, Work
from gateway.channel import Channel
from gateway.fleet import made
from gateway.settings import ReplicaSettings, Timeouts
from gateway.start import packed, unpacked

#: How often the workers hear what the others have under way, in seconds.
SHARED_EVERY = 0.2
#: Deaths that a worker hired later still hears of; they count for ten minutes.
_MOST_DEATHS = 1000

#: How often it is looked which servers there are to probe, in seconds.
_LOOK = 1.0

#: A server as its worker has it: its settings and its kind.
Probed = list[tuple[ReplicaSettings, str]]


class Line(Protocol):
    """The way to one worker."""

    def tell(self, name: str, payload: Any = None) -> None: ...


class Watch:
    """Mutable state: `_lines`, the workers; `_work`, what each has under way, and `_stale`, whether
    the others have yet to hear of it; `_used`, the servers each uses now, `_probed`, all of them by
    URL, and `_made`, what stands for each here; `_verdicts`, the newest; `_deaths`, the bodies that
    were blamed lately; `drained`, the URLs taken out.
    """

    def __init__(self) -> None:
        self.drained: set[str] = set()
        self._lines: dict[Line, None] = {}
        self._work: dict[Line, Work] = {}
        self._stale = False
        self._used: dict[Line, Probed] = {}
        self._probed: dict[str, tuple[ReplicaSettings, str]] = {}
        self._made: dict[ReplicaSettings, Replica] = {}
        self._verdicts: list[Any] = []
        self._deaths: deque[Sequence[str]] = deque(maxlen=_MOST_DEATHS)
        self._resolver = Resolver(lambda name: None)
        self._transport = Transport(addresses=self._resolver.addresses)
        self._prober = Prober(self._saw, self._transport)

    def joined(self, line: Line) -> None:
        """A worker came: it is told what the others know."""
        self._lines[line] = None
        line.tell("drained", sorted(self.drained))
        for death in self._deaths:
            line.tell("blamed", death)
        line.tell("verdicts", self._verdicts)
        self._stale = True

    def limit(self, times: Timeouts) -> None:
        """Within what time connections are made: that of the requests themselves, else what they
        can reach would be told to be gone.
        """
        self._transport.limits = connecting(times)

    def left(self, line: Line) -> None:
        """A worker is gone, and with it what it had under way."""
        self._lines.pop(line, None)
        self._work.pop(line, None)
        self._stale = True
        # Of the last one its servers stay: the next will have the same, and what was seen counts.
        if len(self._used) > 1 and self._used.pop(line, None) is not None:
            self._probe()

    # What workers tell

    def work(self, line: Line, work: Work) -> None:
        self._work[line] = work
        self._stale = True

    def blamed(self, line: Line, death: Sequence[str]) -> None:
        self._deaths.append(death)
        for other in self._lines:
            if other is not line:
                other.tell("blamed", death)

    def replicas(self, line: Line, probed: str) -> None:
        """The servers a worker uses now. Each is probed while any of them uses it: names and lists
        are looked up by every worker for itself, so one may know of a server before another does.
        """
        self._used.pop(line, None)  # who told last comes last
        self._used[line] = unpacked(probed)
        for gone in [other for other in self._used if other not in self._lines]:
            del self._used[gone]
        self._probe()

    def _probe(self) -> None:
        used = self._used.values()
        probed = {settings.url: (settings, kind) for told in used for settings, kind in told}
        if probed == self._probed:
            return
        known = self._made
        self._made = {each: known.get(each) or made(each) for each, _ in probed.values()}
        self._probed = probed
        self._resolver.want(settings.host for settings, _ in probed.values())
        self._prober.watch((self._made[each], KINDS[kind]) for each, kind in probed.values())

    # What it does by itself

    async def run(self) -> None:
        """Probe and pass on, until cancelled."""
        try:
            await asyncio.gather(self._resolver.run(), self._prober.run(), self._share())
        finally:
            await self._transport.close()

    async def _share(self) -> None:
        while True:
            await asyncio.sleep(SHARED_EVERY)
            if self._stale:
                self._stale = False
                for line in self._lines:
                    line.tell("elsewhere", added(w for of, w in self._work.items() if of != line))

    def _saw(self, verdicts: Sequence[Verdict]) -> None:
        self._verdicts = msgspec.to_builtins(list(verdicts))
        for line in self._lines:
            line.tell("verdicts", self._verdicts)


def added(several: Iterable[Work]) -> Work:
    """What several workers have under way together."""
    whole: Work = {}
    for work in several:
        for url, (flights, tokens) in work.items():
            known = whole.get(url, (0, 0))
            whole[url] = known[0] + flights, known[1] + tokens
    return whole


def connecting(times: Timeouts) -> Limits:
    """The limits of a transport that connects as requests do."""
    return Limits(connect=times.connect, tls=times.tls)


async def alone(
    board: Board,
    replicas: Callable[[], Iterable[tuple[Replica, Kind]]],
    addresses: Callable[[str], Sequence[str]],
    limits: Callable[[], Limits] = Limits,
) -> None:
    """What the only process of a gateway does in place of a supervisor, until cancelled.

    `addresses` says where hosts are, and `limits` within what time connections are made, as it is
    said to the transport of the requests themselves.
    """
    transport = Transport(addresses=addresses)
    prober = Prober(board.judge, transport)

    async def look() -> None:
        while True:
            transport.limits = limits()
            prober.watch(replicas())
            await asyncio.sleep(_LOOK)

    try:
        await asyncio.gather(look(), prober.run())
    finally:
        await transport.close()


async def among(board: Board, probed: Callable[[], Probed], channel: Channel) -> None:
    """What one worker of several tells its supervisor, until cancelled."""

    async def look() -> None:
        told: Probed = []
        while True:
            servers = probed()
            if servers != told:
                told = servers
                channel.tell("replicas", packed(servers))
            await asyncio.sleep(_LOOK)

    async def share() -> None:
        told: Work = {}
        while True:
            work = board.work()
            if work != told:
                told = work
                channel.tell("work", work)
            await channel.drained()
            await asyncio.sleep(SHARED_EVERY)

    await asyncio.gather(look(), share())
