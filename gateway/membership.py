"""Who the replicas of each model are now: its entries, with the addresses of names and the lines of
files in the place of those that stand for several.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from backends.members import EVERY, Lookup, Resolver, compared, looked_up
from gateway.checks import of_replica
from gateway.document import ConfigError, Document, Plain
from gateway.reader import Reader
from gateway.settings import Config, ReplicaSettings

logger = logging.getLogger("fairgate")

#: How often files are looked at, in seconds. One that changes is read when it has stopped.
_LOOK = 1.0
_LARGEST = 1 << 20
#: What a server of a list may say of itself; the rest its entry says for all of them.
_OF_ONE = ("url", "weight", "concurrency")


def at_addresses(entry: ReplicaSettings, addresses: Sequence[str]) -> tuple[ReplicaSettings, ...]:
    """What an entry with `dns` stands for. Where none is known yet it stands for itself, so that
    its model is there and fails with that reason.
    """
    assert entry.dns is not None
    if not addresses:
        return (replace(entry, url=entry.dns, dns=None),)
    path = "" if entry.base == "/v1" else entry.base
    return tuple(
        replace(
            entry,
            url=f"{entry.scheme}://{_bracketed(address)}:{entry.port}{path}",
            dns=None,
            server_name=entry.host,
        )
        for address in sorted(addresses)
    )


def in_file(entry: ReplicaSettings) -> tuple[ReplicaSettings, ...]:
    """What an entry with `file` stands for. Raises ConfigError, which names the line."""
    assert entry.file is not None
    path = entry.file
    try:
        with open(path, encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: not an ordinary file")
            text = file.read(_LARGEST + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: not a text in UTF-8") from None
    if len(text) > _LARGEST:
        raise ConfigError(f"{path}: longer than {_LARGEST} characters")
    return listed(path, text, entry)


def listed(source: str, text: str, entry: ReplicaSettings) -> tuple[ReplicaSettings, ...]:
    """The servers that a text names, on the terms of `entry`. Raises ConfigError.

    A URL a line, or a list in YAML or JSON of URLs and mappings; `#` begins a comment.
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    first = next(filter(None, lines), "")
    given = _of_document(source, text) if first[:1] in ("-", "[") else _of_lines(source, lines)
    found: dict[str, ReplicaSettings] = {}
    for one, error in given:
        changes = {name: value for name, value in one.items() if value is not None}
        try:
            server = replace(entry, file=None, **changes)
        except ValueError as exc:
            raise error(str(exc)) from None
        for _, problem in of_replica(server, ()):
            raise error(problem)
        if server.url in found:
            raise error(f"{server.url} is there twice")
        found[server.url] = server
    if not found:
        raise ConfigError(f"{source}: names no server")
    return tuple(found.values())


_Error = Callable[[str], ConfigError]
_Given = Iterator[tuple[dict[str, Any], _Error]]


def _of_lines(source: str, lines: Sequence[str]) -> _Given:
    for number, line in enumerate(lines, 1):
        if line:
            yield {"url": line}, _at_line(source, number)


def _at_line(source: str, number: int) -> _Error:
    return lambda message: ConfigError(f"{source}:{number}: {message}")


def _of_document(source: str, text: str) -> _Given:
    document = Document(source, text, {})
    reader = Reader(document)
    if not isinstance(document.value, list):
        raise document.error((), "wanted a list of servers")
    for index, item in enumerate(document.value):
        one: Plain = {"url": item} if isinstance(item, str) else item
        names = list(one) if isinstance(one, dict) else []
        for name in names:
            if name not in _OF_ONE:
                told = f"not for one server of a list; only {', '.join(_OF_ONE)} are"
                raise document.error((index, name), told)
        settings = reader.noun(ReplicaSettings, one, (index,))
        yield {name: getattr(settings, name) for name in names}, _at_item(document, index)


def _at_item(document: Document, index: int) -> _Error:
    return lambda message: document.error((index,), message)


