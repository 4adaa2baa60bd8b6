"""Heads that come again: a connection's nearly always differ in the body's length alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from gateway.terms import Head
from gateway.visit import Connection, Visit

#: Each open connection may keep one: a longer one is not kept. In bytes.
_LONGEST = 2048
#: Of a body's length: what is wrong with more of them the parser says.
_DIGITS = 12
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
#: Fields after which a request is not read as one whose body has a length and no more.
_OTHERWISE = frozenset({b"expect", b"transfer-encoding", b"upgrade"})


class Repeat(Struct, frozen=True, gc=False):
    """A head that the parser has read and nothing was wrong in, to be known when it comes again:
    what stands `before` the digits of its body's length and what `after` them; its `target`, and
    its fields as `listed`, with the length at `place`.

    How a head is read hangs on its bytes alone, so the same bytes are not read twice.
    """

    before: bytes
    after: bytes
    head: Head
    target: bytes
    listed: Sequence[tuple[bytes, bytes]]
    place: int

    def found(self, data: bytes) -> tuple[bytes, int] | None:
        """Where `data` begins with this head, the digits of its body's length and where that body
        begins.
        """
        if not data.startswith(self.before):
            return None
        at = len(self.before)
        end = data.find(b"\r", at, at + _DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end):
            return None
        return digits, end + len(self.after)

    def visit(self, front: Connection, digits: bytes) -> Visit:
        """One with this head and a body of another length."""
        head, listed = self.head, list(self.listed)
        listed[self.place] = b"content-length", digits
        fields = {**head.fields, b"content-length": digits}
        return Visit(
            front,
            Head(head.method, head.path, fields, head.repeated, head.key_digest),
            target=self.target,
            listed=listed,
            keep_alive=True,
        )


def remembered(data: bytes, visit: Visit) -> Repeat | None:
    """The head that `data` begins with, and which was read as that of `visit`, if it is of the
    usual kind: a body of a told length, and other requests to follow.
    """
    fields, listed = visit.head.fields, visit.listed
    if not visit.keep_alive or not _OTHERWISE.isdisjoint(fields):
        return None
    end = data.find(b"\r\n\r\n", 0, _LONGEST) + 4
    head = data[:end]
    length = _LENGTH.search(head)
    if length is None or length[1] != fields.get(b"content-length"):
        return None
    lines = len(listed) + 2  # the first and the empty one
    if not head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == lines:
        return None  # it has ends of lines that are read in more than one way
    place = next(at for at, (name, _) in enumerate(listed) if name == b"content-length")
    return Repeat(
        head[: length.start(1)], head[length.end(1) :], visit.head, visit.target, listed, place
    )
