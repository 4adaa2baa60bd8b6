"""The model servers of the newest configuration: one object for each, asked what it is.

A server that stays over a reload stays the same object, with its counts and its health.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends import discovery
from backends.base import Origin, Replica
from backends.errors import BackendError
from backends.transport import Transport
from gateway.diagnosis import place, silence
from gateway.settings import ReplicaSettings

logger = logging.getLogger("fairgate")

Replicas = Mapping[ReplicaSettings, Replica]


class BadFile(Exception):
    """Raised for a file that can be read but is of no use; the text says what is wrong with it."""


@dataclass(slots=True)
class _Silence:
    """What was told of a replica since it does not answer, each sentence once; whether probes said
    at the last question that it is down: then they also say when it is back.
    """

    told: set[str] = field(default_factory=set)
    down: bool = False


class Fleet:
    """Mutable state: `_known`, the replicas by their settings, those that leave among them until
    they are idle; `_wanted`, those that are in use; `_asking`, the tasks that ask them; `_first`,
    those not asked once; `_silent`, those that do not answer; `_drained`, the URLs that the
    operator took out; `_changed`, set by `adopt`.

    `heard` is called when a replica has told its capability; `models` names those it is to serve.
    """

    def __init__(
        self,
        transport: Transport,
        heard: Callable[[], None],
        models: Callable[[Replica], Iterable[str]] = lambda replica: (),
    ) -> None:
        self._transport = transport
        self._heard = heard
        self._models = models
        self._known: dict[ReplicaSettings, Replica] = {}
        self._wanted: dict[Replica, None] = {}
        self._asking: dict[Replica, asyncio.Task[None]] = {}
        self._first: set[Replica] = set()
        self._silent: dict[Replica, _Silence] = {}
        self._drained: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def at(self, url: str) -> list[Replica]:
        """Every object of one URL: models may have it on different terms. Those that leave too."""
        return [replica for replica in self._known.values() if replica.url == url]

    def settings(self) -> dict[Replica, ReplicaSettings]:
        """Those of each replica."""
        return {replica: settings for settings, replica in self._known.items()}

    def drafted(self, wanted: Iterable[ReplicaSettings]) -> dict[ReplicaSettings, Replica]:
        """An object for each: its own, else that of the same server whose settings are gone, else
        a new one. Changes nothing yet; `adopt` does. Raises BadFile.
        """
        every = dict.fromkeys(wanted)
        # Several of one server, where models have it on different terms; those in use first.
        free: dict[tuple[Any, ...], list[Replica]] = {}
        for settings, replica in sorted(self._known.items(), key=self._leaves):
            if settings not in every:
                free.setdefault(_identity(settings), []).append(replica)
        draft: dict[ReplicaSettings, Replica] = {}
        for settings in every:
            known = self._known.get(settings)
            if known is None and (same := free.get(_identity(settings))):
                known = same.pop(0)
            draft[settings] = known or made(settings)
        return draft

    def _leaves(self, known: tuple[ReplicaSettings, Replica]) -> bool:
        return known[1] not in self._wanted

    def adopt(self, draft: Replicas) -> None:
        """Go on with these replicas; what is under way on others is served to its end."""
        for settings, replica in draft.items():
            replica.drained = replica.url in self._drained
            replica.weight, replica.concurrency = settings.weight, settings.concurrency
        self._wanted = dict.fromkeys(draft.values())
        leaving = {
            settings: replica
            for settings, replica in self._known.items()
            if replica.in_flight and replica not in self._wanted
        }
        self._known = {**leaving, **draft}
        self._changed.set()

    def drain(self, url: str, out: bool) -> None:
        """Send nothing more to a URL, or with `out` False again. One that none has is forgotten."""
        self.take_out(self._drained | {url} if out and self.at(url) else self._drained - {url})

    def take_out(self, urls: Iterable[str]) -> None:
        """Send nothing more to these, whoever comes later among them, and to all others again."""
        self._drained = frozenset(urls)
        for replica in self._known.values():
            replica.drained = replica.url in self._drained

    async def learn(self, asked: Callable[[], None]) -> None:
        """Ask every server what it is, again and again, also those adopted later.

        `asked` is called when each was asked once. Goes on until it is cancelled.
        """
        loop = asyncio.get_running_loop()
        self._first = set(self._wanted)
        try:
            while True:
                self._changed.clear()
                for replica in [r for r in self._asking if r not in self._wanted]:
                    self._asking.pop(replica).cancel()
                    self._silent.pop(replica, None)
                for replica in self._wanted:
                    if replica not in self._asking:
                        self._asking[replica] = loop.create_task(self._ask(replica, asked))
                self._first &= self._wanted.keys()
                if not self._first:
                    asked()
                await self._changed.wait()
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, replica: Replica, asked: Callable[[], None]) -> None:
        while True:
            answered = await self._answered(replica)
            if answered:
                self._heard()
            self._first.discard(replica)
            if not self._first:
                asked()
            await discovery.pause(replica, answered=answered)

    async def _answered(self, replica: Replica) -> bool:
        try:
            replica.capability = await discovery.capability(self._transport, replica)
        except BackendError as exc:
            self._tell_silent(replica, exc)
            return False
        silent = self._silent.pop(replica, None)
        if silent is not None and not (silent.down or replica.health.down):
            logger.warning("%s: answers now", self._place(replica))
        return True

    def _tell_silent(self, replica: Replica, exc: BackendError) -> None:
        settings = self.settings().get(replica)
        if settings is None:
            return  # it has just left
        silent = self._silent.setdefault(replica, _Silence())
        silent.down = bool(replica.health.down)
        why = silence(exc, settings, replica.origin)
        if why not in silent.told:
            silent.told.add(why)
            logger.warning("%s: %s", self._place(replica), why)

    def _place(self, replica: Replica) -> str:
        return place(replica.url, self._models(replica))


def _identity(settings: ReplicaSettings) -> tuple[Any, ...]:
    """What makes it the same server, asked in the same way. Weight and concurrency may change."""
    at = (settings.scheme, settings.host, settings.address, settings.port, settings.base)
    return (*at, settings.api_key, settings.ca_file)


def made(settings: ReplicaSettings) -> Replica:
    """A server nothing is known of yet. Raises BadFile."""
    return Replica(
        url=settings.url,
        origin=Origin(settings.host, settings.port, tls_context(settings), settings.address),
        base=settings.base,
        weight=settings.weight,
        concurrency=settings.concurrency,
        credential=settings.api_key,
    )


def tls_context(settings: ReplicaSettings) -> ssl.SSLContext | None:
    """How a server is spoken to over TLS; None for plain HTTP. Raises BadFile."""
    if settings.scheme != "https":
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as exc:  # ssl.SSLError is one
        why = exc.strerror or exc
        raise BadFile(f"{settings.ca_file!r} holds no certificates of use: {why}") from None
