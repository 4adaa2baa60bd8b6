"""Server-sent events, taken apart only where one of them has to be read."""

from __future__ import annotations

import re

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT = re.compile(rb".*?" + _LINE_END + _LINE_END, re.DOTALL)
_DATA = re.compile(rb"(?:\A|[\r\n])data:[ ]?([^\r\n]*)")


def split(events: bytes) -> list[bytes]:
    """Each event of a run of whole events, its empty line included."""
    return _EVENT.findall(events)


def payload(event: bytes) -> bytes:
    """What the `data` lines of one event say, joined as the standard says (by LF)."""
    return b"\n".join(_DATA.findall(event))
