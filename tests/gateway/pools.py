"""Pools and routes of nothing but names, for tests that send nothing."""

import time
from typing import Any

from backends.base import Observer, Origin, Replica
from backends.connection import Limits
from backends.errors import BackendError
from backends.kinds import KINDS
from backends.policies.least_busy import LeastBusy
from backends.pool import Means, Pool
from backends.quarantine import Quarantine
from backends.transport import Transport
from gateway.route import Route
from gateway.settings import Caps, Timeouts


class Unwatched:
    """An observer that counts nothing."""

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None:
        return None

    def retried(self, pool: str, reason: str) -> None:
        return None


def means(transport: Transport, observer: Observer) -> Means:
    return Means(transport, observer, Quarantine(b"secret", time.monotonic))


def replica(url: str = "http://gpu1:8000", **more: Any) -> Replica:
    return Replica(url=url, origin=Origin("gpu1", 8000), **more)


def pool(name: str = "llama", *replicas: Replica, kind: str = "vllm") -> Pool:
    transport = Transport(Limits(connect=1.0, tls=1.0))
    return Pool(name, KINDS[kind], replicas, LeastBusy(), means(transport, Unwatched()))


def route(of: Pool | None = None, model: str = "llama", **more: Any) -> Route:
    given = {"caps": Caps(), "timeouts": Timeouts(), "event_limit": 1 << 20, **more}
    return Route(model=model, pool=of or pool(model, replica()), upstream_model=model, **given)
