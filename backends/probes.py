"""Probing: every engine is asked for its figures once a second, and what that says is told.

Once for a machine, however many processes serve there. `/health` is never asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from backends.base import Kind, Load, Replica
from backends.errors import BackendError, ConnectFailed
from backends.kinds.base import probe
from backends.progress import PATIENCE, Figures, Progress, read
from backends.transport import Transport

#: Seconds between two questions, and those of a server that has no figures to tell.
EVERY = 1.0
EVERY_PLAIN = 10.0
#: How long one answer may take, and how many refused connections in a row are no accident.
_WITHIN = 2.0
_REFUSED = 2
_LARGEST = 8 << 20
_MODELS = "/v1/models"
_UNREACHABLE = "no connection can be made"


class Verdict(msgspec.Struct, frozen=True):
    """What probes saw of the server at `url`.

    `stuck` and `silent` are reasons, empty where it is not; `running`, `waiting` and `kv` are its
    own figures, where they are `known`.
    """

    url: str
    reachable: bool = True
    stuck: str = ""
    silent: str = ""
    known: bool = False
    running: int = 0
    waiting: int = 0
    kv: float = 0.0


def apply(verdict: Verdict, replica: Replica, now: float, heard: float | None) -> bool:
    """Take in what was seen of a replica; whether that ejects it now.

    `heard` is when a request under way there last heard from it: one that talks to callers is only
    too busy to answer questions.
    """
    if verdict.known:
        replica.load = Load(now, verdict.running, verdict.waiting, verdict.kv)
    down = verdict.stuck if verdict.reachable else _UNREACHABLE
    if not down and (heard is None or now - heard >= PATIENCE):
        down = verdict.silent
    return replica.health.told(now, down)


class _Asked:
    """One server. Mutable state: `progress`; `refused` connections in a row; its newest `figures`;
    `due`, when it is asked next; `task`, the question under way.
    """

    def __init__(self, replica: Replica, kind: Kind, now: float) -> None:
        self.replica = replica
        self.page = kind.figures
        self.progress = Progress(now)
        self.refused = 0
        self.figures: Figures | None = None
        self.due = now
        self.task: asyncio.Task[None] | None = None

    def verdict(self) -> Verdict:
        url, progress, figures = self.replica.url, self.progress, self.figures
        reachable = self.refused < _REFUSED
        if figures is None or not reachable:
            return Verdict(url, reachable, progress.stuck, progress.silent)
        return Verdict(
            url,
            reachable,
            progress.stuck,
            progress.silent,
            True,
            figures.running,
            figures.waiting,
            figures.kv,
        )


class Prober:
    """Mutable state: `_asked`, the servers by URL, those of them `_heard` since the last round."""

    def __init__(
        self,
        tell: Callable[[Sequence[Verdict]], None],
        transport: Transport,
        *,
        every: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tell = tell
        self._transport = transport
        self._every = EVERY if every is None else every
        self._sleep = sleep
        self._asked: dict[str, _Asked] = {}
        self._heard: set[_Asked] = set()
        self._loop = asyncio.get_running_loop()

    def watch(self, replicas: Iterable[tuple[Replica, Kind]]) -> None:
        """Ask these from now on; of a URL that stays, what was seen stays."""
        wanted = {replica.url: (replica, kind) for replica, kind in replicas}
        for url in self._asked.keys() - wanted.keys():
            gone = self._asked.pop(url)
            self._heard.discard(gone)
            if gone.task is not None:
                gone.task.cancel()
        for url, (replica, kind) in wanted.items():
            known = self._asked.get(url)
            if known is None or known.page != kind.figures:
                self._asked[url] = _Asked(replica, kind, self._loop.time())
            else:
                known.replica = replica

    async def run(self) -> None:
        """Ask, and tell what was heard, until cancelled."""
        try:
            while True:
                self._ask_all()
                await self._sleep(self._every)
                heard = [asked.verdict() for asked in self._heard]
                self._heard.clear()
                if heard:
                    self._tell(heard)
        finally:
            tasks = [asked.task for asked in self._asked.values() if asked.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ask_all(self) -> None:
        now = self._loop.time()
        for asked in self._asked.values():
            if asked.task is None and now >= asked.due:
                asked.due = now + (EVERY_PLAIN if asked.page is None else 0.0)
                asked.task = self._loop.create_task(self._ask(asked))

    async def _ask(self, asked: _Asked) -> None:
        request = probe(asked.page or _MODELS, asked.replica)
        try:
            status, page = await self._transport.fetch(
                asked.replica, request, limit=_LARGEST, timeout=_WITHIN
            )
        except ConnectFailed:
            asked.refused += 1
            asked.due = 0.0
            asked.figures = None
        except BackendError:
            asked.refused = 0
            asked.progress.silence(self._loop.time())
        else:
            asked.refused = 0
            asked.figures = read(page) if status == 200 and asked.page is not None else None
            asked.progress.saw(self._loop.time(), asked.figures)
        finally:
            asked.task = None
        self._heard.add(asked)
