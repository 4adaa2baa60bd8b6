"""A visit as Starlette sees it, and the caller found again behind that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from gateway.asgi import scope_of, taken
from gateway.terms import Head
from gateway.visit import Visit
from tests.gateway.test_visit import Front

CONNECTION = SimpleNamespace(
    asgi_version="3.0", server=None, client=("127.0.0.1", 9), scheme="https", root_path=""
)


def visit(target: bytes) -> Visit:
    path = target.partition(b"?")[0].decode()
    head = Head("GET", path, {b"accept": b"b"})
    listed = [(b"accept", b"a"), (b"accept", b"b")]
    front = cast(Any, Front())
    return Visit(front, head, version="1.0", target=target, listed=listed, keep_alive=True)


async def test_the_scope_says_what_was_sent() -> None:
    made = visit(b"/v1/models/a%2Fb?limit=1&after=x")
    scope = scope_of(made, CONNECTION)
    assert scope["type"] == "http"
    assert (scope["method"], scope["http_version"]) == ("GET", "1.0")
    assert scope["path"] == "/v1/models/a%2Fb", "as it was sent"
    assert scope["raw_path"] == b"/v1/models/a%2Fb"
    assert scope["query_string"] == b"limit=1&after=x"
    assert scope["headers"] == [(b"accept", b"a"), (b"accept", b"b")]
    assert (scope["scheme"], scope["client"]) == ("https", ("127.0.0.1", 9))
    assert scope["asgi"]["version"] == "3.0"


async def test_the_caller_is_taken_once_and_the_scope_keeps_nothing_of_it() -> None:
    made = visit(b"/healthz")
    scope = scope_of(made, CONNECTION)
    head, caller = taken(scope)
    assert head is made.head
    assert caller is cast(Any, made)
    assert made not in scope["extensions"].values()
