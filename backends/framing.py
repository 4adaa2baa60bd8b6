"""Cutting a byte stream where an event ends, so that only whole events travel on.

Server-sent events end at an empty line, and a line ends in LF, CRLF or CR
(WHATWG HTML, "Parsing an event stream"). Bytes pass unchanged.
"""

from __future__ import annotations

from backends.errors import BadAnswer


class Framer:
    """Holds back the beginning of an event until the rest of it arrived.

    Mutable state: `_held`, the pieces of the unfinished event, `_size` bytes together, and
    `_seam`, its last bytes; `_crlf`, whether this stream was seen to end lines in CRLF (None
    until its first CR).
    """

    __slots__ = ("_crlf", "_held", "_limit", "_seam", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0
        self._seam = b""
        self._crlf: bool | None = None

    def cut(self, piece: bytes) -> bytes:
        """All whole events up to the end of `piece`; `b""` while none is complete.

        Raises BadAnswer when one event passes the limit.
        """
        if not self._held and piece.endswith(b"\n\n"):
            return piece  # one read of an engine nearly always ends where an event does
        # Only the seam and what follows can complete an event: what is held is never scanned
        # again, so that a large event in many small pieces costs no more than in one.
        end = self._boundary(self._seam + piece) - len(self._seam)
        if end <= 0:
            self._hold(piece)
            return b""
        whole = b"".join((*self._held, piece[:end]))
        self._release()
        if end < len(piece):
            self._hold(piece[end:])
        return whole

    def rest(self) -> bytes:
        """What is left of an unfinished event when the stream ends."""
        rest = b"".join(self._held)
        self._release()
        return rest

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise BadAnswer(f"an event of more than {self._limit} bytes")
        self._held.append(piece)
        self._seam = (self._seam + piece)[-3:]

    def _release(self) -> None:
        self._held = []
        self._size = 0
        self._seam = b""

    def _boundary(self, text: bytes) -> int:
        """The offset just behind the last empty line of `text`; 0 where there is none."""
        end = text.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        if b"\r" not in text:
            return end
        if self._crlf is None:
            # A CR at the very end may be half of a CRLF: leave the question open.
            first = text.find(b"\r")
            if first + 1 < len(text):
                self._crlf = text[first + 1] == 0x0A
        for blank in (b"\n\r\n", b"\r\r\n", b"\r\r", b"\n\r"):
            at = text.rfind(blank)
            if at < 0:
                continue
            stop = at + len(blank)
            if stop == len(text) and blank.endswith(b"\r") and self._crlf is not False:
                continue  # the LF of this CRLF is still to come
            end = max(end, stop)
        return end
