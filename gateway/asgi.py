"""How a visit looks to an ASGI application, and back."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from gateway.reply import Caller
from gateway.terms import Head
from gateway.visit import Visit

Scope = MutableMapping[str, Any]


def scope_of(visit: Visit, connection: dict[str, Any]) -> Scope:
    """The scope of a visit; `connection` has what is the same for all of its connection's."""
    head = visit.head
    path, _, query = visit.target.partition(b"?")
    return {
        **connection,
        "type": "http",
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
