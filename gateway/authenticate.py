"""Step 2: who is calling. A key is known by the SHA-256 of all of it, never by itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Protocol

from gateway.errors import InvalidRequest, TwoKeys, Unauthorized
from gateway.terms import Head, Principal

#: Any key of 16 to 256 visible ASCII characters, so that people can bring theirs. Blanks behind it
#: are none of the field's value (RFC 9110 §5.5).
_FORM = rb"([\x21-\x7e]{16,256})[ \t]*\Z"
_KEY = re.compile(_FORM)
_BEARER = re.compile(rb"(?i:bearer) +" + _FORM)
_ONCE = frozenset({b"authorization", b"x-api-key"})


class Keys(Protocol):
    """Where keys are kept. `known` is on the path of every request and must not wait."""

    def known(self, digest: bytes) -> Principal | None: ...
    async def fetch(self, digest: bytes) -> Principal | None:
        """Ask a slower place for a key that is not at hand."""


class ConfiguredKeys:
    """The keys of the configuration, by digest."""

    def __init__(self, principals: Mapping[bytes, Principal]) -> None:
        self._principals = principals

    def known(self, digest: bytes) -> Principal | None:
        return self._principals.get(digest)

    async def fetch(self, digest: bytes) -> Principal | None:
        return None


async def authenticate(head: Head, keys: Keys, now: float) -> Principal:
    """The principal of the request's key; `now` in seconds since the epoch, for keys that expire.

    Raises Unauthorized, the same for no key, a malformed and an unknown one, of two different keys
    one that says so whatever they are, and InvalidRequest for a header given twice.
    """
    digest = head.key_digest
    if not digest:
        digest = head.key_digest = hashlib.sha256(_key(head)).digest()
    principal = keys.known(digest) or await keys.fetch(digest)
    if principal is None or (principal.expires is not None and now >= principal.expires):
        raise Unauthorized
    return principal


def _key(head: Head) -> bytes:
    if head.repeated & _ONCE:
        raise InvalidRequest("The header with the API key was sent more than once.")
    bearer = head.fields.get(b"authorization")
    key = head.fields.get(b"x-api-key")
    if bearer is not None:
        token = _BEARER.match(bearer)
        if key is not None and (token is None or key.rstrip(b" \t") != token[1]):
            raise TwoKeys
    else:
        token = _KEY.match(key) if key is not None else None
    if token is None:
        raise Unauthorized
    return token[1]
