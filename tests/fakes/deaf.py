"""A listener that takes no connection any more: connecting to it hangs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def deaf(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Its port. Its queue is full, with connections of ours that nobody accepts."""
    with socket.socket() as listener, contextlib.ExitStack() as held:
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
