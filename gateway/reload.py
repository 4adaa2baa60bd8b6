"""Another configuration while the gateway runs: noticed, read, loaded whole or not at all, told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from gateway import config as configuration
from gateway.checks import Problem
from gateway.document import ConfigError, Document, Path
from gateway.fleet import BadFile, tls_context
from gateway.limits.rulebook import Rulebook
from gateway.logs import told_safely
from gateway.metrics import Counts
from gateway.port import certificate
from gateway.settings import Config, Key, Team

logger = logging.getLogger("fairgate")

#: How often the file is looked at, in seconds. One that changed is read when two looks agree.
_LOOK = 1.0

#: What is made once, at the start: listening sockets, processes, the store of limits, buffers.
#: Everything else is taken from a new configuration. A setting is in one of the two lists.
AT_THE_START: tuple[Path, ...] = (
    ("listen",),
    ("admin_listen",),
    ("admin_key_sha256",),
    ("tls", "cert_file"),
    ("tls", "key_file"),
    ("trusted_proxies",),
    ("workers",),
    ("secret",),
    ("redis",),
    ("redis_prefix",),
    ("when_redis_is_down",),
    ("bounds", "bodies"),
    ("bounds", "log_lines"),
)
AT_ANY_TIME: tuple[Path, ...] = (
    ("cors",),
    ("models",),
    ("teams",),
    ("keys",),
    ("limits",),
    ("request",),
    ("timeouts",),
    ("bounds", "connections"),
    ("bounds", "header"),
    ("bounds", "header_fields"),
    ("bounds", "event"),
    ("backends",),
)

Stamp = tuple[int, int, int, int] | None


class Source:
    """Where the configuration comes from: a file, `-` for standard input, None for no file.

    `over` lays the command line over what the file says; `key` is for a gateway without keys.

    Mutable state: `stamps`, the files as they were when they were read last; `lasting`, whether it
    can be read again; `_files`, its file and the certificates it names; `_text`.
    """

    def __init__(
        self,
        path: str | None,
        environ: Mapping[str, str],
        over: Callable[[Config], Config] = lambda config: config,
        key: Key | None = None,
    ) -> None:
        self.lasting = False
        self.stamps: Sequence[Stamp] = ()
        self._path = path
        self._environ = environ
        self._over = over
        self._key = key
        self._files: Sequence[str] = ()
        self._text = ""

    def read(self) -> Config:
        """The whole configuration, checked. Raises ConfigError."""
        if self._path is None:
            return self._with_key(self._over(Config()))
        # A pipe has nothing more to say.
        self.lasting = self._path != "-" and os.path.isfile(self._path)
        before = _stamp(self._path)
        config = self._loaded()
        tls = (config.tls.cert_file, config.tls.key_file)
        self._files = (self._path, *(file for file in tls if file is not None))
        self.stamps = (before, *map(_stamp, self._files[1:]))
        return config

    def read_again(self, running: Config) -> Config:
        """As `read`, and refuses what cannot take the place of `running`. Raises ConfigError."""
        self.stamps = self.looked()
        config = self._loaded()
        for path, message in self._unfit(running, config):
            raise Document(self._name, self._text, self._environ).error(path, message)
        return config

    def looked(self) -> Sequence[Stamp]:
        """The files as they are now."""
        return tuple(map(_stamp, self._files))

    @property
    def _name(self) -> str:
        return "standard input" if self._path == "-" else str(self._path)

    def _loaded(self) -> Config:
        assert self._path is not None
        self._text = configuration.text(self._path)
        config = configuration.load(self._name, self._text, self._environ)
        return self._with_key(self._over(config))

    def _with_key(self, config: Config) -> Config:
        if config.keys or self._key is None:
            return config
        return configuration.override(config, keys=(self._key,), teams={self._key.team: Team()})

    def _unfit(self, running: Config, config: Config) -> Iterator[Problem]:
        if all(line.lstrip()[:1] in ("", "#") for line in self._text.splitlines()):
            yield (), "is empty: every default is a configuration, but hardly one that is meant"
        yield from restarts(running, config)
        if self._key in config.keys and self._key not in running.keys:
            yield ("keys",), "removing the last one needs a restart"
        yield from unusable(config)


def restarts(running: Config, config: Config) -> Iterator[Problem]:
    """The settings that a running gateway cannot change and that are others here."""
    for path in AT_THE_START:
        if _at(running, path) != _at(config, path):
            yield path, "changing it needs a restart"


def unusable(config: Config) -> Iterator[Problem]:
    """The files that can be read and are of no use."""
    why = certificate(config)
    if why:
        yield ("tls",), why
    for name, model in config.models.items():
        for index, replica in enumerate(model.replicas):
            if replica.ca_file is None:
                continue
            try:
                tls_context(replica)
            except BadFile as exc:
                yield ("models", name, "replicas", index, "ca_file"), str(exc)


def changes(old: Config, new: Config) -> str:
    """What is different, for one line of the log; empty where nothing is."""
    told = [
        _counted("model", old.models, new.models),
        _counted("team", old.teams, new.teams),
        _counted("key", {k.name: k for k in old.keys}, {k.name: k for k in new.keys}),
        _counted("limit", _limits(old), _limits(new)),
    ]
    told += [
        f"{'.'.join(map(str, path))} changed"
        for path in AT_ANY_TIME
        if path[0] not in ("models", "teams", "keys", "limits") and _at(old, path) != _at(new, path)
    ]
    return "; ".join(filter(None, told))


class Reloads:
    """Takes over new configurations, one at a time. `apply` serves with one: all of it, or it
    raises. `why_not` says why now is no time for that, empty where it is.

    Mutable state: `config`, the one in force; how many were taken over and refused, and whether
    the last was; `_asked`, whether someone asked for one.
    """

    def __init__(
        self,
        source: Source | None,
        config: Config,
        apply: Callable[[Config], Awaitable[None]],
        why_not: Callable[[], str],
    ) -> None:
        self.config = config
        self.source = source
        self._apply = apply
        self._why_not = why_not
        self._taken = 0
        self._refused = 0
        self._last = True
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Someone wants the configuration read again now."""
        why_not = self._why_not()
        if self.source is None or not self.source.lasting:
            why_not = "there is no file to read again; --config FILE names one"
        if why_not:
            logger.warning("configuration not reloaded: %s", why_not)
        else:
            self._asked.set()

    async def run(self) -> None:
        """Look for a new configuration until cancelled."""
        source = self.source
        before: Sequence[Stamp] = ()
        while source is not None and source.lasting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                await self._reload(source)
                continue
            now = await asyncio.to_thread(source.looked)
            still, before = now == before, now
            if still and None not in now and now != source.stamps and not self._why_not():
                await self._reload(source)

    def counts(self) -> Counts:
        results = (("ok", self._taken), ("refused", self._refused))
        return {
            "config_reloads": [([result], [n]) for result, n in results],
            "config_last_reload_successful": [([], [int(self._last)])],
        }

    async def _reload(self, source: Source) -> None:
        try:
            # In a thread: while a long file is read, requests go on.
            config = await asyncio.to_thread(source.read_again, self.config)
            different = await asyncio.to_thread(changes, self.config, config)
            await self._apply(config)
        except ConfigError as exc:
            self._refuse(str(exc))
        except Exception as exc:  # whatever is wrong: what runs must go on
            self._refuse(told_safely(exc))
        else:
            self._taken, self._last, self.config = self._taken + 1, True, config
            logger.info("configuration reloaded: %s", different or "nothing changed")

    def _refuse(self, why: str) -> None:
        self._refused += 1
        self._last = False
        logger.error("configuration not reloaded, the old one stays: %s", why)


def _stamp(path: str) -> Stamp:
    """What differs once a file was written or replaced, behind links too; None without one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _at(config: Config, path: Path) -> Any:
    value: Any = config
    for step in path:
        value = getattr(value, str(step))
    return value


def _limits(config: Config) -> dict[str, tuple[int, int]]:
    return {rule.key: (rule.limit, rule.burst) for rule in Rulebook(config).owned()}


def _counted(noun: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """`models: 2 added, 1 changed`; empty where nothing is different."""
    numbers = {
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "changed": sum(old[name] != new[name] for name in old.keys() & new.keys()),
    }
    told = ", ".join(f"{number} {how}" for how, number in numbers.items() if number)
    return f"{noun}s: {told}" if told else ""
