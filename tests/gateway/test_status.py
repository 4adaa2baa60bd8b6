"""What several workers do is told as what one gateway does."""

from typing import Any

from gateway import status


def told(in_flight: int, error: str | None, **more: Any) -> dict[str, Any]:
    replica = {
        "url": "http://gpu1:8000",
        "in_flight": in_flight,
        "weight": 2,
        "concurrency": None,
        "cache_salt": error is None,
        "last_error": error,
    }
    pools = {"tiny": {"kind": "vllm", "held": in_flight, "replicas": [replica]}}
    return {
        "ready": True,
        "live_requests": in_flight + 1,
        "upstream_connections": 4,
        "models": {"tiny": "tiny"},
        "pools": pools,
        **more,
    }


def test_counts_are_added_and_an_error_of_one_is_told() -> None:
    whole = status.of_workers([told(1, None), told(2, "refused"), told(3, "reset")])
    assert (whole["live_requests"], whole["upstream_connections"]) == (9, 12)
    assert whole["models"] == {"tiny": "tiny"}
    pool = whole["pools"]["tiny"]
    assert (pool["kind"], pool["held"]) == ("vllm", 6)
    assert pool["replicas"] == [
        {
            "url": "http://gpu1:8000",
            "in_flight": 6,
            "weight": 2,
            "concurrency": None,
            "cache_salt": False,
            "last_error": "refused",
        }
    ]


def test_what_only_one_of_them_has_found_is_there() -> None:
    late = told(1, None, models={"tiny": "tiny", "new": "new"})
    new = {**late["pools"]["tiny"]["replicas"][0], "url": "http://gpu2:8000"}
    late["pools"]["new"] = {"kind": "vllm", "held": 0, "replicas": [new]}
    late["pools"]["tiny"]["replicas"].append(new)
    for order in ([late, told(1, None)], [told(1, None), late]):
        whole = status.of_workers(order)
        assert set(whole["models"]) == set(whole["pools"]) == {"tiny", "new"}
        urls = [replica["url"] for replica in whole["pools"]["tiny"]["replicas"]]
        assert urls == ["http://gpu1:8000", "http://gpu2:8000"]


def test_of_no_worker_there_is_nothing_to_tell() -> None:
    whole = status.of_workers([])
    assert (whole["live_requests"], whole["pools"]) == (0, {})
