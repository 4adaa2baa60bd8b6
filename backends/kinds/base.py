"""What every server of the OpenAI family shares: its requests, its framing and its error object."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import orjson

from backends.base import Call, Replica
from backends.errors import ABOUT_THE_REQUEST, Refused
from backends.framing import Framer

_USER_AGENT = f"fairgate/{version('fairgate')}".encode()

_LONGEST_MESSAGE = 2_000


class OpenAIFamily:
    """A server that takes JSON over HTTP/1.1 and answers with JSON or server-sent events."""

    name = ""
    paths: frozenset[str] = frozenset()
    figures: str | None = None

    def prepare(self, call: Call, replica: Replica) -> tuple[bytes, bytes]:
        shape = call.path, call.stream
        head = replica.heads.get(shape)
        if head is None:
            accept = _ACCEPT_EVENTS if call.stream else _ACCEPT_JSON
            head = replica.heads[shape] = _head("POST", call.path, replica) + accept
        told = f"content-length: {len(call.body)}\r\nx-request-id: {call.request_id}\r\n"
        return head + f"{told}{call.headers}\r\n".encode(), call.body  # which may be large

    def framer(self, event_limit: int) -> Framer:
        return Framer(event_limit)

    def read_error(self, status: int, body: bytes) -> Refused:
        if status not in ABOUT_THE_REQUEST:
            return Refused(status)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Refused(status)
        return Refused(status, *_sentence(document))


_ACCEPT_JSON = b"accept: application/json\r\n"
_ACCEPT_EVENTS = b"accept: text/event-stream\r\n"


def probe(target: str, replica: Replica) -> bytes:
    """A GET of one of the server's own pages; `target` is relative to its base."""
    return _head("GET", target, replica) + _ACCEPT_JSON + b"\r\n"


def _head(method: str, path: str, replica: Replica) -> bytes:
    """Everything of a request head that is the same for each call of `path`."""
    origin = replica.origin
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port != (443 if origin.tls else 80):
        host = f"{host}:{origin.port}"
    target = replica.base + path.removeprefix("/v1") if path.startswith("/v1/") else path
    lines = [
        f"{method} {target} HTTP/1.1".encode(),
        b"host: " + host.encode(),
        b"user-agent: " + _USER_AGENT,
        b"accept-encoding: identity",
    ]
    if method == "POST":
        lines.append(b"content-type: application/json")
    if replica.credential:
        lines.append(b"authorization: Bearer " + replica.credential.encode())
    return b"\r\n".join(lines) + b"\r\n"


def _sentence(document: Any) -> tuple[str, str | None]:
    """The message and parameter of an OpenAI error object; of an Anthropic one, the message.

    SGLang and older vLLM send the error object by itself: `{"object": "error", "message": ...}`.
    """
    if not isinstance(document, dict):
        return "", None
    error = document if document.get("object") == "error" else document.get("error")
    if not isinstance(error, dict):
        return "", None
    message, param = error.get("message"), error.get("param")
    return (
        message[:_LONGEST_MESSAGE] if isinstance(message, str) else "",
        param if isinstance(param, str) else None,
    )
