"""Configuration → the live objects a request meets, and what is learnt of the servers over time."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from backends import discovery
from backends.base import Origin, Replica
from backends.connection import Limits
from backends.errors import BackendError
from backends.kinds import KINDS
from backends.policies import POLICIES
from backends.pool import Means, Pool
from backends.quarantine import Quarantine
from backends.transport import Transport
from gateway.accept import Bodies
from gateway.account import Account
from gateway.admit import Admission
from gateway.authenticate import ConfiguredKeys
from gateway.estimate import Estimates
from gateway.exchange import Gateway
from gateway.limits.base import Counter
from gateway.limits.courier import Courier
from gateway.limits.memory import Alone, microseconds
from gateway.limits.redis import Redis
from gateway.limits.report import Report
from gateway.limits.rulebook import Rulebook
from gateway.logs import LineLog
from gateway.metrics import Metrics
from gateway.route import Route, Routes, Split
from gateway.salts import Salts
from gateway.settings import Config, Model, ReplicaSettings
from gateway.terms import Principal

logger = logging.getLogger("fairgate")

#: How often a server that has not answered yet is asked again, in seconds.
_ASK_AGAIN = 2.0


class Composition:
    """Everything one process serves with, made from one configuration.

    Mutable state: the routes' table, which grows as servers of an unnamed configuration answer.
    """

    def __init__(
        self, config: Config, secret: str, log: LineLog, clock: Callable[[], float]
    ) -> None:
        self.config = config
        times = config.timeouts
        self.transport = Transport(Limits(connect=times.connect, tls=times.tls))
        self.routes = Routes({})
        self.metrics = Metrics(self.routes)
        self.metrics.teams.learn(key.team for key in config.keys)
        quarantine = Quarantine(secret.encode(), clock)
        self.means = Means(self.transport, self.metrics, quarantine, clock)
        self._replicas: dict[ReplicaSettings, Replica] = {}
        for name, model in config.models.items():
            if model.split is not None:
                self._split(name, model, model.split)
                continue
            replicas = [self._replica(settings) for settings in model.replicas]
            self._add(name, model, replicas)
        self._configured = frozenset((*self.routes.table, *self.routes.splits))
        self.rulebook = Rulebook(config)
        self.courier = _courier(config)
        self.counter: Counter = self.courier or Alone(microseconds())
        mode = None if config.redis is None else config.when_redis_is_down
        self.report = Report(self.rulebook, self.counter, mode, microseconds())
        self.gateway = Gateway(
            config=config,
            keys=ConfiguredKeys(principals(config)),
            routes=self.routes,
            admission=Admission(self.rulebook, Estimates(), self.counter),
            account=Account(self.metrics, log, clock),
            bodies=Bodies(config.bounds.bodies),
            salts=Salts(secret),
            largest_body=_largest_body(config),
        )

    async def learn(self, asked: Callable[[], None]) -> None:
        """Ask every server what it is until each has answered; `asked` after the first round."""
        unnamed = [self._replica(settings) for settings in self.config.backends]
        waiting = {id(replica): replica for replica in self._replicas.values()}
        told: set[str] = set()
        while waiting:
            answers = await asyncio.gather(*(self._ask(r, told) for r in waiting.values()))
            for replica, served in zip(list(waiting.values()), answers, strict=True):
                if served is None:
                    continue
                del waiting[id(replica)]
                if replica in unnamed:
                    self._discovered(replica, served)
                else:
                    self._length(replica, served)
            asked()
            if waiting:
                await asyncio.sleep(_ASK_AGAIN)
        asked()

    async def _ask(self, replica: Replica, told: set[str]) -> list[discovery.Served] | None:
        try:
            served = await discovery.models(self.transport, replica)
        except BackendError as exc:
            if replica.url not in told:
                told.add(replica.url)
                logger.warning("%s does not answer yet (%s)", replica.url, type(exc).__name__)
            return None
        try:
            replica.fields = await discovery.fields(self.transport, replica)
        except BackendError:
            replica.fields = {}  # no schema: nothing is known, so nothing is left out
        if replica.url in told:
            logger.warning("%s answers now", replica.url)
        return served

    def _discovered(self, replica: Replica, served: Iterable[discovery.Served]) -> None:
        for model in served:
            if model.name in self._configured:
                continue  # its caps and servers are those of the configuration
            known = self.routes.table.get(model.name)
            replicas = [*known.pool.replicas, replica] if known else [replica]
            settings = Model(timeouts=self.config.timeouts, request=self.config.request)
            length = _shortest(model.max_model_len, known.max_model_len if known else None)
            self._add(model.name, settings, replicas, length)

    def _length(self, replica: Replica, served: Sequence[discovery.Served]) -> None:
        for name, route in list(self.routes.table.items()):
            if replica not in route.pool.replicas:
                continue
            lengths = [s.max_model_len for s in served if s.name == route.upstream_model]
            shortest = _shortest(route.max_model_len, *lengths)
            self.routes.table[name] = replace(route, max_model_len=shortest)

    def _add(
        self, name: str, model: Model, replicas: Sequence[Replica], length: int | None = None
    ) -> None:
        policy = POLICIES[model.policy]()
        kind = KINDS[model.kind]
        pool = Pool(name, kind, replicas, policy, self.means)
        teams = self.config.teams.items()
        route = Route(
            model=name,
            pool=pool,
            upstream_model=model.upstream_model or name,
            caps=model.request,
            timeouts=model.timeouts,
            event_limit=self.config.bounds.event,
            caps_by_team={t: s.request.over(model.request) for t, s in teams if s.request.given},
            headers=f"x-fairgate-model: {name}\r\n".encode(),
            usage_in_streams=model.usage_in_streams == "auto",
            max_model_len=length,
            cached_token_weight=model.cached_token_weight,
            fallback=model.fallback,
        )
        for known_as in (name, *model.aliases):
            self.routes.table[known_as] = route
        self.metrics.models.learn((name, *model.aliases))

    def _split(self, name: str, model: Model, sides: Mapping[str, int]) -> None:
        split = Split(name, sides)
        for known_as in (name, *model.aliases):
            self.routes.splits[known_as] = split
        self.metrics.models.learn((name, *model.aliases))

    def _replica(self, settings: ReplicaSettings) -> Replica:
        """One object for a server on the same terms, so that models sharing it share its counts."""
        replica = self._replicas.get(settings)
        if replica is None:
            replica = self._replicas[settings] = Replica(
                url=settings.url,
                origin=Origin(settings.host, settings.port, _tls(settings)),
                base=settings.base,
                weight=settings.weight,
                concurrency=settings.concurrency,
                credential=settings.api_key,
            )
        return replica


def principals(config: Config) -> dict[bytes, Principal]:
    """Every configured key by its digest, with what its team allows folded in."""
    known = {}
    for key in config.keys:
        team = config.teams.get(key.team)
        given = (key.models, team.models if team else None)
        allowed = [set(models) for models in given if models is not None]  # an empty list: none
        known[bytes.fromhex(key.sha256)] = Principal(
            key=key.name,
            team=key.team,
            models=frozenset(set.intersection(*allowed)) if allowed else None,
            expires=key.expires.timestamp() if key.expires else None,
        )
    return known


def _courier(config: Config) -> Courier | None:
    if config.redis is None:
        return None
    store = Redis(config.redis, config.redis_prefix)
    return Courier(store, config.when_redis_is_down, microseconds(), config.workers)


def _shortest(*lengths: int | None) -> int | None:
    return min((length for length in lengths if length is not None), default=None)


def _tls(settings: ReplicaSettings) -> ssl.SSLContext | None:
    if settings.scheme != "https":
        return None
    return ssl.create_default_context(cafile=settings.ca_file)


def _largest_body(config: Config) -> int:
    sizes = [config.request.body]
    for model in config.models.values():
        sizes.append(model.request.body)
        sizes.extend(team.request.over(model.request).body for team in config.teams.values())
    return max(sizes)
