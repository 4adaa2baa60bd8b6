"""Step 3: the name a caller asked for → the pool that serves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from backends.pool import Pool
from gateway.errors import ModelNotFound
from gateway.settings import Caps, Timeouts
from gateway.terms import Principal


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for one name go, and on which terms.

    `model` is the configured name, which an alias stands for: permission goes by it.
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

    def caps_for(self, team: str) -> Caps:
        return self.caps_by_team.get(team, self.caps)


class Routes:
    """Every name there is. Mutable state: the table, replaced as a whole when models appear."""

    def __init__(self, table: Mapping[str, Route]) -> None:
        self.table = dict(table)

    def resolve(self, name: str, principal: Principal) -> Route:
        """Raises ModelNotFound alike for a name that is not there and one not for this key."""
        route = self.table.get(name)
        if route is None or not principal.may_use(route.model):
            raise ModelNotFound(name)
        return route

    def visible(self, principal: Principal) -> Iterator[tuple[str, Route]]:
        """The names this principal may use, aliases included."""
        return (item for item in self.table.items() if principal.may_use(item[1].model))

    def pools(self) -> list[Pool]:
        return list({id(route.pool): route.pool for route in self.table.values()}.values())
