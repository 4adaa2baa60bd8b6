"""A conversation stays where its prefix is, until that replica has too much to do."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from backends.base import Demand, Load, Replica
from backends.policies.prefix_affinity import PrefixAffinity
from tests.backends.policies.test_family import replicas

NOW = 100.0
ROOT = Path(__file__).parents[3]
KEYS = [b"conversation %d" % n for n in range(2000)]


def turn(key: bytes, tokens: int = 100) -> Demand:
    return Demand("", tokens, 0, key)


def favourite(key: bytes, among: list[Replica]) -> Replica:
    return PrefixAffinity().pick(among, turn(key), NOW)


def work(among: list[Replica], *tokens: int, requests: int = 20) -> None:
    for replica, each in zip(among, tokens, strict=True):
        replica.in_flight, replica.outstanding = requests, each


def ordered(key: bytes, count: int = 4) -> list[Replica]:
    """Replicas of which the first is the key's favourite."""
    among = replicas(*[1] * count)
    first = favourite(key, among)
    return [first, *(replica for replica in among if replica is not first)]


def test_a_conversation_has_one_favourite_whatever_came_before_and_in_which_order() -> None:
    among, policy = replicas(1, 1, 1, 1), PrefixAffinity()
    first = [policy.pick(among, turn(key), NOW) for key in KEYS]
    assert [policy.pick(among[::-1], turn(key), NOW) for key in KEYS] == first


def test_every_process_chooses_alike() -> None:
    among = replicas(1, 1, 1, 1)
    ours = [among.index(favourite(key, among)) for key in KEYS[:50]]
    asked = (
        "from tests.backends.policies.test_prefix_affinity import *\n"
        "among = replicas(1, 1, 1, 1)\n"
        "print([among.index(favourite(key, among)) for key in KEYS[:50]])"
    )
    theirs = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, check=True
    )
    assert theirs.stdout.decode().strip() == str(ours)


def test_weights_share_the_conversations() -> None:
    among = replicas(1, 1, 2)
    counts = Counter(favourite(key, among) for key in KEYS)
    for replica, part in zip(among, (0.25, 0.25, 0.5), strict=True):
        assert abs(counts[replica] / len(KEYS) - part) < 0.04


def test_one_that_goes_moves_only_its_own_conversations() -> None:
    among = replicas(1, 1, 1, 1)
    before = {key: favourite(key, among) for key in KEYS}
    after = {key: favourite(key, among[1:]) for key in KEYS}
    moved = [key for key in KEYS if before[key] is not after[key]]
    assert moved == [key for key in KEYS if before[key] is among[0]]
    assert {after[key] for key in moved} == set(among[1:])


def test_what_belongs_to_no_conversation_goes_to_the_least_busy() -> None:
    among, policy = replicas(1, 1, 1), PrefixAffinity()
    assert {policy.pick(among, turn(b""), NOW) for _ in range(6)} == set(among)
    work(among, 500, 400, 450)
    assert [policy.pick(among, turn(b""), NOW) for _ in range(3)] == [among[1]] * 3


def test_a_favourite_is_left_for_the_least_busy_where_it_would_have_too_much() -> None:
    among, policy = ordered(KEYS[0]), PrefixAffinity()
    work(among, 11_000, 10_000, 10_000, 9_000)  # 11,100 of 40,100: 1.11 of the mean
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[0]
    work(among, 13_000, 10_000, 10_000, 9_000)  # 13,100 of 42,100: 1.24 of it
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[3]


def test_the_request_itself_counts_in_the_bound() -> None:
    among, policy = ordered(KEYS[0]), PrefixAffinity()
    work(among, 11_000, 10_000, 10_000, 9_000)
    assert policy.pick(among, turn(KEYS[0], 1_000), NOW) is among[0]
    assert policy.pick(among, turn(KEYS[0], 2_000), NOW) is among[3]


def test_a_favourite_may_have_as_much_as_its_share_says() -> None:
    among, policy = ordered(KEYS[0], 2), PrefixAffinity()
    among[0].weight = 3.0
    work(among, 33_000, 9_000)
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[0]
    among[0].health.stalled(NOW - 5, "silent")
    among[0].health.served(NOW - 5)  # now it has half of its weight
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[1]


@pytest.mark.parametrize("elsewhere", [0, 3])
def test_a_favourite_with_a_few_requests_is_never_left(elsewhere: int) -> None:
    among, policy = ordered(KEYS[0]), PrefixAffinity()
    work(among, 50_000, 0, 0, 0, requests=0)
    among[0].in_flight, among[0].elsewhere = 7 - elsewhere, (elsewhere, 0)
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[0]
    among[0].in_flight += 1
    assert policy.pick(among, turn(KEYS[0]), NOW) is not among[0]


def test_a_saturated_favourite_is_left_and_one_without_room() -> None:
    among, policy = ordered(KEYS[0]), PrefixAffinity()
    among[0].load = Load(NOW, 8, 5, 0.2)
    assert policy.pick(among, turn(KEYS[0]), NOW) is not among[0]
    among[0].load = None
    among[0].busy = NOW + 1
    assert policy.pick(among, turn(KEYS[0]), NOW) is not among[0]
    assert policy.pick(among, turn(KEYS[0]), NOW + 1) is among[0]


def test_what_others_sent_to_the_favourite_counts_in_the_bound() -> None:
    among, policy = ordered(KEYS[0]), PrefixAffinity()
    work(among, 10_000, 10_000, 10_000, 10_000)
    assert policy.pick(among, turn(KEYS[0]), NOW) is among[0]
    among[0].load = Load(NOW, 30, 0, 0.2)
    assert policy.pick(among, turn(KEYS[0]), NOW) is not among[0]
