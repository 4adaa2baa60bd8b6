"""Every way from one standing to another, and that nothing else leads there."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backends.health import Health, Standing


class Case:
    """A health without jitter. Mutable state: the time."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.now = 1000.0
        self.health = Health(lambda: jitter)

    @property
    def standing(self) -> Standing:
        return self.health.standing(self.now)

    def stands(self) -> str:
        """The same, for where it changes within a test."""
        return self.standing.value

    def ejected_for(self) -> float:
        return self.health.ends() - self.now

    def back(self) -> None:
        """To the end of its ejection, and well again."""
        self.now = max(self.now, self.health.ends())
        assert self.standing is Standing.PROBATION
        assert self.health.served(self.now)


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_new_one_is_up_with_its_whole_share(case: Case) -> None:
    assert (case.standing, case.health.share(case.now)) == (Standing.UP, 1.0)
    assert case.health.sound
    assert Health().share(0.0) == 1.0


def test_three_connections_in_a_row_that_fail_eject(case: Case) -> None:
    assert [case.health.connect_failed(case.now) for _ in range(3)] == [False, False, True]
    assert case.standing is Standing.EJECTED
    assert case.health.why(case.now) == "ejected for 5 s more: 3 connections in a row failed"


def test_five_requests_in_a_row_that_fail_eject(case: Case) -> None:
    assert [case.health.failed(case.now, "status") for _ in range(5)] == [False] * 4 + [True]
    assert case.standing is Standing.EJECTED
    assert case.health.why(case.now).endswith("5 requests in a row failed, the last one: status")


def test_a_request_that_arrived_shows_that_connections_work(case: Case) -> None:
    for _ in range(10):
        case.health.connect_failed(case.now)
        case.health.connect_failed(case.now)
        case.health.failed(case.now, "status")
        case.health.served(case.now)
    assert case.standing is Standing.UP
    for _ in range(2):
        assert not case.health.connect_failed(case.now)
        assert not case.health.connect_failed(case.now)
        assert not case.health.failed(case.now, "status")
    assert case.standing is Standing.UP


def test_a_stall_ejects_at_once(case: Case) -> None:
    assert case.health.stalled(case.now, "silent for 60 s")
    assert not case.health.stalled(case.now, "silent for 60 s")
    assert case.standing is Standing.EJECTED


def test_ejections_grow_to_a_minute(case: Case) -> None:
    lengths = []
    for _ in range(6):
        case.health.stalled(case.now, "x")
        lengths.append(case.ejected_for())
        case.now = case.health.ends()
    assert lengths == [5, 10, 20, 40, 60, 60]


def test_a_replica_that_stays_dead_for_days_is_ejected_for_a_minute_each_time(case: Case) -> None:
    for _ in range(5000):
        case.health.stalled(case.now, "x")
        case.now = case.health.ends()
    case.health.stalled(case.now, "x")
    assert case.ejected_for() == 60


def test_jitter_adds_at_most_a_fifth() -> None:
    case = Case(jitter=1.0)
    case.health.stalled(case.now, "x")
    assert case.ejected_for() == pytest.approx(6.0)
    lengths = set()
    for _ in range(50):
        case.health = Health()  # as it is in service
        case.health.stalled(case.now, "x")
        lengths.add(case.ejected_for())
        assert 5 <= case.ejected_for() <= 6
    assert len(lengths) > 10


def test_on_probation_one_failure_ejects_for_longer(case: Case) -> None:
    for connecting in (True, False):
        health = case.health = Health(lambda: 0.0)
        health.stalled(case.now, "x")
        case.now += 5
        assert case.standing is Standing.PROBATION
        assert health.connect_failed(case.now) if connecting else health.failed(case.now, "x")
        assert case.ejected_for() == 10


def test_one_that_serves_on_probation_starts_slowly(case: Case) -> None:
    case.health.stalled(case.now, "x")
    case.back()
    assert case.stands() == "slow start"
    shares = []
    for _ in range(11):
        shares.append(case.health.share(case.now))
        case.now += 1
    assert shares[0] == 0.1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert case.stands() == "up"