class Membership:
    """The members of every model's pool. `run` keeps them true; `changed` is called when there are
    others, and may not raise.

    Mutable state: `_models`, the entries of each model; `_members`, what they stand for; `_plain`,
    the hosts of servers without a model; `_lists`, the last good list of each entry with a file;
    `_seen`, its file as it was at the last look, `_read`, as it was when last read, and `_faults`,
    what is wrong with it now.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        lookup: Lookup = looked_up,
        every: float = EVERY,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changed = changed
        self._sleep = sleep
        self._resolver = Resolver(lambda _: self._refresh(), lookup=lookup, every=every)
        self._models: dict[str, tuple[ReplicaSettings, ...]] = {}
        self._members: dict[str, tuple[ReplicaSettings, ...]] = {}
        self._plain: frozenset[str] = frozenset()
        self._lists: dict[ReplicaSettings, tuple[ReplicaSettings, ...]] = {}
        self._seen: dict[ReplicaSettings, _Stamp] = {}
        self._read: dict[ReplicaSettings, _Stamp] = {}
        self._faults: dict[ReplicaSettings, str] = {}

    @property
    def addresses(self) -> Callable[[str], Sequence[str]]:
        """Where a host is, for the transport: known at once, or not at all."""
        return self._resolver.addresses

    def want(self, config: Config) -> None:
        """Watch what this configuration names, and nothing else. What was learnt stays."""
        self._models = {name: model.replicas for name, model in config.models.items()}
        self._plain = frozenset(backend.host for backend in config.backends)
        entries = {entry for several in self._models.values() for entry in several}
        for known in (self._lists, self._seen, self._read, self._faults):
            for entry in [entry for entry in known if entry not in entries]:
                del known[entry]
        self._members = {name: self.members(these) for name, these in self._models.items()}
        self._resolver.want(self._hosts())

    def members(self, entries: Iterable[ReplicaSettings]) -> tuple[ReplicaSettings, ...]:
        """What entries stand for now, each server once; also those that are not watched yet."""
        found: dict[str, ReplicaSettings] = {}
        for entry in entries:
            for server in self._servers(entry):
                found.setdefault(server.url, server)
        return tuple(found.values())

    async def asked(self) -> None:
        """Wait until each name was asked for once, whatever came of it. `run` is under way."""
        await self._resolver.asked()

    async def run(self) -> None:
        """Keep the members true, until cancelled."""
        await asyncio.gather(self._resolver.run(), self._watch())

    def _servers(self, entry: ReplicaSettings) -> tuple[ReplicaSettings, ...]:
        if entry.dns is not None:
            return at_addresses(entry, self._resolver.addresses(entry.host))
        if entry.file is None:
            return (entry,)
        if entry not in self._lists:
            self._lists[entry] = ()
            self._read_list(entry, _stamp(entry))
        return self._lists[entry]

    async def _watch(self) -> None:
        while True:
            await self._sleep(_LOOK)
            others = [self._look(entry) for entry in list(self._lists)]
            if any(others):
                self._refresh()

    def _look(self, entry: ReplicaSettings) -> bool:
        """Whether a file has another list. One that is being written is left alone."""
        stamp = _stamp(entry)
        still = stamp == self._seen.get(entry, _NEVER)
        self._seen[entry] = stamp
        if not still or stamp == self._read.get(entry, _NEVER):
            return False
        return self._read_list(entry, stamp)

    def _read_list(self, entry: ReplicaSettings, stamp: _Stamp) -> bool:
        self._read[entry] = stamp
        before = self._lists[entry]
        try:
            self._lists[entry] = in_file(entry)
        except ConfigError as exc:
            if self._faults.get(entry) != str(exc):
                self._faults[entry] = str(exc)
                logger.warning("%s; its last good list is kept", exc)
            return False
        if self._faults.pop(entry, None) is not None:
            logger.warning("%s is good again", entry.file)
        return self._lists[entry] != before

    def _refresh(self) -> None:
        before = self._members
        self._members = {name: self.members(these) for name, these in self._models.items()}
        self._resolver.want(self._hosts())
        for name, members in self._members.items():
            urls = ([one.url for one in before[name]], [one.url for one in members])
            for servers, what in zip(compared(*urls), ("joined", "left"), strict=True):
                if servers:
                    logger.info("model %s: %s %s", name, ", ".join(servers), what)
        if self._members != before:
            self._changed()

    def _hosts(self) -> set[str]:
        members = (server for servers in self._members.values() for server in servers)
        return {server.host for server in members} | self._plain


#: A file's state: when it changed, its size and its number; None where it is not there.
_Stamp = tuple[int, int, int] | None
_NEVER = (0, 0, 0)


def _stamp(entry: ReplicaSettings) -> _Stamp:
    assert entry.file is not None
    try:
        found = os.stat(entry.file)
    except OSError:
        return None
    return found.st_ctime_ns, found.st_size, found.st_ino


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
