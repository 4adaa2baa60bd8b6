"""Step 3: the name a caller asked for → the pool that serves it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import orjson

from backends.pool import Pool
from gateway.errors import ModelNotFound
from gateway.settings import Caps, Timeouts
from gateway.terms import Ask, Principal
from gateway.wire import fields


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for one name go, and on which terms.

    `model` is the configured name, which an alias stands for: permission and limits go by it.
    `fallback` names the models whose pools take over where no replica of this one is left.
    `caps_by_team` has the teams with caps of their own; `headers` are lines for every answer;
    `event_limit` in bytes; `max_model_len` in tokens, where the server told it;
    `cached_token_weight` is what a cached prompt token counts.
    """

    model: str
    pool: Pool
    upstream_model: str
    caps: Caps
    timeouts: Timeouts
    event_limit: int
    caps_by_team: Mapping[str, Caps] = field(default_factory=dict)
    headers: bytes = b""
    usage_in_streams: bool = True
    max_model_len: int | None = None
    cached_token_weight: float = 0.1
    fallback: tuple[str, ...] = ()

    def caps_for(self, team: str) -> Caps:
        return self.caps_by_team.get(team, self.caps)


@dataclass(frozen=True, slots=True)
class Split:
    """A name over other models, its sides, with the weight of each."""

    model: str
    sides: Mapping[str, int]

    def side(self, key: str, user: str) -> str:
        """The side of a key's user: the same in every process, whatever the order of the sides.

        Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): over many users each side
        has its share, and a changed weight moves no more of them than it must.
        """
        owner = blake2b(orjson.dumps((self.model, key, user)), digest_size=32).digest()
        return max(self.sides, key=lambda side: _score(owner, side) * self.sides[side])


def _score(owner: bytes, side: str) -> float:
    digest = blake2b(side.encode(), key=owner, digest_size=8).digest()
    drawn = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # uniform, and never 0 or 1
    return -1 / math.log(drawn)


class Routes:
    """Every name there is. Mutable state: `table` and `splits`, which grow as models appear."""

    def __init__(
        self, table: Mapping[str, Route], splits: Mapping[str, Split] | None = None
    ) -> None:
        self.table = dict(table)
        self.splits = dict(splits or {})

    def resolve(self, ask: Ask, principal: Principal) -> Route:
        """The route of the name asked for, for a split that of the side chosen.

        Permission goes by the name asked for, after aliases: a split needs only its own. Raises
        ModelNotFound alike for a name that is not there and one that is not for this key.
        """
        named = self.table.get(ask.model) or self.splits.get(ask.model)
        if named is None or not principal.may_use(named.model):
            raise ModelNotFound(ask.model)
        if isinstance(named, Split):
            return self.table[named.side(principal.key, fields.user(ask.fields))]
        return named

    def fallbacks(self, route: Route) -> Iterator[Route]:
        """What takes over from a route, in order. A fallback's own fallbacks do not."""
        return (self.table[name] for name in route.fallback)

    def visible(self, principal: Principal) -> dict[str, int | None]:
        """The names this principal may use, aliases and splits included, with their max_model_len
        in tokens where it is known. A split is as long as the shortest of its sides.
        """
        lengths = {name: route.max_model_len for name, route in self.table.items()}
        models = {name: route.model for name, route in self.table.items()}
        for name, split in self.splits.items():
            known = [lengths[side] for side in split.sides]
            lengths[name] = min((n for n in known if n is not None), default=None)
            models[name] = split.model
        return {name: n for name, n in lengths.items() if principal.may_use(models[name])}

    def pools(self) -> list[Pool]:
        return list({id(route.pool): route.pool for route in self.table.values()}.values())
