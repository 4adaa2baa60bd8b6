"""What people read of a status: every figure at its place, and nothing an engine can dress up."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gateway.operator import shown


def replica(url: str = "http://gpu1:8000", **more: Any) -> dict[str, Any]:
    given = {
        **{"url": url, "standing": "up", "why": "", "chosen": True, "in_flight": 12},
        **{"outstanding": 40960, "running": 9, "waiting": 0, "kv": 0.414, "weight": 1},
        **{"concurrency": None, "cache_salt": True, "last_error": None},
    }
    return {**given, **more}


def told(*replicas: dict[str, Any], **more: Any) -> dict[str, Any]:
    pool = {"kind": "vllm", "policy": "least_busy", "aliases": [], "held": 0}
    worker = {"pid": 4711, "ready": True, "live_requests": 3, "since": 1, "restarts": 0}
    return {
        **{"ready": True, "live_requests": 1200, "limits_degraded": False, "splits": {}},
        "workers": [worker],
        "pools": {"llama": {**pool, "replicas": list(replicas)}},
        **more,
    }


def printed(document: dict[str, Any]) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=400, markup=False, emoji=False).print(shown.whole(document))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("   ") if cell.strip()]


def test_each_replica_has_a_line_with_its_figures() -> None:
    out = replica(
        "http://gpu2:8000",
        standing="ejected",
        why="ejected for 4 s more: 3 connections in a row failed",
        chosen=False,
        **{"in_flight": 0, "outstanding": 0, "running": None, "waiting": None, "kv": None},
        last_error="http://gpu2:8000: ConnectionRefusedError",
    )
    first, _, heads, one, other = printed(told(replica(), out))
    assert first == "ready, 1,200 requests under way; worker 4711: 3"
    names = "pool replica standing in flight tokens running waiting KV why last error"
    assert " ".join(heads.split()) == names
    assert [cell.strip() for cell in cells(one)] == [
        *("llama", "http://gpu1:8000", "up", "12", "40,960", "9", "0", "41%", "-", "-"),
    ]
    assert [cell.strip() for cell in cells(other)] == [
        *("http://gpu2:8000", "ejected", "0", "0", "-", "-", "-"),
        "ejected for 4 s more: 3 connections in a row failed",
        "ConnectionRefusedError",
    ]
    assert one.index("http") == other.index("http") == heads.index("replica")


def test_the_last_one_that_is_asked_all_the_same_is_marked() -> None:
    *_, line = printed(told(replica(standing="ejected", why="stuck", chosen=True)))
    assert "ejected, the last" in line


def test_a_reason_that_says_no_more_than_the_standing_is_left_out() -> None:
    *_, line = printed(told(replica(standing="slow start", why="slow start")))
    assert line.count("slow start") == 1


def test_workers_that_are_late_or_came_anew_are_told() -> None:
    silent = {"pid": 1, "ready": False, "live_requests": None, "since": 1, "restarts": 2}
    starting = {"pid": 2, "ready": False, "live_requests": 0, "since": 1, "restarts": 0}
    first = printed(told(ready=False, workers=[silent, starting], live_requests=1))[0]
    assert first == (
        "not ready, 1 request under way; worker 1: no answer, restarted 2 ×; worker 2: 0, not ready"
    )


def test_names_that_lead_elsewhere_are_told() -> None:
    document = told(replica(), splits={"chat": {"llama": 9, "next": 1}})
    document["pools"]["llama"]["aliases"] = ["gpt-4o", "claude"]
    assert printed(document)[-2:] == [
        "chat is split: llama 9, next 1",
        "llama is also gpt-4o, claude",
    ]


def test_what_is_missing_is_told() -> None:
    assert printed(told(pools={}))[-1] == "no model is served yet"
    assert cells(printed(told())[-1])[-1].strip() == "no replica"
    assert printed(told(replica(), limits_degraded=True))[1].startswith("Redis is away")


def test_the_text_of_an_engine_gives_a_terminal_no_orders() -> None:
    *_, line = printed(told(replica(last_error="\x1b]0;owned\x07\x1b[2J[red]no\nroom" + "x" * 999)))
    assert "\x1b" not in line
    assert "[red]no room" in line
    assert len(line) < 400


# What changed


def line_of(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return shown.changes(told(replica(**before)), told(replica(**now)))


@pytest.mark.parametrize(
    "more",
    [
        {"in_flight": 99},
        {"kv": None, "running": None},
        {"why": "ejected for 3 s more"},
        {"outstanding": 0},
    ],
)
def test_what_moves_all_the_time_is_no_change(more: dict[str, Any]) -> None:
    assert line_of({}, more) == []


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"standing": "ejected", "why": "stuck", "chosen": False, "last_error": "no answer"},
            "llama http://gpu1:8000: ejected; stuck; no answer",
        ),
        ({"standing": "slow start", "why": "slow start"}, "llama http://gpu1:8000: slow start"),
        ({"last_error": "refused"}, "llama http://gpu1:8000: up; refused"),
    ],
)
def test_a_replica_that_stands_otherwise_is_a_line(more: dict[str, Any], line: str) -> None:
    assert line_of({}, more) == [line]


def test_what_was_not_there_before_is_told_and_what_is_gone() -> None:
    one, other = replica(), replica("http://gpu2:8000")
    summary = "ready, 1,200 requests under way; worker 4711: 3"
    assert shown.changes({}, told(one)) == [summary, "llama http://gpu1:8000: up"]
    assert shown.changes(told(one), told(other)) == [
        "llama http://gpu2:8000: up",
        "llama http://gpu1:8000: gone",
    ]


def test_a_worker_anew_and_redis_away_are_changes_of_the_gateway() -> None:
    worker = {"pid": 4712, "ready": True, "live_requests": 0, "since": 1, "restarts": 1}
    (line,) = shown.changes(told(), told(workers=[worker]))
    assert line.endswith("worker 4712: 0, restarted 1 ×")
    (line,) = shown.changes(told(), told(limits_degraded=True))
    assert line.endswith("; limits are degraded: Redis is away")
