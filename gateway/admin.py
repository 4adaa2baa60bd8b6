"""The admin port: metrics, health and status. Nothing of it is ever on the data port."""

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


class Workers(Protocol):
    """The serving processes, as the admin port sees them: today the one it lives in."""

    @property
    def ready(self) -> bool: ...

    async def metrics(self) -> bytes:
        """The counts of all workers in Prometheus' text form."""

    async def status(self) -> dict[str, Any]:
        """What is going on now, for people and scripts."""


def admin(workers: Workers, key_sha256: str | None) -> Starlette:
    """The application. With `key_sha256` (hex), all but health needs that key as a Bearer."""

    async def metrics(request: Request) -> Response:
        return Response(await workers.metrics(), media_type=_PROMETHEUS)

    async def status(request: Request) -> Response:
        return Response(orjson.dumps(await workers.status()), media_type="application/json")

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
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


#: https://prometheus.io/docs/instrumenting/exposition_formats/
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def _is_key(request: Request, key_sha256: str) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(digest, key_sha256)
