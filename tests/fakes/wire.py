"""A transport without a socket: what is written to it is told, and what it reads is played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any


class Wire(asyncio.Transport):
    """One end of a connection. `written` is told each write. Mutable state: whether it `closed`."""

    def __init__(self, written: Callable[[bytes], None]) -> None:
        super().__init__()
        self._written = written
        self.closed = False

    def write(self, data: Any) -> None:
        self._written(bytes(data))

    def writelines(self, pieces: Iterable[Any]) -> None:
        self.write(b"".join(pieces))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        raise AssertionError("nobody reads slowly here")
