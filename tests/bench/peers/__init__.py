"""The contenders, by name: each a function that sets one up, or None where it is not found.

Another proxy: a function in a file here, and its name in PEERS.
"""

from collections.abc import Callable

from tests.bench.peers.gateway import fairgate, redis, two, unlimited
from tests.bench.peers.haproxy import haproxy
from tests.bench.peers.litellm import litellm
from tests.bench.peers.nginx import nginx
from tests.bench.peers.peer import Peer, Place
from tests.bench.peers.routers import sglang_router, vllm_router

__all__ = ["PEERS", "Peer", "Place", "direct", "fairgate"]


def direct(place: Place) -> Peer:
    """The stand-in with nothing in front: the ceiling of stand-in and generator."""
    return Peer("direct", (), place.upstreams[0], "/health")


PEERS: dict[str, Callable[[Place], Peer | None]] = {
    "direct": direct,
    "nginx": nginx,
    "haproxy": haproxy,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
    "unlimited": unlimited,
    "fairgate": fairgate,
    "redis": redis,
    "two": two,
}
