"""Configuration → the live objects a request meets; another configuration → others in their place.

What is counted, learnt and under way stays over a reload; the rest is made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakSet

from backends.base import Kind, Replica
from backends.kinds import KINDS
from backends.policies import POLICIES
from backends.pool import Means, Pool
from backends.quarantine import Quarantine
from backends.transport import Transport
from gateway.accept import Bodies
from gateway.account import Account
from gateway.admit import Admission
from gateway.authenticate import ConfiguredKeys
from gateway.diagnosis import misnamed, place
from gateway.estimate import Estimates
from gateway.exchange import Gateway
from gateway.fleet import BadFile, Fleet, Replicas
from gateway.limits.base import Counter
from gateway.limits.courier import Courier
from gateway.limits.memory import Alone, microseconds
from gateway.limits.redis import Redis
from gateway.limits.report import Report
from gateway.limits.rulebook import Rulebook, Rules
from gateway.logs import LineLog
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.route import Route, Routes, Split
from gateway.salts import Salts
from gateway.settings import Config, Model, ReplicaSettings
from gateway.terms import Principal

_NO_POOLS: Mapping[str, Pool] = {}

logger = logging.getLogger("fairgate")


class Composition:
    """Everything one process serves with.

    Mutable state: `config`, the newest; what was made of it, `rulebook`, `report` and `gateway`,
    which a reload replaces; its routes, which grow as servers of an unnamed configuration answer;
    `_misnamed`, what was told of servers that have not the model they are asked for.
    """

    def __init__(
        self, config: Config, secret: str, log: LineLog, clock: Callable[[], float]
    ) -> None:
        """Raises BadFile and BadUrl."""
        self.config = config
        self.membership = Membership(self._moved)
        self.transport = Transport(addresses=self.membership.addresses)
        self.metrics = Metrics(self)
        quarantine = Quarantine(secret.encode(), clock)
        self.means = Means(self.transport, self.metrics, quarantine, clock)
        self.fleet = Fleet(self.transport, self._heard, self._models_of)
        self.courier = _courier(config)
        self.counter: Counter = self.courier or Alone(microseconds())
        self._rules = Rules()
        self._misnamed: frozenset[str] = frozenset()
        #: Pools of configurations before this one, for as long as requests hold them.
        self._left: WeakSet[Pool] = WeakSet()
        self.rulebook = Rulebook(config, self._rules)
        self.gateway = Gateway(
            config=config,
            keys=ConfiguredKeys({}),
            routes=Routes({}),
            admission=Admission(self.rulebook, Estimates(), self.counter),
            account=Account(self.metrics, log, clock),
            bodies=Bodies(config.bounds.bodies),
            salts=Salts(secret),
            largest_body=0,
        )
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Serve new requests by another configuration; those under way keep what they began with.

        Whole or not at all: raises BadFile, and then nothing has changed.
        """
        pools = {pool.name: pool for pool in self.routes.pools()}
        draft = self.fleet.drafted(self._servers(config))
        routes = self._routed(config, draft, pools)
        keys = ConfiguredKeys(principals(config))

        # From here on nothing fails.
        self.fleet.adopt(draft)
        self.membership.want(config)
        self.config = config
        times = config.timeouts
        self.transport.limits = replace(self.transport.limits, connect=times.connect, tls=times.tls)
        self.rulebook = Rulebook(config, self._rules)
        mode = None if config.redis is None else config.when_redis_is_down
        self.report = Report(self.rulebook, self.counter, mode, microseconds())
        estimates = self.gateway.admission.estimates
        self.gateway = replace(
            self.gateway,
            config=config,
            keys=keys,
            routes=routes,
            admission=Admission(self.rulebook, estimates, self.counter),
            largest_body=_largest_body(config),
        )
        self._unnamed = tuple(draft[settings] for settings in config.backends)
        self.metrics.models.learn((*routes.table, *routes.splits))
        self.metrics.teams.learn(key.team for key in config.keys)
        self._heard(pools)
        self._left.update(pools.values())

    @property
    def routes(self) -> Routes:
        """Those of the newest configuration."""
        return self.gateway.routes

    def replicas(self) -> list[tuple[Replica, Kind]]:
        """Every replica in use, once, with the software that it is taken for."""
        found: dict[Replica, Kind] = {}
        for pool in self.routes.pools():
            for replica in pool.replicas:
                found.setdefault(replica, pool.kind)
        for replica in self._unnamed:
            found.setdefault(replica, KINDS[Model().kind])
        return list(found.items())

    def probed(self) -> list[tuple[ReplicaSettings, str]]:
        """The same, as another process can have them: their settings, and the name of the kind."""
        settings = self.fleet.settings()
        return [(settings[replica], kind.name) for replica, kind in self.replicas()]

    def pools(self) -> list[Pool]:
        """Those in use, and those that only live requests still hold."""
        pools = self.routes.pools()
        return [*pools, *(pool for pool in self._left if pool.held and pool not in pools)]

    async def learn(self, asked: Callable[[], None]) -> None:
        """Ask every server what it is until it has answered; `asked` after the first round.

        Goes on for the servers of later configurations, until it is cancelled.
        """
        await asyncio.gather(self.membership.run(), self._learn(asked))

    async def _learn(self, asked: Callable[[], None]) -> None:
        await self.membership.asked()  # before, no name leads anywhere
        await self.fleet.learn(asked)

    def _moved(self) -> None:
        """The members of some pools are others now: requests from here on go to these."""
        pools = {pool.name: pool for pool in self.routes.pools()}
        try:
            draft = self.fleet.drafted(self._servers(self.config))
        except BadFile as exc:
            logger.warning("%s; the replicas stay as they were", exc)
            return
        routes = self._routed(self.config, draft, pools)
        self.fleet.adopt(draft)
        self.routes.table |= routes.table
        self._heard(pools)
        self._left.update(pools.values())

    def _servers(self, config: Config) -> list[ReplicaSettings]:
        """Every server there is now, those that entries stand for among them."""
        models = config.models.values()
        servers = [one for model in models for one in self.membership.members(model.replicas)]
        return [*servers, *config.backends]

    def _heard(self, before: Mapping[str, Pool] = _NO_POOLS) -> None:
        """Lay what the servers say now over the routes: how long models are, and which there are.

        A configured name has the caps and servers of the configuration, whoever else serves it.
        Pools of the time `before` go on where nothing of them changed.
        """
        routes, config = self.routes, self.config
        configured = {*config.models, *(a for m in config.models.values() for a in m.aliases)}
        found: dict[str, list[Replica]] = {}
        for replica in self._unnamed:
            for model in replica.capability.models:
                if model.name not in configured:
                    found.setdefault(model.name, []).append(replica)
        settings = Model(timeouts=config.timeouts, request=config.request)
        for name in routes.table.keys() - configured - found.keys():
            del routes.table[name]
        for name, replicas in found.items():
            known = routes.table.get(name)
            pool = self._pool(name, settings, replicas, {name: known.pool} if known else before)
            if known is None or pool is not known.pool:
                routes.table[name] = _route(config, name, settings, pool)
                self.metrics.models.learn((name,))
        for name, route in routes.table.items():
            length = _length(route)
            if length != route.max_model_len:
                routes.table[name] = replace(route, max_model_len=length)
        self._tell_misnamed()

    def _tell_misnamed(self) -> None:
        """Say which servers are asked for a model they have not, once each: calls there fail."""
        found = frozenset(
            f"{place(replica.url, [route.model])}: {wrong}"
            for route in self.routes.table.values()
            for replica in route.pool.replicas
            if (has := [served.name for served in replica.capability.models])
            and (wrong := misnamed(route.model, route.upstream_model, has))
        )
        for line in sorted(found - self._misnamed):
            logger.warning(line)
        self._misnamed = found

    def _models_of(self, replica: Replica) -> list[str]:
        return [pool.name for pool in self.routes.pools() if replica in pool.replicas]

    def _routed(self, config: Config, draft: Replicas, before: Mapping[str, Pool]) -> Routes:
        routes = Routes({})
        for name, model in config.models.items():
            names = (name, *model.aliases)
            if model.split is not None:
                routes.splits |= dict.fromkeys(names, Split(name, model.split))
                continue
            members = self.membership.members(model.replicas)
            pool = self._pool(name, model, [draft[one] for one in members], before)
            routes.table |= dict.fromkeys(names, _route(config, name, model, pool))
        return routes

    def _pool(
        self, name: str, model: Model, replicas: Sequence[Replica], before: Mapping[str, Pool]
    ) -> Pool:
        """The pool as it was, where nothing of it changed: it knows how things went."""
        kind, policy = KINDS[model.kind], POLICIES[model.policy]
        known = before.get(name)
        wanted = (kind, policy, tuple(replicas))
        if known is not None and (known.kind, type(known.policy), known.replicas) == wanted:
            return known
        return Pool(name, kind, replicas, policy(), self.means)


def _route(config: Config, name: str, model: Model, pool: Pool) -> Route:
    teams = config.teams.items()
    return Route(
        model=name,
        pool=pool,
        upstream_model=model.upstream_model or name,
        caps=model.request,
        timeouts=model.timeouts,
        event_limit=config.bounds.event,
        caps_by_team={t: s.request.over(model.request) for t, s in teams if s.request.given},
        headers=f"x-fairgate-model: {name}\r\n".encode(),
        usage_in_streams=model.usage_in_streams == "auto",
        cached_token_weight=model.cached_token_weight,
        fallback=model.fallback,
    )


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


def _length(route: Route) -> int | None:
    """That of its shortest server, as far as they say it."""
    models = (model for replica in route.pool.replicas for model in replica.capability.models)
    lengths = [m.max_model_len for m in models if m.name == route.upstream_model]
    return min((length for length in lengths if length is not None), default=None)


def _largest_body(config: Config) -> int:
    sizes = [config.request.body]
    for model in config.models.values():
        sizes.append(model.request.body)
        sizes.extend(team.request.over(model.request).body for team in config.teams.values())
    return max(sizes)
