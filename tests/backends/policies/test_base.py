"""What a replica has to do: our work, that of others, and what its engine says of itself."""

from __future__ import annotations

import pytest

from backends.base import Demand, Load, Replica
from backends.policies.base import Scales, pressed
from tests.backends.policies.test_family import replicas

NOW = 100.0
REQUEST = Demand(prompt_tokens=100, output_tokens=100)


def says(
    replica: Replica, running: int = 0, waiting: int = 0, kv: float = 0.0, at: float = NOW
) -> None:
    replica.load = Load(at, running, waiting, kv)


def has(replica: Replica, requests: int, tokens: int) -> None:
    replica.in_flight, replica.outstanding = requests, tokens


def lightest(among: list[Replica], times: int = 1, now: float = NOW) -> list[int]:
    scales = Scales()
    return [among.index(scales.lightest(among, REQUEST, now)) for _ in range(times)]


@pytest.mark.parametrize(
    ("waiting", "kv", "expected"), [(4, 0.79, 0), (5, 0.0, 1), (0, 0.8, 1), (9, 1.0, 1)]
)
def test_an_engine_is_saturated_by_its_queue_or_by_its_cache(
    waiting: int, kv: float, expected: int
) -> None:
    (replica,) = replicas(1)
    says(replica, 8, waiting, kv)
    assert pressed(replica, NOW) == expected
    assert pressed(replica, NOW + 3) == 0, "its figures are too old to say so"


def test_one_without_room_comes_after_the_saturated_and_those_after_all_others() -> None:
    among = replicas(1, 1, 1)
    says(among[1], waiting=5)
    among[2].busy = NOW + 1
    has(among[0], 50, 10_000)
    assert lightest(among, 3) == [0] * 3
    assert lightest(among[1:], 3) == [0] * 3
    assert set(lightest(among[1:], 8, NOW + 3)) == {0, 1}, "nothing is known against either"


def test_among_the_saturated_the_least_busy_is_chosen() -> None:
    among = replicas(1, 1)
    for replica, tokens in zip(among, (300, 200), strict=True):
        has(replica, 1, tokens)
        says(replica, 1, kv=0.9)
    assert lightest(among, 3) == [1] * 3


def test_one_that_starts_slowly_has_less_until_it_is_back() -> None:
    among = replicas(1, 1)
    among[1].health.stalled(NOW, "silent")
    among[1].health.served(NOW)
    has(among[0], 3, 700)
    assert lightest(among, 2, NOW + 2) == [0, 0]  # 900 in whole, 200 in a fifth
    assert lightest(among, 2, NOW + 3) == [1, 1]
    has(among[0], 0, 0)
    assert set(lightest(among, 4, NOW + 10)) == {0, 1}


def test_the_work_of_other_processes_counts_as_ones_own() -> None:
    among = replicas(1, 1)
    has(among[0], 1, 300)
    among[1].elsewhere = (2, 301)
    assert lightest(among, 3) == [0] * 3
    among[1].elsewhere = (2, 299)
    assert lightest(among, 3) == [1] * 3


def test_what_others_sent_counts_as_much_as_our_requests_do_on_average() -> None:
    among = replicas(1, 1, 1)
    has(among[0], 1, 400)
    has(among[1], 3, 600)  # 250 each, in the mean
    among[1].elsewhere = (1, 0)
    says(among[0], running=2, waiting=1)
    says(among[1], running=3)  # fewer than ours: some were not there yet
    assert Scales().burdens(among, REQUEST, NOW) == [400 + 2 * 200, 600, 0]


def test_where_we_have_nothing_under_way_others_requests_count_as_this_one() -> None:
    among = replicas(1, 1)
    says(among[0], running=3)
    assert Scales().burdens(among, REQUEST, NOW) == [600, 0]
    assert lightest(among, 3) == [1] * 3


def test_what_has_ended_since_the_engine_spoke_is_nobody_elses_work() -> None:
    among, scales = replicas(1, 1), Scales()
    has(among[0], 8, 800)
    says(among[0], running=9)
    assert scales.burdens(among, REQUEST, NOW) == [900, 0]
    has(among[0], 1, 100)
    assert scales.burdens(among, REQUEST, NOW + 1) == [200, 0], "one of others, not eight"
    says(among[0], running=1, at=NOW + 1)
    assert scales.burdens(among, REQUEST, NOW + 1) == [100, 0]


def test_old_figures_say_nothing_of_others() -> None:
    among = replicas(1, 1)
    says(among[0], running=9, at=NOW - 3)
    assert Scales().burdens(among, REQUEST, NOW) == [0, 0]
