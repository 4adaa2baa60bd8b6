"""What tests of a store ask it, one claim at a time."""

from __future__ import annotations

from itertools import count

from gateway.limits.base import Claim, Decision, Rule, Window
from gateway.limits.redis import Redis

PREFIX = "{fairgate}"
MINUTE = Rule("key", ["k"], "requests", "minute", 60)
#: A window, the limit it has, what is used of it, the limit it gets, and what is left then.
CHANGES: list[tuple[Window | None, int, int, int, int]] = [
    ("minute", 60, 10, 600, 590),
    ("minute", 60, 60, 90, 30),
    ("minute", 600, 300, 7, 0),
    ("minute", 7, 3, 11, 8),
    ("day", 100, 40, 1000, 960),
    ("day", 100, 40, 10, 0),
    (None, 5, 2, 3, 1),
    (None, 5, 4, 3, 0),
]
ids = (f"id-{number}" for number in count())


def claim(*lines: tuple[Rule, int]) -> Claim:
    return Claim(next(ids), lines)


async def ask(store: Redis, *lines: tuple[Rule, int]) -> Decision:
    [decision] = await store.turn([], [claim(*lines)])
    return decision


async def left(store: Redis, *rules: Rule) -> list[int]:
    return [left for left, _ in await store.levels(rules)]
