"""What a case of bad input is: one request, and what it is answered."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.fakes.client import head
from tests.fakes.gateway import KEY

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
PATHS = (CHAT, TEXT, EMBEDDINGS, MESSAGES, COUNT)
HI = [{"role": "user", "content": "hi"}]
#: The least that each path serves.
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": HI},
    TEXT: {"model": "tiny", "prompt": "hi"},
    EMBEDDINGS: {"model": "tiny", "input": "hi"},
    MESSAGES: {"model": "tiny", "max_tokens": 8, "messages": HI},
    COUNT: {"model": "tiny", "messages": HI},
}
BEARER = ("authorization", f"Bearer {KEY}")
JSON = ("content-type", "application/json")
Fields = Iterable[tuple[str, str]]

_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed"} | {
    400: "invalid_request",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    431: "headers_too_large",
}
_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `config` names the gateway it goes to, in `CONFIGS`; `upstream` is None where
    nothing may reach the engine. `client_id` is what the log may say of the caller's own id.
    """

    name: str
    raw: bytes
    status: int
    code: str | None = None
    config: str = ""
    upstream: dict[str, Any] | None = None
    client_id: str = ""

    @property
    def path(self) -> str:
        """The target of the request line, without its query."""
        words = self.raw.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        return words[1].partition("?")[0] if len(words) > 1 else ""

    @property
    def anthropic(self) -> bool:
        return "/messages" in self.path

    @property
    def said(self) -> str | None:
        """The code or type of the answer."""
        if self.code is not None or self.status < 400:
            return self.code
        if self.anthropic:
            return _TYPES.get(self.status, "invalid_request_error")
        return _CODES[self.status]


#: Lines on top of the usual configuration, by name: of the model, and at the top level.
CONFIGS: dict[str, tuple[str, str]] = {
    "": ("", ""),
    "media host": ("request: {media: {hosts: [media.example]}}", ""),
    "small media": ("request: {media: {parts: 3, bytes: 4KiB}}", ""),
    "small bodies": ("", "request: {body: 64KiB}"),
    "refusing": ("request: {unknown_fields: refuse}", ""),
    "clamping": ("request: {max_tokens: {cap: 10}}", ""),
    "strict": ("request: {max_tokens: {cap: 10, over: refuse}}", ""),
    "trusting": ("request: {privileged: {priority: allow, cache_salt: allow}}", ""),
}


def call(
    body: Any = None, path: str = CHAT, headers: Fields = (), *, key: Fields = (BEARER,)
) -> bytes:
    """A well-formed POST of `body` (bytes as they are, anything else as JSON)."""
    if body is None:
        body = BODIES.get(path, BODIES[CHAT])
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, [*key, JSON, *headers], data) + data


def raw(*lines: str, body: bytes = b"") -> bytes:
    """A request of exactly these lines."""
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def chat(**fields: Any) -> dict[str, Any]:
    return BODIES[CHAT] | fields


def refused(name: str, request: bytes, status: int = 400, code: str | None = None) -> Case:
    return Case(name, request, status, code)


def passes(name: str, request: bytes, upstream: dict[str, Any], config: str = "") -> Case:
    return Case(name, request, 200, None, config, upstream)
