"""The composition root: configuration → live objects → what the server runs.

The paths that model servers answer are found in a dictionary; Starlette keeps everything else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import passing
from gateway.asgi import taken
from gateway.authenticate import authenticate
from gateway.endpoints import ENDPOINTS, models
from gateway.endpoints.base import ANTHROPIC, Endpoint, Spoken, speech
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.exchange import Exchange, Gateway
from gateway.reply import Reply
from gateway.terms import Head, Record, Usage
from gateway.visit import Visit

_EXPOSED = (
    b"access-control-expose-headers: x-request-id, request-id, retry-after, retry-after-ms, "
    b"x-should-retry, x-fairgate-model, x-fairgate-limits, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n"
    b"vary: origin\r\n"
)
#: All that a misdirected path can be told of.
_PATHS = (*(f"POST {endpoint.path}" for endpoint in ENDPOINTS), f"GET {models.PATH}")
_OPENAI = "(chat/completions|completions|embeddings)"
#: What people write after the address, and what the client then adds by itself.
_HINTS = tuple(
    (re.compile(path), hint)
    for path, hint in (
        (
            r"/v1/v1/messages(/.+)?|/v1/messages(/count_tokens)?/v1/.+",
            "For the Anthropic SDK, base_url ends before /v1.",
        ),
        (r"/v1/v1/.+", "base_url must end in /v1 once; it is there twice."),
        (
            rf"(/v1/{_OPENAI})?/({_OPENAI}|models)",
            "For the OpenAI SDK, base_url must end in /v1, with nothing after it.",
        ),
        (r"/messages", "For the Anthropic SDK, base_url is this address without a path."),
        (r"(/v1)?/?", "base_url is this address with /v1 (OpenAI) or without (Anthropic)."),
        (
            r"/(metrics|status|events|limits(/reset)?|(un)?drain)",
            "It is a path of the admin port (`admin_listen`), never of this one.",
        ),
    )
)

Answer = Callable[[Head, Reply, Record], Awaitable[None]]


class State:
    """What the process says of itself. Mutable: `ready` is False while starting and draining."""

    def __init__(self) -> None:
        self.ready = False
        self.started = int(time.time())


class App:
    """What the data port serves: visits to model servers, and everything else as ASGI.

    Mutable state: `_gateway`, whom requests that come now are served with; whose pages may call.
    """

    def __init__(self, gateway: Gateway, state: State, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now
        self._endpoints: Mapping[str, Endpoint] = {e.path: e for e in ENDPOINTS}
        self.serve_with(gateway)

    def serve_with(self, gateway: Gateway) -> None:
        """Serve what comes from now on with this one; what is under way keeps its own."""
        self._gateway = gateway
        self._origins = frozenset(gateway.config.cors.origins)
        self._rest = self._everything_else()

    def direct(self, visit: Visit) -> Awaitable[None] | None:
        """Serve a visit that is for a model server."""
        head = visit.head
        endpoint = self._endpoints.get(head.path)
        if endpoint is None or head.method != "POST":
            return None
        exchange = Exchange(self._gateway, endpoint, head, visit, self._now())
        if self._origins:
            exchange.reply.more_headers = self._cors(head)
        return exchange.run(visit.receive)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """The ASGI application of every other."""
        return self._rest(scope, receive, send)

    def _everything_else(self) -> ASGIApp:
        health = self._asgi(self._healthz, logged=False)
        listing = self._asgi(self._models)
        routes = [
            Route(models.PATH, listing, methods=["GET"]),
            Route(models.PATH + "/{id:path}", listing, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/readyz", self._asgi(self._readyz, logged=False), methods=["GET"]),
            Route("/", health, methods=["HEAD"]),  # Claude Code asks whether we live
            # Only for the 405 of another method: a POST never comes this far.
            *(Route(path, health, methods=["POST"]) for path in self._endpoints),
        ]
        refusals: Any = {HTTPException: self._unrouted}
        starlette = Starlette(routes=routes, exception_handlers=refusals)
        starlette.router.redirect_slashes = False
        if not self._origins:
            return starlette
        return CORSMiddleware(
            starlette,
            allow_origins=sorted(self._origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            max_age=600,
        )

    def _asgi(self, answer: Answer, *, logged: bool = True) -> ASGIApp:
        """An ASGI application of one answer, with the errors and the log of every other."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            head, caller = taken(scope)
            began = self._now()
            record = Record(request_id=passing.request_id(), endpoint="other")
            if head.path.startswith(models.PATH):
                record.endpoint = models.PATH
            reply = Reply(caller, speech_for(head), record.request_id)
            reply.more_headers = self._cors(head)
            try:
                await answer(head, reply, record)
            except GatewayError as exc:
                record.outcome = exc.outcome
                record.limited_by = exc.limited_by
                reply.refuse(exc)
            except Exception as exc:
                self._gateway.account.fault(record, exc)
                reply.refuse(InternalError())
            if logged:
                self._gateway.account.close(record, reply, began)

        # A class instance, since Starlette takes a function for one that returns a response.
        return _Asgi(run)

    def _cors(self, head: Head) -> bytes:
        origin = head.fields.get(b"origin")
        if origin is None:
            return b""
        if origin.decode("latin-1") not in self._origins and "*" not in self._origins:
            return b""
        return b"access-control-allow-origin: %b\r\n" % origin + _EXPOSED

    async def _models(self, head: Head, reply: Reply, record: Record) -> None:
        gateway = self._gateway
        principal = await authenticate(head, gateway.keys, time.time())
        record.key, record.team = principal.key, principal.team
        permit = await gateway.admission.count(record.request_id, principal)
        permit.settle(Usage(), 0)
        reply.standings = permit.standings
        reply.more_headers += permit.headers
        found = models.answer(head, gateway.routes, principal, self._state.started)
        reply.whole(orjson.dumps(found))

    async def _healthz(self, head: Head, reply: Reply, record: Record) -> None:
        reply.empty(200)

    async def _readyz(self, head: Head, reply: Reply, record: Record) -> None:
        reply.empty(200 if self._state.ready else 503)

    async def _unrouted(self, request: Request, exc: HTTPException) -> ASGIApp:
        """Starlette found no route, or not for this method: say so in the dialect of the path."""
        allow = (exc.headers or {}).get("Allow", "")

        async def refuse(head: Head, reply: Reply, record: Record) -> None:
            if exc.status_code == 405 and head.path != "/":
                raise MethodNotAllowed(head.method, allow)
            raise NotFound(_no_such_path(head.path))

        return self._asgi(refuse)


class _Asgi:
    def __init__(self, run: ASGIApp) -> None:
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._run(scope, receive, send)


def speech_for(head: Head) -> Spoken:
    """The dialect of the path, or of the caller where a path serves both."""
    if head.path.startswith(models.PATH) and b"anthropic-version" in head.fields:
        return ANTHROPIC
    return speech(head.path)


def _no_such_path(path: str) -> str:
    nothing = "There is nothing at this path."
    meant = re.sub("/+", "/", path).rstrip("/")
    if path != meant and meant in {endpoint.path for endpoint in ENDPOINTS}:
        return f"{nothing} It has a slash too many: it is {meant}."
    for misdirected, hint in _HINTS:
        if misdirected.fullmatch(path):
            return f"{nothing} {hint}"
    return f"{nothing} The API is under /v1: {', '.join(_PATHS)}."
