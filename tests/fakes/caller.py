"""A caller without a connection: it keeps what it was sent, in order."""

import asyncio

from gateway.reply import Lines, Watcher


class FakeCaller:
    """A `Caller` of `gateway.reply`.

    `status`, `headers` (names in lower case) and `length` are None or empty until the answer
    begins; `pieces` are the writes, what came with the end among them. `ended` is "finished" or
    "cut" once it is over. A breach of the order fails the test.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.gone = False
        self.at_once = False
        self.watcher: Watcher | None = None
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.pieces: list[bytes] = []
        self.ended: str | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def take_body(self) -> bytes | None:
        return None  # it is received piece by piece

    def begin(self, status: int, headers: Lines, length: int | None) -> None:
        assert self.status is None, "a second status"
        assert headers.endswith(b"\r\n")
        lines = headers.decode("latin-1").removesuffix("\r\n").split("\r\n")
        for name, _, value in (line.partition(": ") for line in lines):
            assert name not in self.headers, "a header twice"
            self.headers[name] = value
        self.status = status
        self.length = length

    def write(self, piece: bytes) -> None:
        assert self.status is not None, "content before the status"
        assert self.ended is None, "content after the end"
        self.pieces.append(piece)

    def finish(self, last: bytes = b"") -> None:
        if last:
            self.write(last)
        assert self.ended is None, "a second end"
        assert self.length in (None, len(self.body)), "not the length that was told"
        self.ended = "finished"

    def cut(self) -> None:
        self.ended = "cut"
