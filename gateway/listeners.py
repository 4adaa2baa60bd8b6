"""Where a process listens: its sockets, and the uvicorn servers on them."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.admin import CUT, Workers, admin
from gateway.settings import Config
from gateway.units import Address

_BACKLOG = 2048
#: What to do where the address of a setting cannot be had.
_FIXES = {
    "listen": "give another one with --listen, or `listen` in the file; `make run` takes LISTEN=",
    "admin_listen": "give another one with --admin-listen, or `admin_listen` in the file",
}


class CannotStart(Exception):
    """Raised when the gateway cannot serve; the text says what is in the way."""


class Server(uvicorn.Server):
    """uvicorn's server without its signal handling: its owner decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(app: Any, **settings: Any) -> Server:
    """A server of one application. Raises CannotStart where TLS files are of no use."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=None,
        **settings,
    )
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError is one
        raise CannotStart(f"tls: the certificate or its key: {exc.strerror or exc}") from None
    return Server(config)


class AdminProtocol(HttpToolsProtocol):
    """uvicorn's, whose applications may also break a connection off: ASGI has no word for that."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: Any = {CUT: self.transport.abort}
        self.scope["extensions"] = extensions


def admin_server(workers: Workers, config: Config) -> Server:
    """The server of the admin port."""
    app = admin(workers, config.admin_key_sha256)
    return server(app, http=AdminProtocol, timeout_keep_alive=75)


def cut(servers: Iterable[Server]) -> None:
    """Break off every connection that is open there."""
    for each in servers:
        for connection in list(each.server_state.connections):
            connection.transport.abort()


def check_free(addresses: Iterable[Address]) -> None:
    """Raises CannotStart where one of the addresses cannot be listened on now."""
    with contextlib.ExitStack() as held:
        for address in addresses:
            bound(address, held)


def bound(address: Address, held: contextlib.ExitStack, setting: str = "listen") -> socket.socket:
    """A listening socket, closed with `held`. Raises CannotStart, which names the setting."""
    try:
        if address.path is not None:
            return _unix(address.path, held)
        host = address.host or ""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if family is socket.AF_INET6:
            sock = socket.socket(family)
            # One socket for each family: `[::]` beside `0.0.0.0` must both be possible.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            sock = socket.socket(family)
        held.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, address.port or 0))
        sock.listen(_BACKLOG)  # bound alone, another could bind and listen first
        sock.setblocking(False)
        return sock
    except OSError as exc:
        raise CannotStart(
            f"cannot listen on {address}: {exc.strerror or exc}. "
            f"The address is that of `{setting}`: {_FIXES[setting]}"
        ) from None


def shown(address: Address, sock: socket.socket) -> str:
    """The address with the port that the system chose where it was 0."""
    if address.path is not None:
        return str(address)
    host = f"[{address.host}]" if ":" in (address.host or "") else address.host
    return f"{host}:{sock.getsockname()[1]}"


def _unix(path: str, held: contextlib.ExitStack) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    held.callback(sock.close)
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError("there is something else, not a socket; it was left alone")
        if not _is_left(path):
            raise OSError("another process does")
        os.unlink(path)
    sock.bind(path)
    held.callback(_remove, path, _which(path))
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _is_left(path: str) -> bool:
    """Whether a socket was left by a process that is gone: nobody is there to refuse in words."""
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:  # not for us, or of another kind
            return False
    return False


def _which(path: str) -> tuple[int, int, int] | None:
    """What tells a file from its successor at the same path; None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _remove(path: str, which: tuple[int, int, int] | None) -> None:
    """Remove our socket; not one that a successor has put there while we served to the end."""
    if _which(path) == which:
        Path(path).unlink(missing_ok=True)
