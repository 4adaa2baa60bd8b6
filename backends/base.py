"""The nouns and seams of the model servers' side.

A `Pool` holds the `Replica`s of one model. A `Call` is what the gateway wants done; a `Kind`
prepares it for one server software; the transport sends it and calls a `Sink` with what comes back.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from backends.errors import BackendError, Refused
from backends.framing import Framer

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens. `tls` is the context to use, or None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of a replica, as far as it is known before it runs.

    `prompt_tokens` and `output_tokens` are estimates; `flow` names whose work it is.
    """

    flow: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One request for a model server, independent of the server's software.

    `path` is an API path of our own table, never the caller's; `headers` are the few that pass.
    """

    path: str
    body: bytes
    stream: bool
    request_id: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True, eq=False)
class Replica:
    """One model server process.

    Mutable state: `in_flight`, `last_error`, and `fields`, what its schema said, empty until asked.
    """

    url: str
    origin: Origin
    base: str = "/v1"
    weight: float = 1.0
    concurrency: int | None = None
    credential: str | None = field(default=None, repr=False)
    in_flight: int = 0
    last_error: str | None = None
    fields: dict[str, frozenset[str]] = field(default_factory=dict)
    #: Heads that stay the same from call to call, by path; filled by the kind.
    heads: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def full(self) -> bool:
        return self.concurrency is not None and self.in_flight >= self.concurrency

    def lacks(self, path: str, name: str) -> bool:
        """Whether the server's own schema is known and has no field `name` on `path`."""
        known = self.fields.get(path)
        return known is not None and name not in known


class Flight(Protocol):
    """One call on its way. The transport gives it; the sink may hold it back or end it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def fail(self, exc: BackendError) -> None:
        """Close the connection; the sink's `broken` is called with `exc`, unless it had ended."""


class Sink(Protocol):
    """Who takes an answer. The transport calls it from its own read callback.

    For each attempt: `begin`, `sent` each time the request is written, then `head` at most once,
    `data` any number of times, and exactly one of `end` and `broken`. `failure` is then None for a
    good answer. `promised` says that something of this attempt reached the caller, so that no other
    replica may be tried.
    """

    failure: BackendError | None
    promised: bool

    def begin(self, flight: Flight, replica: Replica) -> None: ...
    def sent(self) -> None:
        """From here on the server may have the request."""

    def head(self, status: int, headers: Headers) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def end(self) -> None: ...
    def broken(self, exc: BackendError) -> None: ...


class Kind(Protocol):
    """One server software: how to ask it, and how to read what it says."""

    name: str
    #: The API paths it is asked for; any other is refused before it is called.
    paths: frozenset[str]

    def prepare(self, call: Call, replica: Replica) -> bytes:
        """The whole HTTP request, head and body."""

    def framer(self, event_limit: int) -> Framer: ...

    def read_error(self, status: int, body: bytes) -> Refused: ...


class Policy(Protocol):
    """How to choose. Synchronous and pure; `replicas` is never empty."""

    def pick(self, replicas: Sequence[Replica], demand: Demand) -> Replica: ...


class Observer(Protocol):
    """How this side reports what it does, without knowing who counts."""

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None: ...
    def retried(self, pool: str, reason: str) -> None: ...
