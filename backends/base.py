"""The nouns and seams of the model servers' side.

A `Pool` holds the `Replica`s of one model. A `Call` is what the gateway wants done; a `Kind`
prepares it for one server software; the transport sends it and calls a `Sink` with what comes back.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from msgspec import Struct

from backends.capability import UNKNOWN, Capability
from backends.errors import BackendError, Refused
from backends.framing import Framer
from backends.health import Health, Standing

Headers = Sequence[tuple[bytes, bytes]]


class Origin(NamedTuple):
    """Where a server listens. `tls` is the context to use, or None for plain HTTP.

    `host` is what it is called and what its certificate has; `address` is where it is, where one of
    several behind that name is meant. A tuple, since that is hashed in C, several times a request.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    address: str = ""

    def __str__(self) -> str:
        at = self.address or self.host
        at = f"[{at}]" if ":" in at else at
        return f"{'https' if self.tls else 'http'}://{at}:{self.port}"


class Demand(Struct, frozen=True, gc=False):
    """What a request asks of a replica, as far as it is known before it runs.

    `prompt_tokens` and `output_tokens` are estimates; `flow` names whose work it is. `affinity` is
    the same for the requests of one conversation, whose prefix a replica may have cached; empty
    where nothing is known of it.
    """

    flow: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    affinity: bytes = b""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


class Call(Struct, frozen=True, gc=False):
    """One request for a model server, independent of the server's software.

    `path` is an API path of our own table, never the caller's; `headers` are the lines of the few
    that pass, in ASCII.
    """

    path: str
    body: bytes
    stream: bool
    request_id: str
    headers: str = ""
    #: Whether the caller says that it is a try of its own after one that failed.
    again: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine says it is, at `at` in seconds of the monotonic clock.

    `running` and `waiting` are requests; `kv` is the share of its KV cache in use, 0 to 1.
    """

    at: float
    running: int
    waiting: int
    kv: float


#: How long an engine's own figures are worth something, in seconds.
FRESH = 3.0


@dataclass(slots=True, eq=False)
class Replica:
    """One model server process.

    Mutable state: `in_flight` requests and `outstanding` tokens of this process; `elsewhere`, the
    same two of the other processes; `load`, the engine's own newest figures; `health`; `busy`,
    until when it said that it has no room; `drained`, whether the operator took it out;
    `flights`, the calls under way and whose they are; `trials`, how many of them were sent while
    something spoke against it; `last_error`; and `capability`, what it said of itself.
    """

    url: str
    origin: Origin
    base: str = "/v1"
    weight: float = 1.0
    concurrency: int | None = None
    credential: str | None = field(default=None, repr=False)
    in_flight: int = 0
    outstanding: int = 0
    elsewhere: tuple[int, int] = (0, 0)
    load: Load | None = None
    health: Health = field(default_factory=Health)
    busy: float = 0.0
    drained: bool = False
    flights: dict[Flight, Attempt] = field(default_factory=dict, repr=False)
    trials: int = 0
    last_error: str | None = None
    capability: Capability = UNKNOWN
    #: Heads that stay the same from call to call, by path, and whether a stream is asked for;
    #: filled by the kind.
    heads: dict[tuple[str, bool], bytes] = field(default_factory=dict, repr=False)

    @property
    def full(self) -> bool:
        return self.concurrency is not None and self.in_flight >= self.concurrency

    @property
    def work(self) -> int:
        """Tokens it has still to read and write, of all processes."""
        return self.outstanding + self.elsewhere[1]

    def share(self, now: float) -> float:
        """Its weight now: less while it starts slowly."""
        return self.weight * self.health.share(now)

    def fresh(self, now: float) -> Load | None:
        """The engine's own figures, where they are not too old."""
        return self.load if self.load is not None and now - self.load.at < FRESH else None

    def serves(self, now: float) -> bool:
        """Whether it is neither ejected nor taken out."""
        return not self.drained and self.health.standing(now) is not Standing.EJECTED

    def choosable(self, now: float) -> bool:
        """Whether it may be chosen like any other, or for the one request of its probation."""
        if self.drained or self.full:
            return False
        if self.health.sound:
            return True
        # What it had before it was ejected is no trial: a stream may go on for an hour.
        return self.health.standing(now) is Standing.PROBATION and not self.trials


class Flight(Protocol):
    """One call on its way. The transport gives it; the sink may hold it back or end it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def fail(self, exc: BackendError) -> None:
        """Close the connection; the sink's `broken` is called with `exc`, unless it had ended."""


class Sink(Protocol):
    """Who takes an answer. The transport calls it from callbacks of the event loop.

    For each attempt: `begin`, `sent` each time the request is written, then `head` at most once,
    `data` any number of times, and exactly one of `end` and `broken`. `failure` is then None for a
    good answer. `promised` says that something of this attempt reached the caller, so that no other
    replica may be tried. `heard` is when the engine last said something, or the attempt began, in
    seconds of the monotonic clock.
    """

    failure: BackendError | None
    promised: bool
    heard: float

    def begin(self, flight: Flight, replica: Replica) -> None: ...
    def sent(self) -> None:
        """The server may have the request. While it works, there is time for what can wait."""

    def head(self, status: int, headers: Headers) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def end(self) -> None: ...
    def broken(self, exc: BackendError) -> None: ...


class Attempt(Protocol):
    """Whose call is on its way to a replica."""

    @property
    def heard(self) -> float:
        """When the engine last said something of it, as a `Sink` has it."""

    def movable(self) -> bool:
        """Whether nothing of it was promised and another replica can be asked in its place."""


class Kind(Protocol):
    """One server software: how to ask it, and how to read what it says."""

    name: str
    #: The API paths it is asked for; any other is refused before it is called.
    paths: frozenset[str]
    #: The page with its figures, as `progress` reads them; None where it has none.
    figures: str | None

    def prepare(self, call: Call, replica: Replica) -> tuple[bytes, bytes]:
        """The HTTP request, head and body."""

    def framer(self, event_limit: int) -> Framer: ...

    def read_error(self, status: int, body: bytes) -> Refused: ...


class Policy(Protocol):
    """How to choose. Synchronous; `replicas` is never empty, `now` is of the monotonic clock.

    `by_affinity` says whether it looks at `demand.affinity`, which costs time to compute.
    """

    by_affinity: bool

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica: ...


class Observer(Protocol):
    """How this side reports what it does, without knowing who counts."""

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None: ...
    def retried(self, pool: str, reason: str) -> None: ...
