"""Prefix-cache isolation: what one team's prompts left in the cache, another cannot measure.

vLLM mixes a request's `cache_salt` into its block hashes. It takes at most 128 characters and
none of `/ @ \\ NUL`, hence the URL-safe alphabet.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging

from gateway.route import Route
from gateway.terms import Principal

logger = logging.getLogger("fairgate")

_SALTED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"})


class Salts:
    """Mutable state: `_made`, a salt for each owner seen; `_warned`, pools that cannot take one."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._made: dict[str, str] = {}
        self._warned: set[str] = set()

    def of(self, principal: Principal, route: Route, path: str) -> str | None:
        """The salt for this principal's requests; None where none is wanted or understood."""
        isolate = route.caps_for(principal.team).isolate_prefix_cache
        pool = route.pool
        if isolate == "off" or path not in _SALTED or pool.kind.name != "vllm":
            return None
        for replica in pool.replicas:
            if not replica.capability.lacks(path, "cache_salt"):
                break  # nearly always the first
        else:
            self._warn(pool.name)
            return None
        owner = f"team:{principal.team}" if isolate == "team" else f"key:{principal.key}"
        salt = self._made.get(owner)
        if salt is None:
            digest = hmac.digest(self._secret, owner.encode(), hashlib.sha256)
            salt = self._made[owner] = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        return salt

    def _warn(self, pool: str) -> None:
        if pool not in self._warned:
            self._warned.add(pool)
            logger.warning(
                "model %s: its server has no cache_salt, so its prefix cache is shared by all "
                "teams; `request: {isolate_prefix_cache: off}` accepts that",
                pool,
            )
