"""Counts kept in Redis, for all workers and gateways that share it. The one door to Redis.

Every call is one script, so that it happens whole or not at all, in one round trip. All keys have
one hash tag: in a cluster they are on one node, where one script can see them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha1
from importlib import resources
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from redis.asyncio import Redis as Client
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from gateway.limits.base import (
    Claim,
    Decision,
    Form,
    Level,
    Rule,
    Settlement,
    Unavailable,
)
from gateway.units import redis_hosts

#: The most settlements, claims or rules in one call: Redis does nothing else meanwhile.
MOST = 128
#: How long a reservation waits for its settlement, in milliseconds; a renewal starts it anew.
REMEMBERED = 15 * 60 * 1000

_PORT, _SENTINEL_PORT = 6379, 26379
#: How long a sentinel, or a node of a cluster, may take before the next one is asked, in seconds.
_ASIDE = 0.15
#: What a connection to a sentinel shares with those to Redis itself; its users are its own.
_SENTINELS = ("protocol", "driver_info", "retry", "ssl", "ssl_ca_certs", "ssl_check_hostname")
_Answer = tuple[int, int, list[Level]]
_answers = msgspec.msgpack.Decoder(tuple[int, list[_Answer]])
_levels = msgspec.msgpack.Decoder(list[Level])


class BadUrl(Exception):
    """Raised for a URL that redis-py makes nothing of; the text never holds a password."""


class Script:
    """A script of files one after the other; `sha` is what Redis knows it by once it has it."""

    def __init__(self, *names: str) -> None:
        folder = resources.files("gateway.limits")
        self.text = "\n".join((folder / f"{name}.lua").read_text() for name in names)
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """A store in Redis.

    Mutable state: `workers`, how many were heard of at the last renewal; the connections.
    """

    turning = Script("rules", "settle", "decide")
    renewing = Script("rules", "renew")
    looking = Script("rules", "levels")

    def __init__(self, url: str, prefix: str) -> None:
        """Raises BadUrl. Connects to nothing yet."""
        self.workers = 1
        self._client, *self._sentinels = checked(clients, url)
        self._prefix = prefix
        self._worker = secrets.token_hex(8)

    async def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim]
    ) -> Sequence[Decision]:
        places: dict[Rule, int] = {}
        ended = [
            [0, s.id, s.close, [(_place(places, r), was, used) for r, was, used in s.lines]]
            for s in settlements
        ]
        asked = [[0, c.id, [(_place(places, r), amount) for r, amount in c.lines]] for c in claims]
        reservations = self._number(len(places), ended + asked, [*settlements, *claims])
        keys = [*self._keys(places), *reservations]
        rules = [rule.params for rule in places]
        answer = await self._run(self.turning, keys, rules, ended, asked, REMEMBERED)
        at, decided = _answers.decode(answer)
        return [Decision(at, levels, no - 1 if no else None, wait) for no, wait, levels in decided]

    async def renew(self, claims: Sequence[Claim]) -> None:
        places: dict[Rule, int] = {}
        live = [
            [0, c.id, [(_place(places, r), slots) for r, slots in c.lines if r.form is Form.SLOTS]]
            for c in claims
        ]
        reservations = self._number(len(places), live, claims)
        keys = [*self._keys(places), *reservations, f"{self._prefix}:workers"]
        rules = [rule.params for rule in places]
        self.workers = int(
            await self._run(self.renewing, keys, rules, live, REMEMBERED, self._worker)
        )

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        if not rules:
            return []
        params = [rule.params for rule in rules]
        return _levels.decode(await self._run(self.looking, self._keys(rules), params))

    async def reset(self, rules: Sequence[Rule]) -> None:
        keys = self._keys(rule for rule in rules if rule.form is not Form.SLOTS)
        if keys:
            await self._asked(self._client.delete(*keys))

    async def probe(self) -> None:
        """Whether it answers and takes writes: a replica and one that loads answer, but do not."""
        await self._asked(self._client.ping())
        await self._asked(self._client.set(f"{self._prefix}:probe", "1", px=1000))

    async def close(self) -> None:
        for each in (self._client, *self._sentinels):
            await each.aclose()

    def _keys(self, rules: Iterable[Rule]) -> list[str]:
        return [f"{self._prefix}:{rule.key}" for rule in rules]

    def _number(self, rules: int, packed: list[list[Any]], of: Sequence[Any]) -> list[str]:
        """Give each entry the place of its reservation's key, after those of the rules."""
        for place, entry in enumerate(packed, rules + 1):
            entry[0] = place
        return [f"{self._prefix}:r:{each.id}" for each in of]

    async def _run(self, script: Script, keys: Sequence[str], *told: Any) -> Any:
        packed = msgspec.msgpack.encode(told)
        try:
            return await self._asked(self._client.evalsha(script.sha, len(keys), *keys, packed))
        except NoScriptError:
            return await self._asked(self._client.eval(script.text, len(keys), *keys, packed))

    async def _asked(self, answer: Any) -> Any:
        try:
            return await answer
        except NoScriptError:
            raise
        except (RedisError, OSError) as exc:
            raise Unavailable(f"{type(exc).__name__}: {exc}") from None


def _place(places: dict[Rule, int], rule: Rule) -> int:
    return places.setdefault(rule, len(places) + 1)


def checked(make: Callable[[str], Sequence[Any]], url: str) -> Sequence[Any]:
    """What is made of a URL, if redis-py knows all its parameters. Raises BadUrl."""
    try:
        made = make(url)
        pool = getattr(made[0], "connection_pool", None)
        if pool is not None:
            pool.make_connection()  # it looks at its parameters only now
    except (TypeError, ValueError) as exc:
        told = str(exc).partition("got an ")[2] or str(exc)
        raise BadUrl(f"the URL's parameters are not understood: {told}") from None
    return made


def clients(url: str) -> Sequence[Any]:
    """A client that asks once, speaks no more than it must, and waits for as long as it is let,
    but for no node of a cluster longer than `_ASIDE`; then those it uses, to be closed too.

    `redis://`, `rediss://`, `redis+sentinel://host,host/service/db` or `redis+cluster://host,host`,
    with redis-py's own parameters after `?` (`ssl_ca_certs=...`).
    """
    settings: dict[str, Any] = {
        "protocol": 2,
        "driver_info": None,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    rest, hosts = redis_hosts(url)
    parts = urlsplit(rest)
    scheme = parts.scheme.partition("+")[2]
    if not scheme:
        return [Client.from_url(url, **settings)]
    _, service, db, *_ = (*parts.path.split("/"), "", "")
    plain = urlunsplit(("redis", parts.netloc, f"/{db}", parts.query, ""))
    told = {k: v for k, v in parse_url(plain).items() if k != "host"}
    aside = {"socket_timeout": _ASIDE, "socket_connect_timeout": _ASIDE}
    if scheme == "sentinel":
        settings |= told
        nodes = [_host(host, _SENTINEL_PORT) for host in hosts]
        own = {name: settings[name] for name in _SENTINELS if name in settings}
        sentinel = Sentinel(nodes, 0, own | aside, **settings)  # type: ignore[no-untyped-call]
        return [sentinel.master_for(service), *sentinel.sentinels]
    startup = [ClusterNode(*_host(host, _PORT)) for host in hosts]
    told.pop("db", None)
    return [RedisCluster(startup_nodes=startup, **settings | aside | told)]


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or port
