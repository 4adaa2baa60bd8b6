"""What an operator is told of the rules, and may reset: how each stands now."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from gateway.limits.base import SECOND, Counter, Level, Rule, Unavailable
from gateway.limits.rulebook import NoSuchOwner, Rulebook

#: A status of HTTP, and the JSON that goes with it: `{"error": ...}` where it is not 200.
Told = tuple[int, dict[str, Any]]


class Report:
    """What one process says of its rules. With neither `key` nor `team` it is about all of them."""

    def __init__(self, rulebook: Rulebook, counter: Counter) -> None:
        self._rulebook = rulebook
        self._counter = counter

    async def shown(self, key: str | None, team: str | None) -> Told:
        """Every rule that the key, or the team, is under."""
        return await _answered(self._shown(key, team))

    async def reset(self, key: str | None, team: str | None) -> Told:
        """Forget what the key's own rules, or the team's, have counted; leases stay."""
        return await _answered(self._reset(key, team))

    async def _shown(self, key: str | None, team: str | None) -> dict[str, Any]:
        rules = self._rulebook.under(key, team)
        levels = await self._counter.levels(rules)
        lines = [_line(rule, level) for rule, level in zip(rules, levels, strict=True)]
        return {"degraded": self._counter.degraded, "rules": lines}

    async def _reset(self, key: str | None, team: str | None) -> dict[str, Any]:
        rules = [rule for rule in self._rulebook.owned(key, team) if rule.window is not None]
        await self._counter.reset(rules)
        return {"reset": [_names(rule) for rule in rules]}


async def _answered(asked: Awaitable[dict[str, Any]]) -> Told:
    try:
        return 200, await asked
    except NoSuchOwner as exc:
        return 404, {"error": str(exc)}
    except Unavailable as exc:
        return 503, {"error": f"Redis is away ({exc}); see to it, then ask again"}


def _names(rule: Rule) -> dict[str, Any]:
    return {"scope": rule.scope, "owner": rule.owner, "name": rule.name}


def _line(rule: Rule, level: Level) -> dict[str, Any]:
    left, reset = level
    seconds = round(reset / SECOND, 3)
    sizes = {"limit": rule.limit, "burst": rule.burst, "used": rule.burst - left}
    return {**_names(rule), **sizes, "left": left, "reset": seconds}
