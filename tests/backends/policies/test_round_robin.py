"""Each in its turn, and a heavy one more often."""

from __future__ import annotations

from backends.base import Demand
from backends.policies.round_robin import RoundRobin
from tests.backends.policies.test_family import picked, replicas


def test_round_robin_spreads_the_turns_of_a_heavy_one() -> None:
    order = picked(RoundRobin(), replicas(5, 1, 1), 14)
    assert order == [0, 0, 1, 0, 2, 0, 0] * 2


def test_one_that_starts_slowly_has_fewer_turns_until_it_is_back() -> None:
    among, policy = replicas(1, 1), RoundRobin()
    among[1].health.stalled(100.0, "silent")
    among[1].health.served(100.0)
    during = [among.index(policy.pick(among, Demand(), 102.5)) for _ in range(50)]
    assert during.count(1) == 10  # a quarter for each whole of the other
    after = [among.index(policy.pick(among, Demand(), 110.0)) for _ in range(50)]
    assert after.count(1) == 25
