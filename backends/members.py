"""Where the servers behind names are: resolved in the background, looked up without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

logger = logging.getLogger("fairgate")

#: Seconds from one round of questions to the next, and the jitter's share.
EVERY = 5.0
_JITTER = 0.2
#: How long a round waits for one answer. The question itself goes on.
_PATIENCE = 5.0

T = TypeVar("T", bound=Hashable)
Lookup = Callable[[str], Awaitable[Sequence[str]]]


def compared(old: Iterable[T], new: Iterable[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Who joined and who left, each in its order."""
    before, after = dict.fromkeys(old), dict.fromkeys(new)
    joined = tuple(each for each in after if each not in before)
    return joined, tuple(each for each in before if each not in after)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def looked_up(host: str) -> Sequence[str]:
    """What the system's resolver says of a name. Raises OSError, UnicodeError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Resolver:
    """The addresses of names; the last good answer of each holds until there is another.

    `changed` is called with a name whose addresses are others now; their order does not count.

    Mutable state: `_names`, those that are wanted; `_known`, the last good answers; `_failing`, the
    names that got no answer last; `_asking`, the questions under way; `_first`, set when each name
    was asked once; `_wake`, set when there are new ones.
    """

    def __init__(
        self,
        changed: Callable[[str], None],
        *,
        lookup: Lookup = looked_up,
        draw: Callable[[], float] = random.random,
        every: float = EVERY,
    ) -> None:
        self._changed = changed
        self._lookup = lookup
        self._draw = draw
        self._every = every
        self._names: frozenset[str] = frozenset()
        self._known: dict[str, tuple[str, ...]] = {}
        self._failing: set[str] = set()
        self._asking: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._first = asyncio.Event()
        self._wake = asyncio.Event()

    def addresses(self, host: str) -> Sequence[str]:
        """Those known now; none for a name that never had an answer. An address is its own."""
        known = self._known.get(host)
        if known is not None:
            return known
        return (host,) if is_address(host) else ()

    def want(self, hosts: Iterable[str]) -> None:
        """Resolve these from now on, new ones at once; any other is forgotten."""
        names = frozenset(host for host in hosts if not is_address(host))
        for gone in self._names - names:
            self._known.pop(gone, None)
            self._failing.discard(gone)
        if names - self._names:
            self._wake.set()
        self._names = names

    async def asked(self) -> None:
        """Wait until every name was asked once, whatever came of it. `run` must be under way."""
        await self._first.wait()

    async def run(self) -> None:
        """Ask for every name again and again, until cancelled."""
        turns: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                turns.clear()
                await self._round(turns)
                self._first.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._every * (1 + _JITTER * self._draw())):
                        await self._wake.wait()
        finally:
            left: list[asyncio.Future[Any]] = [*turns.values(), *self._asking.values()]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self._asking.clear()

    async def _round(self, turns: dict[str, asyncio.Task[None]]) -> None:
        """Ask for every name once. One that is wanted meanwhile does not wait for those that are
        slow: requests for its servers may be here already.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            for name in sorted(self._names):
                turn = turns.get(name)
                if turn is None or (turn.done() and name not in self._known):
                    turns[name] = loop.create_task(self._ask(name))
            every = asyncio.gather(*turns.values())
            waking = loop.create_task(self._wake.wait())
            either: set[asyncio.Future[Any]] = {every, waking}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waking.cancel()
            if every.done():
                every.result()
                return

    async def _ask(self, name: str) -> None:
        # A question that takes too long is waited for in later rounds: asked anew each time, those
        # of a resolver that is away would fill the threads that ask.
        question = self._asking.get(name)
        if question is None:
            question = self._asking[name] = asyncio.ensure_future(self._lookup(name))
        await asyncio.wait({question}, timeout=_PATIENCE)
        if not question.done():
            self._failed(name, "no answer in time")
            return
        del self._asking[name]
        try:
            found = tuple(dict.fromkeys(question.result()))
        except (OSError, UnicodeError) as exc:
            self._failed(name, exc.__class__.__name__)
            return
        if found:
            self._found(name, found)
        else:
            self._failed(name, "no address")

    def _found(self, name: str, found: tuple[str, ...]) -> None:
        if name not in self._names:
            return  # not wanted any more
        if name in self._failing:
            self._failing.discard(name)
            logger.warning("%s can be resolved again", name)
        before = self._known.get(name, ())
        self._known[name] = found
        if set(before) != set(found):
            self._changed(name)

    def _failed(self, name: str, why: str) -> None:
        if name in self._failing or name not in self._names:
            return
        self._failing.add(name)
        kept = "its last addresses are kept" if name in self._known else "no address is known"
        logger.warning("%s cannot be resolved (%s): %s", name, why, kept)
