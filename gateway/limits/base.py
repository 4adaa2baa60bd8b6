"""What a limit is: rules, what a request claims of them, and what is decided.

A rate over less than an hour is a bucket that drains evenly: it holds a level, which a claim
raises and time lowers. Levels are whole numbers of a rule's own fine unit, so that no rounding
ever adds up. A rate over an hour or more is a count in a window aligned to UTC. Concurrency is a
set of leases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Literal, Protocol
from urllib.parse import quote

from msgspec import Struct

Scope = Literal["gateway", "team", "team_model", "key", "model"]
Counted = Literal["requests", "tokens", "concurrency"]
Window = Literal["second", "minute", "hour", "day", "month"]

SECOND = 1_000_000
#: How long each window lasts, in microseconds; a month's length differs.
WIDTH: dict[str, int] = {
    "second": SECOND,
    "minute": 60 * SECOND,
    "hour": 3600 * SECOND,
    "day": 86_400 * SECOND,
    "month": 0,
}
#: How long a lease lasts unless it is renewed, in seconds.
LEASE = 30
#: What a refusal by a full concurrency rule tells to wait, in seconds: slots come free any time.
SLOT_WAIT = 1


class Form(IntEnum):
    """How a rule is kept; the scripts know these by number."""

    BUCKET = 0
    WINDOW = 1
    SLOTS = 2


class Rule:
    """One limit of one owner, such as 500,000 tokens a minute of team search.

    `key` names it in every store and stays the same as long as its owner's name and its window do.
    `limit` is what may pass in a window, `burst` a bucket's size (elsewhere the limit again).
    Of a bucket, one claimed unit raises the level by `unit`, a microsecond lowers it by `drain`,
    and `room` is the highest level. Of a window, `width` is its length in microseconds, 0 a month.

    Mutable state: `limit`, `burst` and what follows from them, which a new configuration changes.
    """

    __slots__ = (
        "__weakref__",
        *("burst", "counted", "drain", "form", "key", "limit", "name", "owner", "params", "room"),
        *("scale", "scope", "unit", "width", "window"),
    )

    def __init__(
        self,
        scope: Scope,
        owner: Sequence[str],
        counted: Counted,
        window: Window | None,
        limit: int,
        burst: int | None = None,
    ) -> None:
        self.scope = scope
        self.owner = tuple(owner)
        self.counted = counted
        self.window = window
        self.name = counted if window is None else f"{counted}_per_{window}"
        # Quoted, so that no owner's name can look like another's.
        self.key = f"{scope}:{'/'.join(quote(o, safe='') for o in owner)}:{self.name}"
        self.allow(limit, burst)

    def allow(self, limit: int, burst: int | None = None) -> None:
        """Let so many pass from now on. What was counted stays; the stores see to that."""
        self.limit = limit
        self.burst = limit if burst is None else burst
        self.unit = self.drain = self.room = self.width = 0
        if self.window is None:
            self.form = Form.SLOTS
        elif self.window in ("second", "minute"):
            self.form = Form.BUCKET
            shared = math.gcd(WIDTH[self.window], limit)
            self.unit, self.drain = WIDTH[self.window] // shared, limit // shared
            self.room = self.burst * self.unit
        else:
            self.form = Form.WINDOW
            self.width = WIDTH[self.window]
        #: By what the level of a bucket is to be read; another object each time it may differ.
        self.scale = (self.unit, self.drain)
        #: What the scripts are told of it.
        self.params = (self.form, self.unit, self.drain, self.room, limit, self.width)

    def __repr__(self) -> str:
        return f"Rule({self.key}, {self.limit}, {self.burst})"

    @property
    def label(self) -> str:
        """Its name among the rules of its scope: a metric's label."""
        return f"{self.scope}.{self.name}"

    def __str__(self) -> str:
        """As people say it: `team search: 500,000 tokens per minute`."""
        counted = "requests" if self.window is None else self.counted
        noun = counted[:-1] if self.limit == 1 else counted
        when = "at once" if self.window is None else f"per {self.window}"
        return f"{self._of}: {self.limit:,} {noun} {when}"

    @property
    def _of(self) -> str:
        match self.scope:
            case "gateway":
                return "this gateway"
            case "team_model":
                return f"team {self.owner[0]} on {self.owner[1]}"
            case scope:
                return f"{scope} {self.owner[0]}"


#: A rule and how much of it: 1 request, so many tokens, so many slots.
Line = tuple[Rule, int]


class Claim(Struct, frozen=True, gc=False):
    """What one request takes of every rule it is under, each rule once. `id` is the request's."""

    id: str
    lines: tuple[Line, ...]


#: What is left of a rule, and in how many microseconds all of it is there again.
Level = tuple[int, int]


class Decision(Struct, frozen=True, gc=False):
    """Whether a claim was granted; `levels` after that, one for each of its lines.

    `refused` is the line that refuses for longest, None where all was granted; `wait` is how long
    until it may be granted, and `at` when it was decided by the store's clock, in microseconds.
    """

    at: int
    levels: Sequence[Level]
    refused: int | None = None
    wait: int = 0


class Close(IntEnum):
    """What a settlement does; the scripts know these by number."""

    #: A request is over: charge what was used instead of what was reserved. Needs the reservation.
    SETTLE = 0
    #: Whether a reservation was made is not known: none may be left, nor be made later.
    UNDO = 1
    #: Charge what was used elsewhere, while there was no store. Nothing was reserved.
    CHARGE = 2


#: A rule, how much of it was reserved, and how much was used. Slots are freed, whatever it says.
Settled = tuple[Rule, int, int]


class Settlement(Struct, frozen=True):
    """The end of one claim. However often it is sent, it is applied once."""

    id: str
    lines: Sequence[Settled]
    close: Close = Close.SETTLE


class Unavailable(Exception):
    """Raised when a store does not answer in time or cannot take writes. Says what it said."""


class Counter(Protocol):
    """Who decides claims and takes what was used, for one process."""

    @property
    def degraded(self) -> bool:
        """Whether the counts of others are out of reach."""

    async def decide(self, claim: Claim) -> Decision:
        """Raises Unavailable where nothing may decide."""

    def settle(self, claim: Claim, lines: Sequence[Settled], since: int) -> None:
        """The end of a granted claim, decided at `since`. Never waits; a second time does nothing.

        `lines` has every line of the claim whose amount changed, and all its slots.
        """

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        """What is left of each rule. Raises Unavailable."""

    async def reset(self, rules: Sequence[Rule]) -> None:
        """Forget what was counted. Slots stay: their requests are still there."""


class Store(Protocol):
    """Where counts are kept. Each call is one transaction: all of it, or nothing.

    Raises Unavailable.
    """

    async def turn(
        self, settlements: Sequence[Settlement], claims: Sequence[Claim]
    ) -> Sequence[Decision]:
        """Apply the settlements, then decide the claims in their order. At most 128 of each."""

    async def renew(self, claims: Sequence[Claim]) -> None:
        """Hold the slots of live requests for `LEASE` seconds more, lost ones too, and remember
        their reservations.
        """

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]: ...

    async def reset(self, rules: Sequence[Rule]) -> None:
        """Forget what was counted. Slots stay: their requests are still there."""


def window_start(now: int, width: int) -> int:
    """When the window began that `now` lies in; both in microseconds since the epoch, UTC."""
    if width:
        return now - now % width
    day = datetime.fromtimestamp(now // SECOND, UTC)
    return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp()) * SECOND


def window_end(start: int, width: int) -> int:
    """When the window that began at `start` is over."""
    if width:
        return start + width
    day = datetime.fromtimestamp(start // SECOND, UTC)
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * SECOND
