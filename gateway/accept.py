"""Step 1: the body, within its limits of size, type and time."""

from __future__ import annotations

import asyncio
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


class Bodies:
    """The room all request bodies of this process share. Mutable state: `held`, in bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self.held = 0

    def share(self) -> Share:
        return Share(self)

    def take(self, size: int) -> None:
        if self.held + size > self._room:
            raise Overloaded("Too many large requests are under way; try again in a moment.")
        self.held += size


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


def check_head(head: Head, limit: int) -> None:
    """Refuse what the head alone gives away, before a byte of the body is read."""
    declared = head.get(b"content-length")
    if declared and int(declared) > limit:  # digits: the parser has seen to it
        raise _too_large(limit)
    encoding = head.get(b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(f"content-encoding {encoding[:32]!r} is not decoded; send it plain.")
    media, _, parameters = head.get(b"content-type").partition(";")
    if media.strip().lower() != "application/json":
        raise UnsupportedMedia("content-type must be application/json.")
    charset = parameters.strip().lower().replace('"', "")
    if charset not in ("", "charset=utf-8", "charset=utf8"):
        raise UnsupportedMedia("JSON is UTF-8; send no other charset.")


async def body(receive: Receive, share: Share, limit: int, deadline: float) -> bytes:
    """The whole body. Raises RequestTooLarge, RequestTimeout, Overloaded or ClientGone.

    `limit` in bytes, `deadline` in seconds for all of it.
    """
    pieces: list[bytes] = []
    more = True
    try:
        async with asyncio.timeout(deadline):
            while more:
                message = await receive()
                pieces.append(_piece(message, share, limit))
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
            body.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("The body is not UTF-8.", code="invalid_json") from None
    return body


def _piece(message: MutableMapping[str, Any], share: Share, limit: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    piece: bytes = message.get("body", b"")
    if share.size + len(piece) > limit:
        raise _too_large(limit)
    share.add(len(piece))
    return piece


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is over this gateway's cap of {limit} bytes.")
