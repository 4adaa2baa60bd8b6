"""The admin port: metrics, health, status and limits. Nothing of it is ever on the data port."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.limits.report import Told


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
        if "origin" in request.headers:  # a browser's: any page may send a request to loopback
            return _told(403, {"error": "not from a page"})
        if (key is not None) + (team is not None) + whole != 1:
            return _told(400, {"error": "wanted key=NAME, team=NAME or all=true"})
        return _told(*await workers.reset_limits(key, team))

    async def healthz(request: Request) -> Response:
        return Response(status_code=200)

    async def readyz(request: Request) -> Response:
        return Response(status_code=200 if workers.ready else 503)

    def guarded(page: Callable[[Request], Awaitable[Response]]) -> Any:
        async def run(request: Request) -> Response:
            if key_sha256 is not None and not _is_key(request, key_sha256):
                return Response("the admin key is missing or wrong\n", 403, media_type="text/plain")
            return await page(request)

        return run

    return Starlette(
        routes=[
            Route("/metrics", guarded(metrics)),
            Route("/status", guarded(status)),
            Route("/limits", guarded(limits)),
            Route("/limits/reset", guarded(reset_limits), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


#: https://prometheus.io/docs/instrumenting/exposition_formats/
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def _told(status: int, document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _owner(request: Request) -> tuple[str | None, str | None]:
    return request.query_params.get("key"), request.query_params.get("team")


def _is_key(request: Request, key_sha256: str) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(digest, key_sha256)
