"""What the admin port tells of the pools: of one worker, and of several as one gateway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from backends.base import Replica
from backends.health import Standing
from backends.policies import POLICIES
from backends.pool import Pool
from gateway.composition import Composition
from gateway.limits.report import Told
from gateway.route import Routes

#: How a replica may stand, from the best to the worst: workers that differ tell the worst.
STANDINGS = ("up", "slow start", "busy", "full", "probation", "ejected", "drained")


def of_worker(composition: Composition) -> dict[str, Any]:
    """What one process does now."""
    routes = composition.routes
    now = composition.means.clock()
    return {
        "live_requests": len(composition.gateway.live),
        "upstream_connections": composition.transport.open_connections,
        "limits_degraded": composition.counter.degraded,
        "models": {name: route.pool.name for name, route in routes.table.items()},
        "splits": {name: dict(split.sides) for name, split in routes.splits.items()},
        "pools": {pool.name: _of_pool(pool, routes, now) for pool in routes.pools()},
    }


def of_workers(told: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What several do together: counts are added, of errors the first is told."""
    whole: dict[str, Any] = {
        "live_requests": 0,
        "upstream_connections": 0,
        "limits_degraded": False,
        "models": {},
        "splits": {},
        "pools": {},
    }
    for one in told:
        whole["live_requests"] += one["live_requests"]
        whole["upstream_connections"] += one["upstream_connections"]
        whole["limits_degraded"] |= one["limits_degraded"]
        whole["models"] |= one["models"]
        whole["splits"] |= one["splits"]
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


# Of one replica


def standing(replica: Replica, now: float) -> tuple[str, str]:
    """How a replica stands, and why it is not chosen as any other is; empty where it is."""
    judged = replica.health.standing(now)
    if replica.drained:
        return "drained", "drained by the operator"
    if judged in (Standing.EJECTED, Standing.PROBATION):
        return judged.value, replica.health.why(now)
    if replica.full:
        return "full", f"at its concurrency of {replica.concurrency}"
    if now < replica.busy:
        return "busy", "said it has no room"
    return judged.value, replica.health.why(now)


def _of_pool(pool: Pool, routes: Routes, now: float) -> dict[str, Any]:
    policies = {made: name for name, made in POLICIES.items()}
    known_as = (name for name, route in routes.table.items() if route.pool is pool)
    chosen = pool.well(now) or (pool.least_bad(),)
    return {
        "kind": pool.kind.name,
        "policy": policies.get(type(pool.policy)),
        "aliases": [name for name in known_as if name != pool.name],
        "held": pool.held,
        "replicas": [_of_replica(r, now) | {"chosen": r in chosen} for r in pool.replicas],
    }


def _of_replica(replica: Replica, now: float) -> dict[str, Any]:
    stands, why = standing(replica, now)
    load = replica.fresh(now)
    return {
        "url": replica.url,
        "standing": stands,
        "why": why,
        "in_flight": replica.in_flight,
        "outstanding": replica.outstanding,
        "running": load and load.running,
        "waiting": load and load.waiting,
        "kv": load and load.kv,
        "weight": replica.weight,
        "concurrency": replica.concurrency,
        "cache_salt": not replica.capability.lacks("/v1/chat/completions", "cache_salt"),
        "last_error": replica.last_error,
    }


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    replicas = {replica["url"]: replica for replica in one["replicas"]}
    for replica in other["replicas"]:
        known = replicas.get(replica["url"])
        replicas[replica["url"]] = replica if known is None else _same(known, replica)
    held = one["held"] + other["held"]
    aliases = list(dict.fromkeys((*one["aliases"], *other["aliases"])))
    return {**one, "held": held, "aliases": aliases, "replicas": list(replicas.values())}


def _same(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One replica as two processes see it."""
    worst = max(one, other, key=lambda replica: STANDINGS.index(replica["standing"]))
    newest = other if one["running"] is None else one  # the engine's own figures: not added
    return {
        **worst,
        **{name: one[name] + other[name] for name in ("in_flight", "outstanding")},
        **{name: newest[name] for name in ("running", "waiting", "kv")},
        "cache_salt": one["cache_salt"] and other["cache_salt"],
        "last_error": one["last_error"] or other["last_error"],
        "chosen": one["chosen"] or other["chosen"],
    }


# Of what the operator takes out


def drained(routes: Routes, url: str) -> Told:
    """How a replica stands that the operator takes out or in again.

    `in_flight` are the requests still under way there; `alone` has the pools in which no other
    replica is left, with the models that take over.
    """
    pools = [pool for pool in routes.pools() if any(r.url == url for r in pool.replicas)]
    if not pools:
        known = sorted({r.url for pool in routes.pools() for r in pool.replicas})
        return 404, {"error": f"no replica {url!r}; known: {', '.join(known)}"}
    there = {id(r): r for pool in pools for r in pool.replicas if r.url == url}.values()
    alone = (p for p in pools if all(r.url == url or r.drained for r in p.replicas))
    return 200, {
        "url": url,
        "drained": all(replica.drained for replica in there),
        "pools": [pool.name for pool in pools],
        "alone": {pool.name: list(routes.table[pool.name].fallback) for pool in alone},
        "in_flight": sum(replica.in_flight for replica in there),
        "silent": 0,
    }


def drained_by_all(told: Sequence[Sequence[Any]], silent: int) -> Told:
    """The same of several workers; `silent` of them did not answer."""
    good = [one for status, one in told if status == 200]
    if not good:
        return (
            (told[0][0], told[0][1]) if told else (503, {"error": "no worker answers; ask again"})
        )
    return 200, {
        **good[0],
        "drained": all(one["drained"] for one in good),
        "in_flight": sum(one["in_flight"] for one in good),
        "silent": silent,
    }
