"""The admin port: metrics, health, status, limits, drains. None of it is ever on the data port."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.feed import Feed
from gateway.limits.report import Told
from gateway.units import is_address, server_url

logger = logging.getLogger("fairgate")

#: The extension of the scope that breaks a request's connection off.
CUT = "fairgate.cut"
#: How long a listener may read nothing, and how often one hears that the line lives, in seconds.
_READS_WITHIN = 10.0
_PING_EVERY = 15


class Workers(Protocol):
    """The serving processes, as the admin port sees them: today the one it lives in."""

    @property
    def ready(self) -> bool: ...

    async def metrics(self) -> bytes:
        """The counts of all workers in Prometheus' text form."""

    async def status(self) -> dict[str, Any]:
        """What is going on now, for people and scripts."""

    async def limits(self, key: str | None, team: str | None) -> Told:
        """How the rules stand that a key, or a team, is under; else all."""

    async def reset_limits(self, key: str | None, team: str | None) -> Told:
        """Forget what a key's own rules, or a team's, have counted; else all have."""

    async def drain(self, url: str, out: bool | None) -> Told:
        """Send nothing more to a replica; with False again; with None tell only how it stands."""


def admin(workers: Workers, key_sha256: str | None) -> Starlette:
    """The application. With `key_sha256` (hex), all but health needs that key as a Bearer."""

    async def metrics(request: Request) -> Response:
        return Response(await workers.metrics(), media_type=_PROMETHEUS)

    async def status(request: Request) -> Response:
        return _told(200, await workers.status())

    async def limits(request: Request) -> Response:
        key, team = _owner(request)
        if None not in (key, team):
            return _told(400, {"error": "one of key and team, not both"})
        return _told(*await workers.limits(key, team))

    async def reset_limits(request: Request) -> Response:
        key, team = _owner(request)
        whole = request.query_params.get("all") == "true"
        if (key is not None) + (team is not None) + whole != 1:
            return _told(400, {"error": "wanted key=NAME, team=NAME or all=true"})
        return _told(*await workers.reset_limits(key, team))

    async def healthz(request: Request) -> Response:
        return Response(status_code=200)

    async def readyz(request: Request) -> Response:
        return Response(status_code=200 if workers.ready else 503)

    def guarded(page: _Page) -> Any:
        async def run(request: Request) -> Response:
            if key_sha256 is not None and not _is_key(request, key_sha256):
                return Response("the admin key is missing or wrong\n", 403, media_type="text/plain")
            if key_sha256 is None and _is_domain(request.headers.get("host", "")):
                return _told(403, {"error": _BY_ADDRESS})  # a page whose name was bound to loopback
            if request.method == "POST" and "origin" in request.headers:
                return _told(403, {"error": "not from a page"})  # any may send one to loopback
            return await page(request)

        return run

    return Starlette(
        routes=[
            Route("/metrics", guarded(metrics)),
            Route("/status", guarded(status)),
            Route("/events", guarded(_events(Feed(workers.status)))),
            Route("/limits", guarded(limits)),
            Route("/limits/reset", guarded(reset_limits), methods=["POST"]),
            Route("/drain", guarded(_drain(workers, True)), methods=["GET", "POST"]),
            Route("/undrain", guarded(_drain(workers, False)), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


#: https://prometheus.io/docs/instrumenting/exposition_formats/
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


_Page = Callable[[Request], Awaitable[Response]]


def _events(feed: Feed) -> _Page:
    async def events(request: Request) -> Response:
        if feed.full:
            return _told(503, {"error": f"{feed.listeners} listen already; ask /status instead"})
        feed.listeners += 1  # `_Events` takes it back
        return _Events(feed)

    return events


class _Events(EventSourceResponse):
    """The status, event by event, to one listener; one that does not read is cut off."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(
            _status_events(feed),
            ping=_PING_EVERY,
            ping_message_factory=lambda: ServerSentEvent(comment="alive"),
            send_timeout=_READS_WITHIN,
        )
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            scope["extensions"][CUT]()
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self._feed.listeners -= 1

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        # Whoever serves cuts the connection. The library's own way is a task for each loop that
        # nobody holds, which looks for uvicorn's signal handlers: ours are not uvicorn's.
        await asyncio.Event().wait()


async def _status_events(feed: Feed) -> AsyncIterator[bytes]:
    async with aclosing(feed.documents()) as documents:
        async for document in documents:
            yield b"event: status\ndata: %b\n\n" % document


def _drain(workers: Workers, out: bool) -> _Page:
    async def drain(request: Request) -> Response:
        try:
            url = server_url(request.query_params.get("url", ""))
        except ValueError as exc:
            return _told(400, {"error": f"url: {exc}"})
        if request.method != "POST":
            return _told(*await workers.drain(url, None))
        status, told = await workers.drain(url, out)
        if status == 200:
            done = "drained: nothing more is sent there" if out else "not drained any more"
            logger.info("%s is %s, says the operator", url, done)
        return _told(status, told)

    return drain


_BY_ADDRESS = "ask by 127.0.0.1 or localhost; other names need admin_key_sha256"


def _is_domain(host: str) -> bool:
    """Whether it is a name that a stranger's DNS could say, and no browser's page has another."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]*$", host) else host
    return "." in name and not is_address(name.strip("[]"))


def _told(status: int, document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _owner(request: Request) -> tuple[str | None, str | None]:
    return request.query_params.get("key"), request.query_params.get("team")


def _is_key(request: Request, key_sha256: str) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(digest, key_sha256)
