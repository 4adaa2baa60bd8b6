"""Step 1: the body, within its limits of size, type and time."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.errors import (
    ClientGone,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMedia,
)
from gateway.terms import Head

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Bodies over this size take turns: reading one of 4 MiB takes the time of a hundred requests.
LARGE = 256 * 1024
#: How much is decoded at once, so that what is made of it stays in the processor's cache.
_SLICE = 64 * 1024
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

    async def turn(self) -> None:
        """Back in a turn of the event loop that no other large body has.

        What a caller does then without waiting, it does once a turn: everyone else's reads, writes
        and timers come between one large body and the next. Only whole ones come here, so that
        nobody waits for a caller who sends slowly.
        """
        async with self._turn:
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

    async def turn(self) -> None:
        """Wait for this one's turn."""
        await self._bodies.turn()


def check_head(head: Head, limit: int) -> None:
    """Refuse what the head alone gives away, before a byte of the body is read."""
    declared = head.get(b"content-length")
    if declared and int(declared) > limit:  # digits: the parser has seen to it
        raise _too_large(limit)
    if head.fields.get(b"content-type") == _PLAIN_JSON and b"content-encoding" not in head.fields:
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
    if share.size > LARGE:
        await share.turn()
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


def text(body: bytes) -> bytes:
    """`body`, if it is UTF-8; JSON is nothing else (RFC 8259 §8.1)."""
    if not body.isascii():
        try:
            _decode(body)
        except UnicodeDecodeError:
            raise InvalidRequest("The body is not UTF-8.", code="invalid_json") from None
    return body


def _decode(body: bytes) -> None:
    """In slices: the text of all of it would be up to four times as large."""
    if len(body) <= _SLICE:
        body.decode()
        return
    decoder = _utf_8()
    for at in range(0, len(body), _SLICE):
        decoder.decode(body[at : at + _SLICE])
    decoder.decode(b"", final=True)


def _take(piece: bytes, share: Share, limit: int) -> bytes:
    if share.size + len(piece) > limit:
        raise _too_large(limit)
    share.add(len(piece))
    return piece


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is over this gateway's cap of {limit} bytes.")
