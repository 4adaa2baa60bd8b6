"""What every policy promises, and what each of them is for."""

from __future__ import annotations

import pytest

from backends.base import Demand, Origin, Policy, Replica
from backends.policies import POLICIES
from backends.policies.least_busy import LeastBusy
from backends.policies.round_robin import RoundRobin


def replicas(*weights: float) -> list[Replica]:
    return [
        Replica(f"http://r{at}:8000", Origin(f"r{at}", 8000), weight=weight)
        for at, weight in enumerate(weights)
    ]


def picked(policy: Policy, among: list[Replica], times: int) -> list[int]:
    return [among.index(policy.pick(among, Demand())) for _ in range(times)]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_and_idle_replicas_are_used_in_turn(name: str, count: int) -> None:
    order = picked(POLICIES[name](), replicas(*[1] * count), count * 4)
    for at in range(0, count * 4, count):
        assert sorted(order[at : at + count]) == list(range(count))


@pytest.mark.parametrize("name", POLICIES)
def test_only_what_is_offered_is_chosen(name: str) -> None:
    policy = POLICIES[name]()
    every = replicas(1, 2, 3)
    for _ in range(3):
        for offered in (every[:1], every[1:], every, every[::2]):
            assert policy.pick(offered, Demand()) in offered


@pytest.mark.parametrize("name", POLICIES)
def test_weights_share_the_work(name: str) -> None:
    policy, among = POLICIES[name](), replicas(3, 1)
    for _ in range(400):
        policy.pick(among, Demand()).in_flight += 1  # none of it ends
    assert [each.in_flight for each in among] == [300, 100]


def test_least_busy_prefers_who_has_least_to_do_for_its_weight() -> None:
    among = replicas(1, 1, 4)
    among[0].in_flight, among[1].in_flight, among[2].in_flight = 2, 1, 6
    assert picked(LeastBusy(), among, 3) == [2, 2, 2]
    among[2].in_flight = 9
    assert picked(LeastBusy(), among, 3) == [1, 1, 1]


def test_round_robin_spreads_the_turns_of_a_heavy_one() -> None:
    order = picked(RoundRobin(), replicas(5, 1, 1), 14)
    assert order == [0, 0, 1, 0, 2, 0, 0] * 2