def test_what_fails_while_it_is_ejected_says_nothing_new(case: Case) -> None:
    case.health.stalled(case.now, "x")
    for _ in range(20):
        assert not case.health.connect_failed(case.now)
        assert not case.health.failed(case.now, "x")
    assert case.ejected_for() == 5


def test_one_that_serves_while_it_is_ejected_starts_slowly(case: Case) -> None:
    case.health.stalled(case.now, "x")
    assert case.health.served(case.now + 1)
    assert case.health.standing(case.now + 1) is Standing.SLOW_START
    assert case.health.share(case.now + 6) == 0.5


def test_a_slow_start_forgives_as_much_as_any_other_time(case: Case) -> None:
    case.health.stalled(case.now, "x")
    case.back()
    assert not any(case.health.failed(case.now, "x") for _ in range(4))
    assert case.stands() == "slow start"
    assert case.health.failed(case.now, "x")
    assert case.stands() == "ejected"
    assert case.ejected_for() == 10


def test_why_says_what_a_person_wants_to_know(case: Case) -> None:
    health = case.health
    assert health.why(case.now) == ""
    health.stalled(case.now, "silent for 60 s")
    assert health.why(case.now + 2) == "ejected for 3 s more: silent for 60 s"
    case.now += 5
    assert health.why(case.now) == "on probation: silent for 60 s"
    health.connect_failed(case.now)
    assert health.why(case.now) == "ejected for 10 s more: a connection failed"
    case.now += 10
    health.failed(case.now, "status")
    assert health.why(case.now) == "ejected for 20 s more: a request failed: status"
    case.back()
    assert health.why(case.now) == "slow start"
    health.told(case.now, "no step for 12 s")
    health.told(case.now, "no step for 13 s")
    assert health.why(case.now) == "no step for 13 s"
    health.told(case.now, "")
    assert health.why(case.now) == "ejected for 40 s more: no step for 12 s"


def test_a_minute_of_good_work_is_a_clean_record(case: Case) -> None:
    case.health.stalled(case.now, "x")
    case.back()
    case.health.stalled(case.now, "x")
    assert case.ejected_for() == 10
    case.back()
    case.now += 61
    case.health.served(case.now)
    case.health.stalled(case.now, "x")
    assert case.ejected_for() == 5


def test_what_probes_say_holds_until_they_take_it_back(case: Case) -> None:
    assert case.health.told(case.now, "no connection can be made")
    case.now += 1000
    assert case.stands() == "ejected"
    assert case.health.why(case.now) == "no connection can be made"
    assert case.health.ends() == float("inf")
    assert not case.health.told(case.now, "no connection can be made")
    assert not case.health.told(case.now, "")
    assert case.stands() == "probation"


def test_one_that_probes_found_down_for_a_moment_waits_its_time(case: Case) -> None:
    case.health.told(case.now, "no connection can be made")
    case.now += 1
    case.health.told(case.now, "")
    assert case.standing is Standing.EJECTED
    assert case.ejected_for() == 4


def test_one_that_ends_its_work_before_it_is_gone_is_not_back_by_that(case: Case) -> None:
    case.health.told(case.now, "no connection can be made")
    assert not case.health.served(case.now + 1)
    case.now += 100
    case.health.told(case.now, "")
    assert case.stands() == "probation"


def test_what_fails_while_probes_speak_against_it_keeps_it_out_no_longer(case: Case) -> None:
    case.health.told(case.now, "no connection can be made")
    for _ in range(50):
        case.now += 7
        assert not case.health.connect_failed(case.now)
        assert not case.health.failed(case.now, "x")
        assert not case.health.stalled(case.now, "x")
    case.health.told(case.now, "")
    assert case.stands() == "probation"
    case.health.stalled(case.now, "x")
    assert case.ejected_for() == 10


