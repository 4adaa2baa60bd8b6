"""The one with least to do for its weight."""

from __future__ import annotations

from backends.policies.least_busy import LeastBusy
from tests.backends.policies.test_family import picked, replicas


def test_least_busy_prefers_who_has_least_to_do_for_its_weight() -> None:
    among = replicas(1, 1, 4)
    among[0].in_flight, among[1].in_flight, among[2].in_flight = 2, 1, 6
    assert picked(LeastBusy(), among, 3) == [2, 2, 2]
    among[2].in_flight = 9
    assert picked(LeastBusy(), among, 3) == [1, 1, 1]
