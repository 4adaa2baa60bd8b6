"""Each in its turn, and a heavy one more often."""

from __future__ import annotations

from backends.policies.round_robin import RoundRobin
from tests.backends.policies.test_family import picked, replicas


def test_round_robin_spreads_the_turns_of_a_heavy_one() -> None:
    order = picked(RoundRobin(), replicas(5, 1, 1), 14)
    assert order == [0, 0, 1, 0, 2, 0, 0] * 2