def test_a_probe_tells_news_of_one_that_is_ejected_by_its_traffic_already(case: Case) -> None:
    case.health.stalled(case.now, "silent for 60 s")
    assert case.health.told(case.now + 1, "no step for 12 s")
    case.health.told(case.now + 2, "")
    assert case.ejected_for() == 5


class Judged(RuleBasedStateMachine):
    """Anything that may happen to a replica, in any order. Mutable state: the case."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.health = Health(random.Random(0).random)

    @property
    def standing(self) -> Standing:
        return self.health.standing(self.now)

    @rule(seconds=st.floats(0.01, 100))
    def time_passes(self, seconds: float) -> None:
        before = self.standing
        self.now += seconds
        after = {
            Standing.UP: {Standing.UP},
            Standing.SLOW_START: {Standing.SLOW_START, Standing.UP},
            Standing.EJECTED: {Standing.EJECTED, Standing.PROBATION},
            Standing.PROBATION: {Standing.PROBATION},
        }
        assert self.standing in after[before]

    @rule()
    def served(self) -> None:
        before, down = self.standing, self.health.down
        back = self.health.served(self.now)
        assert back is (before in (Standing.EJECTED, Standing.PROBATION) and not down)
        assert self.standing is (Standing.SLOW_START if back else before)

    @rule(what=st.sampled_from(["connection", "request", "stall"]))
    def fails(self, what: str) -> None:
        before, ends = self.standing, self.health.ends()
        if what == "connection":
            ejected = self.health.connect_failed(self.now)
        elif what == "request":
            ejected = self.health.failed(self.now, "x")
        else:
            ejected = self.health.stalled(self.now, "x")
        if before is Standing.EJECTED:
            assert not ejected
            assert self.health.ends() == ends
        elif before is Standing.PROBATION or what == "stall":
            assert ejected
        assert self.standing is (Standing.EJECTED if ejected else before)
        if ejected:
            assert 5 <= self.health.ends() - self.now <= 72

    @rule(down=st.sampled_from(["", "gone", "stuck"]))
    def told(self, down: str) -> None:
        before, was = self.standing, self.health.down
        assert self.health.told(self.now, down) is bool(down and not was)
        if down:
            assert self.standing is Standing.EJECTED
            assert self.health.why(self.now) == down
        elif was:
            assert self.standing in (Standing.EJECTED, Standing.PROBATION)
        else:
            assert self.standing is before

    @invariant()
    def one_thing_is_said_in_all_ways(self) -> None:
        assert self.health.sound is (self.standing in (Standing.UP, Standing.SLOW_START))
        assert bool(self.health.why(self.now)) is (self.standing is not Standing.UP)
        assert 0 < self.health.share(self.now) <= 1


TestJudged = Judged.TestCase


@given(
    st.lists(
        st.sampled_from(["served", "connect", "failed", "stalled", "down", "well", "wait"]),
        max_size=60,
    )
)
def test_whatever_happens_it_can_come_back(happened: list[str]) -> None:
    case = Case(jitter=0.5)
    doing = {
        "served": lambda: case.health.served(case.now),
        "connect": lambda: case.health.connect_failed(case.now),
        "failed": lambda: case.health.failed(case.now, "x"),
        "stalled": lambda: case.health.stalled(case.now, "x"),
        "down": lambda: case.health.told(case.now, "gone"),
        "well": lambda: case.health.told(case.now, ""),
    }
    for what in happened:
        if what == "wait":
            case.now += 3
        else:
            doing[what]()
        assert 0 < case.health.share(case.now) <= 1
        assert bool(case.health.why(case.now)) is (case.standing is not Standing.UP)
    case.health.told(case.now, "")
    case.now += 73
    assert case.standing is not Standing.EJECTED
    case.health.served(case.now)
    case.now += 11
    assert (case.standing, case.health.share(case.now)) == (Standing.UP, 1.0)
