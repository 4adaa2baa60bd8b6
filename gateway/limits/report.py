"""What an operator is told of the rules, and may reset: how each stands now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from gateway.limits.base import SECOND, Counter, Level, Rule, Unavailable
from gateway.limits.rulebook import NoSuchOwner, Rulebook

#: A status of HTTP, and the JSON that goes with it: `{"error": ...}` where it is not 200.
Told = tuple[int, dict[str, Any]]


class Report:
    """What one process says of its rules. With neither `key` nor `team` it is about all of them.

    `mode` is what it does while Redis is away, None where there is no Redis. `now` tells
    microseconds since the epoch.
    """

    def __init__(
        self, rulebook: Rulebook, counter: Counter, mode: str | None, now: Callable[[], int]
    ) -> None:
        self._rulebook = rulebook
        self._counter = counter
        self._mode = mode
        self._now = now

    async def shown(self, key: str | None, team: str | None) -> Told:
        """Every rule that the key, or the team, is under."""
        return await self._answered(self._shown(key, team))

    async def reset(self, key: str | None, team: str | None) -> Told:
        """Forget what the key's own rules, or the team's, have counted; leases stay."""
        return await self._answered(self._reset(key, team))

    async def _shown(self, key: str | None, team: str | None) -> dict[str, Any]:
        rules = self._rulebook.under(key, team)
        levels = await self._counter.levels(rules)
        now = self._now()
        lines = [_line(rule, level, now) for rule, level in zip(rules, levels, strict=True)]
        return {"degraded": self._counter.degraded, "mode": self._mode, "rules": lines}

    async def _reset(self, key: str | None, team: str | None) -> dict[str, Any]:
        rules = [rule for rule in self._rulebook.owned(key, team) if rule.window is not None]
        await self._counter.reset(rules)
        return {"reset": [_names(rule) for rule in rules]}

    async def _answered(self, asked: Awaitable[dict[str, Any]]) -> Told:
        try:
            return 200, await asked
        except NoSuchOwner as exc:
            return 404, {"error": str(exc)}
        except Unavailable as exc:
            away = f"Redis is away ({exc}) and when_redis_is_down is {self._mode}"
            return 503, {"error": f"{away}; see to it, then ask again"}


def _names(rule: Rule) -> dict[str, Any]:
    return {"scope": rule.scope, "owner": rule.owner, "name": rule.name}


def _line(rule: Rule, level: Level, now: int) -> dict[str, Any]:
    """`reset` in seconds, `reset_at` in RFC 3339."""
    left, reset = level
    sizes = {"limit": rule.limit, "burst": rule.burst, "used": rule.burst - left, "left": left}
    # To the nearest second: the store's clock is not quite ours, and a day ends at 00:00:00.
    at = datetime.fromtimestamp((now + reset + SECOND // 2) // SECOND, UTC)
    back = {"reset": round(reset / SECOND, 3), "reset_at": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {**_names(rule), **sizes, **back}
