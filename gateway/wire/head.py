"""What of a request's head makes it unfit to be answered, before anyone reads its body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from functools import lru_cache

from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed

_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?[ \t]*\Z")
#: Most callers say the same few hosts, again and again.
_KNOWN_HOSTS = 64
_WITHOUT_HOST = frozenset({b"/healthz", b"/readyz"})
_METHODS = "GET, HEAD, POST, OPTIONS"
_NEVER = frozenset({b"TRACE", b"CONNECT"})


def wrong_in(
    method: bytes,
    version: str,
    target: bytes,
    fields: Mapping[bytes, bytes],
    repeated: Set[bytes],
) -> GatewayError | None:
    """What RFC 9112 has a server refuse, and what two servers could read differently.

    `version` as `1.1`, `target` as sent; `fields` by their names in lower case, and the names that
    were sent more than once.
    """
    if method in _NEVER:
        return MethodNotAllowed(method.decode(), _METHODS)
    if version not in ("1.1", "1.0"):
        return InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    host = fields.get(b"host")
    if host is None and not (version == "1.0" and target in _WITHOUT_HOST):
        return InvalidRequest("Send exactly one well-formed Host header.")
    if host is not None and (b"host" in repeated or not _well_formed(host)):
        return InvalidRequest("Send exactly one well-formed Host header.")
    if b"transfer-encoding" in fields:
        coding = fields[b"transfer-encoding"].strip().lower()
        if coding != b"chunked" or b"transfer-encoding" in repeated:
            return InvalidRequest("The only transfer-encoding is `chunked`.")
        if version == "1.0" or b"content-length" in fields:
            return InvalidRequest("Send `chunked` on HTTP/1.1 only, and no content-length.")
    if b"content-length" in repeated:
        return InvalidRequest("Send content-length once.")
    if target[:1] != b"/" or b"#" in target:
        return InvalidRequest("The request target must be a path.")
    return None


@lru_cache(_KNOWN_HOSTS)
def _well_formed(host: bytes) -> bool:
    return _HOST.match(host) is not None
