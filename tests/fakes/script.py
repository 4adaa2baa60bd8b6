"""What a scripted engine does with one request: the steps, and the usual rows of them."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.fakes.http1 import End, Headers


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came. `connection` counts from 1 in the order of acceptance."""

    method: str
    target: str
    headers: Headers
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Head:
    """The status line and exactly these headers, in one write."""

    status: int
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """These bytes as they are, in one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a chunked body, framing and all, in one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndChunks:
    """The last chunk."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for that many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until the test sets the event."""

    event: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Hang:
    """Do nothing until the peer leaves."""


@dataclass(frozen=True, slots=True)
class Fin:
    """Close the connection in order. Steps after it are not reached."""


@dataclass(frozen=True, slots=True)
class Rst:
    """Reset the connection. Steps after it are not reached."""


Step = Head | Send | Chunk | EndChunks | Sleep | Wait | Hang | Fin | Rst
Answerer = Callable[[Received], Iterable[Step] | None]
"""Called once a request; None leaves the answer to the engine's defaults."""
Script = Sequence[Step] | Answerer
"""A row of steps answers every POST alike (GETs keep their defaults); a callable answers all."""

# What uvicorn adds to every answer of the engine, here with a fixed date.
SERVER = (("date", "Sat, 21 Nov 2026 02:44:38 GMT"), ("server", "uvicorn"))
JSON = ("content-type", "application/json")
EVENTS = ("content-type", "text/event-stream; charset=utf-8")
CHUNKED = ("transfer-encoding", "chunked")


def plain(status: int, json_bytes: bytes, headers: Iterable[tuple[str, str]] = ()) -> list[Step]:
    """A whole answer with a length, head and body in one write. `headers` come on top."""
    length = ("content-length", str(len(json_bytes)))
    return [Send(render([Head(status, [*SERVER, length, JSON, *headers])]) + json_bytes)]


def stream(
    events: Iterable[bytes],
    *,
    end: bool = True,
    pause: float = 0,
    headers: Iterable[tuple[str, str]] = (),
) -> list[Step]:
    """A 200 stream, one event a chunk and a write, `pause` seconds before each.

    Without `end` the body stays open: add what is to happen then (`Hang()`, `Fin()`, `Rst()`).
    """
    steps: list[Step] = [Head(200, [*SERVER, EVENTS, CHUNKED, *headers])]
    for event in events:
        steps += [Sleep(pause), Chunk(event)] if pause else [Chunk(event)]
    return [*steps, EndChunks()] if end else steps


def cut_after(stream_bytes: bytes, offset: int, how: End = "fin") -> list[Step]:
    """A 200 stream that breaks after exactly `offset` bytes of its body, sent as one whole chunk.

    To break inside the framing too, cut what `render` gives: `[Send(render(steps)[:n]), Rst()]`.
    """
    body = [stream_bytes[:offset]] if offset else []
    return [*stream(body, end=False), Rst() if how == "rst" else Fin()]


def in_turn(*rows: Iterable[Step] | None) -> Answerer:
    """The first POST gets the first row and so on; None, GETs and later POSTs the defaults."""
    left = list(rows)

    def answer(request: Received) -> Iterable[Step] | None:
        return left.pop(0) if left and request.method == "POST" else None

    return answer


def render(steps: Iterable[Step]) -> bytes:
    """The bytes these steps put on the wire."""
    return b"".join(map(written, steps))


def written(step: Step) -> bytes:
    """The bytes of one step's write; none for a step that writes nothing."""
    match step:
        case Head(status, headers):
            phrase = HTTPStatus(status).phrase
            lines = [f"HTTP/1.1 {status} {phrase}", *(f"{k}: {v}" for k, v in headers), "", ""]
            return "\r\n".join(lines).encode("latin-1")
        case Send(data):
            return data
        case Chunk(data):
            return b"%x\r\n%b\r\n" % (len(data), data)
        case EndChunks():
            return b"0\r\n\r\n"
        case _:
            return b""
