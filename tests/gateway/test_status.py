"""What several workers do is told as what one gateway does."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from backends.base import Load, Replica
from backends.health import Health
from backends.pool import Pool
from gateway import status
from gateway.composition import Composition
from gateway.limits.report import Told
from gateway.route import Routes, Split
from tests.gateway import pools

NOW = 1000.0


def told(in_flight: int, error: str | None, **more: Any) -> dict[str, Any]:
    replica = {
        "url": "http://gpu1:8000",
        "standing": "up",
        "why": "",
        "chosen": True,
        "in_flight": in_flight,
        "outstanding": 100 * in_flight,
        "running": None,
        "waiting": None,
        "kv": None,
        "weight": 2,
        "concurrency": None,
        "cache_salt": error is None,
        "last_error": error,
    }
    pool = {"kind": "vllm", "policy": "least_busy", "aliases": [], "held": in_flight}
    return {
        "ready": True,
        "live_requests": in_flight + 1,
        "upstream_connections": 4,
        "limits_degraded": False,
        "models": {"tiny": "tiny"},
        "splits": {},
        "pools": {"tiny": {**pool, "replicas": [replica]}},
        **more,
    }


def replica_of(document: dict[str, Any]) -> dict[str, Any]:
    (replica,) = document["pools"]["tiny"]["replicas"]
    return cast(dict[str, Any], replica)


def test_counts_are_added_and_an_error_of_one_is_told() -> None:
    whole = status.of_workers([told(1, None), told(2, "refused"), told(3, "reset")])
    assert (whole["live_requests"], whole["upstream_connections"]) == (9, 12)
    assert whole["models"] == {"tiny": "tiny"}
    pool = whole["pools"]["tiny"]
    assert (pool["kind"], pool["held"]) == ("vllm", 6)
    assert pool["replicas"] == [
        {
            "url": "http://gpu1:8000",
            "standing": "up",
            "why": "",
            "chosen": True,
            "in_flight": 6,
            "outstanding": 600,
            "running": None,
            "waiting": None,
            "kv": None,
            "weight": 2,
            "concurrency": None,
            "cache_salt": False,
            "last_error": "refused",
        }
    ]


def test_what_only_one_of_them_has_found_is_there() -> None:
    late = told(1, None, models={"tiny": "tiny", "new": "new"})
    new = {**late["pools"]["tiny"]["replicas"][0], "url": "http://gpu2:8000"}
    late["pools"]["new"] = {**late["pools"]["tiny"], "replicas": [new]}
    late["pools"]["tiny"]["replicas"].append(new)
    for order in ([late, told(1, None)], [told(1, None), late]):
        whole = status.of_workers(order)
        assert set(whole["models"]) == set(whole["pools"]) == {"tiny", "new"}
        urls = [replica["url"] for replica in whole["pools"]["tiny"]["replicas"]]
        assert urls == ["http://gpu1:8000", "http://gpu2:8000"]


def test_of_no_worker_there_is_nothing_to_tell() -> None:
    whole = status.of_workers([])
    assert (whole["live_requests"], whole["pools"]) == (0, {})


def test_of_workers_that_differ_the_worst_is_told_with_its_reason() -> None:
    well, out = told(1, None), told(0, "refused")
    replica_of(out).update(standing="ejected", why="ejected for 4 s more: refused", chosen=False)
    replica_of(well).update(standing="slow start", why="slow start")
    for order in ([well, out], [out, well]):
        one = replica_of(status.of_workers(order))
        assert (one["standing"], one["why"]) == ("ejected", "ejected for 4 s more: refused")
        assert one["chosen"] is True  # by one of them
        assert one["in_flight"] == 1


def test_the_engines_own_figures_are_not_added() -> None:
    knows, knows_not = told(1, None), told(1, None)
    replica_of(knows).update(running=0, waiting=3, kv=0.5)
    for order in ([knows, knows_not], [knows_not, knows], [knows, knows]):
        one = replica_of(status.of_workers(order))
        assert (one["running"], one["waiting"], one["kv"]) == (0, 3, 0.5)


@pytest.mark.parametrize("degraded", [False, True])
def test_limits_are_degraded_where_they_are_for_any_worker(degraded: bool) -> None:
    splits = {"chat": {"tiny": 1}}
    workers = [told(0, None, splits=splits), told(0, None, limits_degraded=degraded)]
    whole = status.of_workers(workers)
    assert (whole["limits_degraded"], whole["splits"]) == (degraded, splits)


# How one replica stands


def health(*, down: str = "", failed: int = 0, back: float = 0.0) -> Health:
    """One that failed so many times in a row just now, and served again `back` seconds ago."""
    made = Health(lambda: 0.0)
    for _ in range(failed):
        made.failed(NOW - 100 if back else NOW, "refused")
    if back:
        made.served(NOW - back)
    made.down = down
    return made


@pytest.mark.parametrize(
    ("given", "standing", "why"),
    [
        ({}, "up", ""),
        ({"health": health(failed=4)}, "up", ""),
        ({"health": health(failed=5, back=3.0)}, "slow start", "slow start"),
        ({"busy": NOW + 0.5}, "busy", "said it has no room"),
        ({"busy": NOW}, "up", ""),
        ({"concurrency": 2, "in_flight": 2}, "full", "at its concurrency of 2"),
        ({"concurrency": 2, "in_flight": 1}, "up", ""),
        (
            {"health": health(failed=5)},
            "ejected",
            "ejected for 5 s more: 5 requests in a row failed, the last one: refused",
        ),
        ({"health": health(down="its metrics stand still")}, "ejected", "its metrics stand still"),
        ({"health": health(failed=5), "drained": True}, "drained", "drained by the operator"),
    ],
)
def test_a_replica_stands_so_for_a_reason(given: Any, standing: str, why: str) -> None:
    assert status.standing(pools.replica(**given), NOW) == (standing, why)


def test_one_on_probation_says_what_for() -> None:
    replica = pools.replica(health=health(failed=5))
    standing, why = status.standing(replica, NOW + 5)
    assert standing == "probation"
    assert why == "on probation: 5 requests in a row failed, the last one: refused"


# Of one process


def composed(
    *replicas: Replica, splits: dict[str, Split] | None = None, **names: Pool
) -> Composition:
    """What `/status` looks at, with one pool `tiny` that is `gpt` too."""
    pool = pools.pool("tiny", *replicas)
    route = pools.route(pool, "tiny", fallback=("next",))
    table = {"tiny": route, "gpt": route, **{n: pools.route(p, n) for n, p in names.items()}}
    made = SimpleNamespace(
        routes=Routes(table, splits),
        means=SimpleNamespace(clock=lambda: NOW),
        transport=SimpleNamespace(open_connections=2),
        gateway=SimpleNamespace(live={1, 2, 3}),
        counter=SimpleNamespace(degraded=True),
    )
    return cast(Composition, made)


def test_a_process_tells_its_names_and_what_each_replica_does() -> None:
    load = Load(at=NOW - 1, running=7, waiting=2, kv=0.41)
    replica = pools.replica(in_flight=3, outstanding=4096, load=load, last_error="refused")
    splits = {"chat": Split("chat", {"tiny": 9, "next": 1})}
    whole = status.of_worker(composed(replica, splits=splits))
    assert (whole["live_requests"], whole["limits_degraded"]) == (3, True)
    assert whole["models"] == {"tiny": "tiny", "gpt": "tiny"}
    assert whole["splits"] == {"chat": {"tiny": 9, "next": 1}}
    pool = whole["pools"]["tiny"]
    assert (pool["kind"], pool["policy"], pool["aliases"]) == ("vllm", "least_busy", ["gpt"])
    (one,) = pool["replicas"]
    assert (one["in_flight"], one["outstanding"]) == (3, 4096)
    assert (one["running"], one["waiting"], one["kv"]) == (7, 2, 0.41)
    assert (one["standing"], one["chosen"], one["last_error"]) == ("up", True, "refused")


def test_an_engines_figures_are_told_only_while_they_are_fresh() -> None:
    old = pools.replica(load=Load(at=NOW - 60, running=7, waiting=2, kv=0.41))
    one = replica_of(status.of_worker(composed(old)))
    assert (one["running"], one["waiting"], one["kv"]) == (None, None, None)


def chosen(*replicas: Replica) -> list[bool]:
    whole = status.of_worker(composed(*replicas))
    return [replica["chosen"] for replica in whole["pools"]["tiny"]["replicas"]]


def test_what_is_well_is_chosen_and_where_nothing_is_the_one_that_is_out_the_shortest() -> None:
    def out(down: str = "") -> Replica:
        return pools.replica(health=health(failed=5, down=down))

    assert chosen(pools.replica(), out(), pools.replica(drained=True)) == [True, False, False]
    assert chosen(out("stuck"), out(), pools.replica(drained=True)) == [False, True, False]
    assert chosen(pools.replica(drained=True)) == [False]
    assert chosen(pools.replica(concurrency=1, in_flight=1)) == [False]


# What the operator takes out

URL = "http://gpu1:8000"


def test_a_replica_taken_out_is_told_with_its_pools_and_what_is_left_there() -> None:
    shared = pools.replica(URL, in_flight=2, drained=True)
    other = pools.replica("http://gpu2:8000")
    both = pools.pool("both", shared, other)
    assert status.drained(composed(shared, both=both).routes, URL) == (
        200,
        {
            "url": URL,
            "drained": True,
            "pools": ["tiny", "both"],
            "alone": {"tiny": ["next"]},
            "in_flight": 2,  # one replica, in two pools
            "silent": 0,
        },
    )
    other.drained = True
    assert status.drained(composed(shared, both=both).routes, URL)[1]["alone"]["both"] == []


def test_a_replica_nobody_has_is_answered_with_those_there_are() -> None:
    told = status.drained(composed(pools.replica(URL)).routes, "http://gpu9:8000")
    assert told == (404, {"error": f"no replica 'http://gpu9:8000'; known: {URL}"})


def test_a_drain_by_several_counts_what_all_have_and_who_was_silent() -> None:
    def one(in_flight: int, drained: bool = True) -> Told:
        return 200, {"url": URL, "drained": drained, "in_flight": in_flight, "silent": 0}

    missing: Told = (404, {"error": "no replica"})
    assert status.drained_by_all([one(1), missing, one(2)], 1) == (
        200,
        {"url": URL, "drained": True, "in_flight": 3, "silent": 1},
    )
    assert status.drained_by_all([one(0), one(0, drained=False)], 0)[1]["drained"] is False
    assert status.drained_by_all([missing, missing], 0) == missing
    assert status.drained_by_all([], 2)[0] == 503
