"""What every policy promises, one suite over the family."""

from __future__ import annotations

import pytest

from backends.base import Demand, Origin, Policy, Replica
from backends.policies import POLICIES


def replicas(*weights: float) -> list[Replica]:
    return [
        Replica(f"http://r{at}:8000", Origin(f"r{at}", 8000), weight=weight)
        for at, weight in enumerate(weights)
    ]


def picked(policy: Policy, among: list[Replica], times: int) -> list[int]:
    return [among.index(policy.pick(among, Demand(), 0.0)) for _ in range(times)]


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
            assert policy.pick(offered, Demand(), 0.0) in offered


@pytest.mark.parametrize("name", POLICIES)
def test_weights_share_the_work(name: str) -> None:
    policy, among, demand = POLICIES[name](), replicas(3, 1), Demand("", 30, 20)
    for _ in range(400):
        chosen = policy.pick(among, demand, 0.0)  # none of it ends
        chosen.in_flight += 1
        chosen.outstanding += demand.tokens
    assert [each.in_flight for each in among] == [300, 100]
