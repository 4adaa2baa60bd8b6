"""How a pool chooses among its replicas, one way a file."""

from __future__ import annotations

from collections.abc import Callable

from backends.base import Policy
from backends.policies.least_busy import LeastBusy
from backends.policies.prefix_affinity import PrefixAffinity
from backends.policies.round_robin import RoundRobin

POLICIES: dict[str, Callable[[], Policy]] = {
    "least_busy": LeastBusy,
    "round_robin": RoundRobin,
    "prefix_affinity": PrefixAffinity,
}
