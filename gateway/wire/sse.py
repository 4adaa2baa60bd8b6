"""Server-sent events, taken apart only where one of them has to be read."""

from __future__ import annotations

import re

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT = re.compile(rb".*?" + _LINE_END + _LINE_END, re.DOTALL)
_COMMENT = re.compile(rb"(?::[^\r\n]*" + _LINE_END + rb")*" + _LINE_END)
_DATA = re.compile(rb"(?:\A|[\r\n])data:[ ]?([^\r\n]*)")


def split(events: bytes) -> list[bytes]:
    """Each event of a run of whole events, its empty line included."""
    return _EVENT.findall(events)


def without_comments(events: bytes) -> bytes:
    """A run of whole events without those that are comments alone: what a server says to stay
    connected is no part of its answer.
    """
    return b"".join(event for event in split(events) if not _COMMENT.fullmatch(event))


def payload(event: bytes) -> bytes:
    """What the `data` lines of one event say, joined as the standard says (by LF)."""
    return b"\n".join(_DATA.findall(event))
