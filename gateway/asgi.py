"""How a visit looks to an ASGI application, and back."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol

from gateway.reply import Caller
from gateway.terms import Head
from gateway.visit import Visit

Scope = MutableMapping[str, Any]


class Connection(Protocol):
    """What uvicorn knows of one, in ASGI's terms."""

    asgi_version: Any
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None
    scheme: Any
    root_path: str


def scope_of(visit: Visit, connection: Connection) -> Scope:
    """The scope of a visit on a connection."""
    head = visit.head
    path, _, query = visit.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": connection.asgi_version, "spec_version": "2.3"},
        "server": connection.server,
        "client": connection.client,
        "scheme": connection.scheme,
        "root_path": connection.root_path,
        "http_version": visit.version,
        "method": head.method,
        "path": head.path,
        "raw_path": path,
        "query_string": query,
        "headers": visit.listed,
        "state": {},
        "extensions": {"fairgate.caller": visit, "fairgate.head": head},
    }


def taken(scope: Scope) -> tuple[Head, Caller]:
    """The head of this request and its caller, as `scope_of` put them there; the scope lets go of
    the caller.
    """
    put = scope["extensions"]
    return put["fairgate.head"], put.pop("fairgate.caller")
