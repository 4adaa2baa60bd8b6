"""Clocks that stand still until a test moves them."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, TypeVar

from gateway.limits.base import SECOND

T = TypeVar("T", int, float)


class Clock(Generic[T]):
    """Mutable state: `now`."""

    def __init__(self, now: T) -> None:
        self.now: T = now

    def __call__(self) -> T:
        return self.now


class Seconds(Clock[float]):
    """Counted from anywhere, as the event loop counts."""

    def __init__(self) -> None:
        super().__init__(1000.0)


class Microseconds(Clock[int]):
    """Counted since the epoch, as limits count."""

    def __init__(self, start: datetime) -> None:
        super().__init__(int(start.timestamp()) * SECOND + start.microsecond)

    def move(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
