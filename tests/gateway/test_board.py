"""What a process is told of its engines, and what it tells of them."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from backends.base import Replica
from backends.errors import EngineStuck, KillsEngines
from backends.probes import Verdict
from backends.quarantine import Quarantine
from gateway.board import Board
from tests.fakes.flying import Flying, Waiting
from tests.gateway.pools import replica


class Case:
    """A board of three replicas, two of them at one URL."""

    def __init__(self) -> None:
        self.one, self.two = replica("http://gpu1:8000"), replica("http://gpu2:8000")
        self.same = replica("http://gpu1:8000", concurrency=4)
        self.replicas = [self.one, self.two, self.same]
        self.quarantine = Quarantine(b"secret", time.monotonic)
        self.board = Board(lambda: self.replicas, self.quarantine, time.monotonic)

    def waits(self, at: Replica) -> Flying:
        flying: Any = Flying()
        at.flights[flying] = Waiting(time.monotonic() - 60)
        at.in_flight += 1
        return flying  # type: ignore[no-any-return]


@pytest.fixture
def case() -> Case:
    return Case()


def verdict(url: str = "http://gpu1:8000", **more: Any) -> Verdict:
    given = {"reachable": True, "stuck": "", "silent": "", "running": 0, "waiting": 0, "kv": 0.0}
    return Verdict(**{"url": url, "known": True, **given, **more})


def test_a_verdict_is_that_of_every_replica_at_its_url(case: Case) -> None:
    case.board.judge([verdict(running=3, waiting=2, kv=0.5)])
    for each in (case.one, case.same):
        assert each.load is not None
        assert (each.load.running, each.load.waiting, each.load.kv) == (3, 2, 0.5)
    assert case.two.load is None


def test_what_waits_at_an_engine_found_stuck_moves_at_once(case: Case) -> None:
    moved, stays = case.waits(case.one), case.waits(case.two)
    case.board.judge([verdict(stuck="no step for 12 s", running=1)])
    assert [type(exc) for exc in moved.failures] == [EngineStuck]
    assert stays.failures == []
    assert not case.one.choosable(time.monotonic())
    assert case.one.health.why(time.monotonic()) == "no step for 12 s"
    case.board.judge([verdict(stuck="no step for 13 s", running=1)])
    assert len(moved.failures) == 1


def test_an_engine_found_dead_blames_what_failed_there_just_now(case: Case) -> None:
    for url, at in (("http://gpu1:8000", case.one), ("http://gpu2:8000", case.two)):
        case.quarantine.suspect(at, b"{}")
        case.board.judge([verdict(url, reachable=False, known=False)])
    with pytest.raises(KillsEngines):
        case.quarantine.check(b"{}")


def test_an_engine_that_is_merely_stuck_blames_nothing(case: Case) -> None:
    for url, at in (("http://gpu1:8000", case.one), ("http://gpu2:8000", case.two)):
        case.quarantine.suspect(at, b"{}")
        case.board.judge([verdict(url, stuck="no step", running=1)])
    case.quarantine.check(b"{}")


def test_an_engine_that_answers_again_is_not_down_any_more(case: Case) -> None:
    case.board.judge([verdict(reachable=False, known=False)])
    assert case.one.health.down
    case.board.judge([verdict()])
    assert not case.one.health.down


def test_it_tells_what_is_under_way_added_up_by_url(case: Case) -> None:
    assert case.board.work() == {}
    case.one.in_flight, case.one.outstanding = 2, 900
    case.same.in_flight, case.same.outstanding = 1, 100
    assert case.board.work() == {"http://gpu1:8000": (3, 1000)}


def test_what_others_have_under_way_counts_until_they_tell_otherwise(case: Case) -> None:
    case.one.outstanding = 10
    case.board.elsewhere({"http://gpu1:8000": [2, 500]})
    assert (case.one.elsewhere, case.one.work) == ((2, 500), 510)
    assert case.two.work == 0
    case.board.elsewhere({})
    assert case.one.work == 10


def test_a_url_of_several_models_is_told_of_once(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for reachable in (True, False, False, True):
            case.board.judge([verdict(reachable=reachable)])
    assert [record.getMessage() for record in caplog.records] == [
        "http://gpu1:8000 is taken out: no connection can be made",
        "http://gpu1:8000 answers again",
    ]
