"""Requests that were in flight when engines died, so that one of them cannot take down a fleet.

A body in flight at two deaths within ten minutes is not sent again. Of a body only a keyed
fingerprint is known, so that the log and other processes learn nothing of what it says.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from backends.base import Replica
from backends.errors import KillsEngines

logger = logging.getLogger("fairgate")

_DEATHS = 2
_REMEMBERED = 600.0
#: A request that failed this long before its engine was found dead may have killed it.
_SUSPECT = 10.0
#: Within so many seconds an engine dies once, whoever tells of it.
_SAME_DEATH = 5.0
_MOST_BODIES = 10_000
_MOST_SUSPECTS = 1_000


class Quarantine:
    """Mutable state: `_suspects`, by replica: fingerprints and when they failed there; `_deaths`,
    by fingerprint: which replica died with it, and when; the oldest are forgotten first.
    """

    def __init__(
        self,
        key: bytes,
        clock: Callable[[], float],
        tell: Callable[[str, str], None] = lambda fingerprint, url: None,
    ) -> None:
        self._key = blake2b(key, digest_size=32).digest()
        self._clock = clock
        #: Who passes a death on to other processes.
        self.tell = tell
        self._suspects: dict[str, OrderedDict[str, float]] = {}
        self._deaths: OrderedDict[str, list[tuple[str, float]]] = OrderedDict()

    def check(self, body: bytes) -> None:
        """Raises KillsEngines for a body that was in flight at two deaths."""
        if not self._deaths:
            return
        now = self._clock()
        # While there are any each body is hashed, so those that no longer count are forgotten.
        while now - next(iter(self._deaths.values()))[-1][1] >= _REMEMBERED:
            self._deaths.popitem(last=False)
            if not self._deaths:
                return
        fingerprint = self._fingerprint(body)
        deaths = self._deaths.get(fingerprint, ())
        if sum(now - at < _REMEMBERED for _, at in deaths) >= _DEATHS:
            raise KillsEngines(f"the body {fingerprint} was in flight when engines died")

    def suspect(self, replica: Replica, body: bytes) -> None:
        """A request failed there; if the engine is found dead soon, this may be why."""
        now = self._clock()
        suspects = self._suspects.pop(replica.url, None) or OrderedDict()
        self._suspects[replica.url] = suspects  # the newest last, the fingerprints as the URLs
        fingerprint = self._fingerprint(body)
        suspects.pop(fingerprint, None)
        suspects[fingerprint] = now
        if len(suspects) > _MOST_SUSPECTS:
            suspects.popitem(last=False)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Let go of what nobody will be blamed for: engines come and go, each at its own URL."""
        while True:
            url, suspects = next(iter(self._suspects.items()))
            if now - next(reversed(suspects.values())) < _SUSPECT:
                return  # that which failed just now is the last
            del self._suspects[url]

    def died(self, replica: Replica) -> None:
        """The engine there is dead: what failed there just now was in flight then."""
        now = self._clock()
        for fingerprint, at in self._suspects.pop(replica.url, {}).items():
            if now - at < _SUSPECT:
                self.blame(fingerprint, replica.url)
                self.tell(fingerprint, replica.url)

    def blame(self, fingerprint: str, url: str) -> None:
        """One death more for this body, unless it is known; other processes tell of theirs, too."""
        now = self._clock()
        deaths = self._deaths.setdefault(fingerprint, [])
        if any(of == url and now - at < _SAME_DEATH for of, at in deaths):
            return
        self._deaths.move_to_end(fingerprint)
        deaths.append((url, now))
        del deaths[:-_DEATHS]
        if len(self._deaths) > _MOST_BODIES:
            self._deaths.popitem(last=False)
        recent = sum(now - at < _REMEMBERED for _, at in deaths)
        if recent < _DEATHS:
            told = "a body with the fingerprint %s (no request id) was in flight when %s died"
            logger.warning(told, fingerprint, url)
        else:
            told = (
                "the body with the fingerprint %s (no request id) was in flight when %s died, too; "
                "it is refused from now on"
            )
            logger.error(told, fingerprint, url)

    def _fingerprint(self, body: bytes) -> str:
        return blake2b(body, key=self._key, digest_size=12).hexdigest()
