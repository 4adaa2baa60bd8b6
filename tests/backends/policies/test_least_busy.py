"""The one with the fewest tokens to do for its share."""

from __future__ import annotations

from backends.base import Demand
from backends.policies.least_busy import LeastBusy
from tests.backends.policies.test_family import replicas


def test_least_busy_prefers_who_has_the_fewest_tokens_for_its_weight() -> None:
    among, policy, demand = replicas(1, 1, 4), LeastBusy(), Demand("", 20, 10)
    for replica, requests, tokens in zip(among, (1, 9, 12), (200, 100, 450), strict=True):
        replica.in_flight, replica.outstanding = requests, tokens
    assert {policy.pick(among, demand, 0.0) is among[2] for _ in range(3)} == {True}
    among[2].outstanding = 500  # 530 / 4 is more than 130
    assert {policy.pick(among, demand, 0.0) is among[1] for _ in range(3)} == {True}


def test_the_request_itself_is_part_of_what_each_would_have_to_do() -> None:
    among, policy = replicas(1, 4), LeastBusy()
    among[0].outstanding, among[1].outstanding = 0, 800
    assert policy.pick(among, Demand("", 200, 0), 0.0) is among[0]
    assert policy.pick(among, Demand("", 300, 0), 0.0) is among[1]
