"""What `/status` tells: of one worker, and of several as one gateway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backends.pool import Pool
from gateway.composition import Composition


def of_worker(composition: Composition) -> dict[str, Any]:
    """What one process does now."""
    routes = composition.routes
    return {
        "live_requests": len(composition.gateway.live),
        "upstream_connections": composition.transport.open_connections,
        "models": {name: route.pool.name for name, route in routes.table.items()},
        "pools": {pool.name: _of_pool(pool) for pool in routes.pools()},
    }


def of_workers(told: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What several do together: counts are added, of errors the first is told."""
    whole: dict[str, Any] = {
        "live_requests": 0,
        "upstream_connections": 0,
        "models": {},
        "pools": {},
    }
    for one in told:
        whole["live_requests"] += one["live_requests"]
        whole["upstream_connections"] += one["upstream_connections"]
        whole["models"] |= one["models"]
        for name, pool in one["pools"].items():
            known = whole["pools"].get(name)
            whole["pools"][name] = pool if known is None else _both(known, pool)
    return whole


def worker(
    pid: int, ready: bool, live_requests: int | None, since: int, restarts: int
) -> dict[str, Any]:
    """One line of the list of workers. `live_requests` is None where it does not answer, `since`
    in seconds since 1970, `restarts` how many had its place before it."""
    return {
        "pid": pid,
        "ready": ready,
        "live_requests": live_requests,
        "since": since,
        "restarts": restarts,
    }


def _of_pool(pool: Pool) -> dict[str, Any]:
    return {
        "kind": pool.kind.name,
        "held": pool.held,
        "replicas": [
            {
                "url": replica.url,
                "in_flight": replica.in_flight,
                "weight": replica.weight,
                "concurrency": replica.concurrency,
                "cache_salt": not replica.lacks("/v1/chat/completions", "cache_salt"),
                "last_error": replica.last_error,
            }
            for replica in pool.replicas
        ],
    }


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    replicas = {replica["url"]: replica for replica in one["replicas"]}
    for replica in other["replicas"]:
        known = replicas.get(replica["url"])
        if known is not None:
            replica = {
                **known,
                "in_flight": known["in_flight"] + replica["in_flight"],
                "cache_salt": known["cache_salt"] and replica["cache_salt"],
                "last_error": known["last_error"] or replica["last_error"],
            }
        replicas[replica["url"]] = replica
    held = one["held"] + other["held"]
    return {**one, "held": held, "replicas": list(replicas.values())}
