"""Which rules hold for whom: the configuration's limits as rules, by key, team and model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from weakref import WeakValueDictionary

from gateway.document import listed
from gateway.limits.base import Rule, Scope
from gateway.settings import Config, Limits
from gateway.terms import Principal


class NoSuchOwner(Exception):
    """Raised for a key or a team that is not configured; the text names those that are."""


class Rules:
    """The rules of one process, over all its configurations: one object for each key.

    So no call ever has two rules of one key, and a request let in under an old limit is settled
    by the new one.

    Mutable state: those in use anywhere, also by requests under way.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, Rule] = WeakValueDictionary()

    def of(self, scope: Scope, owner: tuple[str, ...], limits: Limits) -> tuple[Rule, ...]:
        """What `limits` say of one owner. Rules that are known already go on with these limits."""
        given = [
            Rule(scope, owner, rate.counted, rate.window, rate.limit, rate.burst)
            for rate in limits.rules
        ]
        if limits.concurrency is not None:
            given.append(Rule(scope, owner, "concurrency", None, limits.concurrency))
        rules = []
        for rule in given:
            known = self._known.setdefault(rule.key, rule)
            known.allow(rule.limit, rule.burst)
            rules.append(known)
        return tuple(rules)


class Rulebook:
    """Every rule of one configuration."""

    def __init__(self, config: Config, rules: Rules | None = None) -> None:
        of = (Rules() if rules is None else rules).of
        self._team_of = {key.name: key.team for key in config.keys}
        self._gateway = of("gateway", (), config.limits)
        self._teams = {n: of("team", (n,), team.limits) for n, team in config.teams.items()}
        self._team_models = {
            (n, model): of("team_model", (n, model), limits)
            for n, team in config.teams.items()
            for model, limits in team.limits_by_model.items()
        }
        self._keys = {key.name: of("key", (key.name,), key.limits) for key in config.keys}
        self._models = {n: of("model", (n,), m.limits) for n, m in config.models.items()}

    def of(self, principal: Principal, model: str | None) -> tuple[Rule, ...]:
        """What a request of this caller is under; `model` is a configured name or None."""
        rules = (
            *self._keys.get(principal.key, ()),
            *self._teams.get(principal.team, ()),
            *self._gateway,
        )
        if model is None:
            return rules
        both = self._team_models.get((principal.team, model), ())
        return (*rules, *both, *self._models.get(model, ()))

    def under(self, key: str | None = None, team: str | None = None) -> Sequence[Rule]:
        """What requests of one key, or of one team, are under on any model; else every rule.

        A team's keys have rules of their own, which are not among the team's. Raises NoSuchOwner.
        """
        if key is None and team is None:
            return self.owned()
        own = self.owned(key, team)
        teams = () if key is None else self.owned(team=self._team_of[key])
        return (*own, *teams, *self._gateway, *chain(*self._models.values()))

    def owned(self, key: str | None = None, team: str | None = None) -> Sequence[Rule]:
        """A key's own rules, or a team's on all its models and on each; else every rule.

        Raises NoSuchOwner.
        """
        if key is not None:
            if key not in self._team_of:
                raise NoSuchOwner(f"no key {key!r}; {listed(self._team_of)}")
            return self._keys[key]
        if team is not None:
            if team not in self._teams:
                raise NoSuchOwner(f"no team {team!r}; {listed(self._teams)}")
            both = (rules for (name, _), rules in self._team_models.items() if name == team)
            return (*self._teams[team], *chain(*both))
        families = (self._models, self._teams, self._team_models, self._keys)
        return (*self._gateway, *chain(*(chain(*family.values()) for family in families)))
