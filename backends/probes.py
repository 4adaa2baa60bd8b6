"""Probing: every engine is asked for its figures once a second, and what that says is told.

Once for a machine, however many processes serve there. `/health` is never asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from backends import progress
from backends.base import Kind, Load, Replica
from backends.errors import BackendError, BadAnswer, ConnectFailed
from backends.kinds.base import probe
from backends.progress import Figures, Progress, read
from backends.transport import Transport

#: Seconds between two questions, and so many rounds that a server without figures is left alone.
EVERY = 1.0
_PLAIN = 10
#: How long one answer may take, beyond its connection where that may take long, and how many
#: refused connections in a row are no accident.
WITHIN = 2.0
_ONCE_CONNECTED = 1.0
_REFUSED = 2
#: So many are asked at once: a page has 100 KB, and this process may be serving as well.
_AT_ONCE = 32
_LARGEST = 8 << 20
_MODELS = "/v1/models"
_UNREACHABLE = "no connection can be made"


class Verdict(msgspec.Struct, frozen=True):
    """What probes saw of the server at `url`.

    `stuck` and `silent` are reasons, empty where it is not. `running`, `waiting` and `kv` are its
    own figures; `known` says whether they are new: those of one answer are told once.
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
    """Take in what was seen of a replica; whether that takes it out now.

    `heard` is when a request under way there last heard from it: one that talks to callers is only
    too busy to answer questions.
    """
    if verdict.known:
        replica.load = Load(now, verdict.running, verdict.waiting, verdict.kv)
    down = verdict.stuck if verdict.reachable else _UNREACHABLE
    if not down and (heard is None or now - heard >= progress.PATIENCE):
        down = verdict.silent
    return replica.health.told(now, down)


class _Asked:
    """One server. Mutable state: its `progress`; `refused` connections in a row; the `figures` that
    were not told yet; `at`, when it was asked last, in seconds of the loop's clock; `rest`, for how
    many rounds it is left alone; `task`, the question under way; `known`, whether one is settled.
    """

    def __init__(self, replica: Replica, kind: Kind, now: float) -> None:
        self.replica = replica
        self.page = kind.figures
        self.progress = Progress(now)
        self.refused = 0
        self.figures: Figures | None = None
        self.at = 0.0
        self.rest = 0
        self.task: asyncio.Task[None] | None = None
        self.known = False

    def answered(self, now: float, figures: Figures | None) -> None:
        self.known = True
        self.refused = 0
        self.figures = figures
        self.progress.saw(now, figures)
        self.rest = 0 if self.page is not None else _PLAIN - 1

    def refuse(self) -> None:
        self.known = True
        self.refused += 1

    def silence(self, now: float) -> None:
        self.known = True
        if self.refused < _REFUSED:
            self.refused = 0  # one that was gone is back when it answers, not before
        self.progress.silence(self.at, now)

    def verdict(self) -> Verdict:
        """What is to be told now; figures only once, lest they look newer than they are."""
        new, self.figures = self.figures, None
        return Verdict(
            self.replica.url,
            reachable=self.refused < _REFUSED,
            stuck=self.progress.stuck,
            silent=self.progress.silent,
            known=new is not None,
            running=new.running if new else 0,
            waiting=new.waiting if new else 0,
            kv=new.kv if new else 0.0,
        )


class Prober:
    """Mutable state: `_asked`, the servers by URL; `_tasks`, the questions under way."""

    def __init__(
        self,
        tell: Callable[[Sequence[Verdict]], None],
        transport: Transport,
        *,
        every: float | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`tell` gets what is known of all, once a round; `transport` stays its owner's."""
        self._tell = tell
        self._transport = transport
        self._every = EVERY if every is None else every
        self._draw = draw
        self._asked: dict[str, _Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._loop = asyncio.get_running_loop()

    def watch(self, replicas: Iterable[tuple[Replica, Kind]]) -> None:
        """Ask these from now on; of a URL that stays, what was seen stays."""
        before, self._asked = self._asked, {}
        for replica, kind in replicas:
            known = before.get(replica.url)
            if known is None or known.page != kind.figures:
                known = _Asked(replica, kind, self._loop.time())
            known.replica = replica
            self._asked[replica.url] = known
        for url, gone in before.items():
            if gone is not self._asked.get(url) and gone.task is not None:
                gone.task.cancel()

    async def run(self) -> None:
        """Ask, and tell what was heard, until cancelled."""
        try:
            # Many gateways may have been started by one hand: they shall not ask in step.
            await asyncio.sleep(self._draw() * self._every)
            while True:
                began = self._loop.time()
                self._ask_all()
                if self._tasks:
                    # Told as soon as it is known, but nobody waits for the slow.
                    await asyncio.wait(self._tasks, timeout=self._every / 2)
                known = [asked.verdict() for asked in self._asked.values() if asked.known]
                if known:
                    self._tell(known)
                await asyncio.sleep(max(0.0, began + self._every - self._loop.time()))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ask_all(self) -> None:
        for asked in self._asked.values():
            if asked.rest:
                asked.rest -= 1
            elif asked.task is None:
                asked.task = task = self._loop.create_task(self._ask(asked))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, asked: _Asked) -> None:
        request = probe(asked.page or _MODELS, asked.replica)
        within = max(WITHIN, self._transport.limits.connect + _ONCE_CONNECTED)
        try:
            async with self._room:
                asked.at = self._loop.time()
                status, page = await self._transport.fetch(
                    asked.replica, request, limit=_LARGEST, timeout=within
                )
        except ConnectFailed:
            asked.refuse()
        except BadAnswer:
            asked.answered(self._loop.time(), None)
        except BackendError:
            asked.silence(self._loop.time())
        else:
            has_figures = status == 200 and asked.page is not None
            asked.answered(self._loop.time(), read(page) if has_figures else None)
        finally:
            asked.task = None
