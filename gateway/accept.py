"""Step 1: the body, within its limits of size, type and time."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from gateway.errors import (
    DEEPEST,
    ClientGone,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    TooDeep,
    UnsupportedMedia,
)
from gateway.terms import Head
from gateway.wire import caps

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Bodies over this size take turns: reading one of 4 MiB takes the time of a hundred requests.
LARGE = 256 * 1024
#: How much is decoded at once, so that what is made of it stays in the processor's cache.
_SLICE = 64 * 1024
#: How long a large body is looked at in one turn of the event loop, in seconds.
_BUDGET = 0.005
_PLAIN_JSON = b"application/json"
_utf_8 = codecs.getincrementaldecoder("utf-8")


class Bodies:
    """The room all request bodies of this process share.

    Mutable state: `held`, in bytes; `_turn`, who of the large ones is next.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._turn = asyncio.Lock()
        self.held = 0

    def share(self) -> Share:
        return Share(self)

    def take(self, size: int) -> None:
        if self.held + size > self._room:
            raise Overloaded("Too many large requests are under way; try again in a moment.")
        self.held += size

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While it lasts no other large body is looked at; what its caller does next without
        waiting, it does in a turn of the event loop that no other large body has.

        Only whole ones come here, so that nobody waits for a caller who sends slowly.
        """
        async with self._turn:
            yield
            await asyncio.sleep(0)


class Share:
    """One request's part of the room, while a `with` lasts. Mutable state: `size`, in bytes."""

    __slots__ = ("_bodies", "size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bodies.held -= self.size

    def add(self, size: int) -> None:
        self._bodies.take(size)
        self.size += size

    async def pause(self) -> None:
        """Let everyone else go on before this large body is looked at further."""
        async with self._bodies.turn():
            pass

    def turn(self) -> AbstractAsyncContextManager[None]:
        return self._bodies.turn()


def check_head(head: Head, limit: int) -> None:
    """Refuse what the head alone gives away, before a byte of the body is read."""
    fields = head.fields
    declared = fields.get(b"content-length")
    if declared and int(declared) > limit:  # digits: the parser has seen to it
        raise _too_large(limit)
    if fields.get(b"content-type") == _PLAIN_JSON and b"content-encoding" not in fields:
        return  # nearly always
    encoding = head.get(b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(f"content-encoding {encoding[:32]!r} is not decoded; send it plain.")
    media, _, parameters = head.get(b"content-type").partition(";")
    if media.strip().lower() != "application/json":
        raise UnsupportedMedia("content-type must be application/json.")
    charset = parameters.strip().lower().replace('"', "")
    if charset not in ("", "charset=utf-8", "charset=utf8"):
        raise UnsupportedMedia("JSON is UTF-8; send no other charset.")


async def body(
    here: bytes | None, receive: Receive, share: Share, limit: int, deadline: float
) -> bytes:
    """The whole body. Raises RequestTooLarge, RequestTimeout, Overloaded or ClientGone.

    `here` is all of it where it came with its head, as it nearly always does. `limit` in bytes,
    `deadline` in seconds for all of it.
    """
    if here is None:
        whole = await _received(receive, share, limit, deadline)
    else:
        whole = _take(here, share, limit)
    if share.size <= LARGE:
        return _text(whole)
    async with share.turn():
        await _look(whole)
    return whole


async def _received(receive: Receive, share: Share, limit: int, deadline: float) -> bytes:
    pieces: list[bytes] = []
    more = True
    try:
        async with asyncio.timeout(deadline):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                pieces.append(_take(message.get("body", b""), share, limit))
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {deadline:g} s.") from None
    return b"".join(pieces)


def check_size(body: bytes, limit: int) -> None:
    """The cap of the model and team, known once the body is read."""
    if len(body) > limit:
        raise _too_large(limit)


def _text(body: bytes) -> bytes:
    """`body`, if it is UTF-8, as JSON is (RFC 8259 §8.1), and does not nest too deeply."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise _not_utf_8() from None
    if caps.deeper_than(DEEPEST, body):
        raise TooDeep
    return body


async def _look(body: bytes) -> None:
    """The same for a large one, for no longer than `_BUDGET` in one turn of the event loop."""
    decoder = None if body.isascii() else _utf_8()
    nesting = None if caps.few(DEEPEST, body) else caps.Nesting()
    if decoder is None and nesting is None:
        return
    until = time.monotonic() + _BUDGET
    for at in range(0, len(body), _SLICE):
        piece = body[at : at + _SLICE]
        last = at + _SLICE >= len(body)
        if decoder is not None:
            try:
                decoder.decode(piece, final=last)
            except UnicodeDecodeError:
                raise _not_utf_8() from None
        if nesting is not None:
            nesting.feed(piece)
            if nesting.deepest > DEEPEST:
                raise TooDeep
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + _BUDGET


def _not_utf_8() -> InvalidRequest:
    return InvalidRequest("The body is not UTF-8.", code="invalid_json")


def _take(piece: bytes, share: Share, limit: int) -> bytes:
    if share.size + len(piece) > limit:
        raise _too_large(limit)
    share.add(len(piece))
    return piece


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is over this gateway's cap of {limit} bytes.")
